"""Rows note when their parts were written that were not written with the newest change."""

from __future__ import annotations

from forebay.database.migrations.work import Work

revision = "0008"
down_revision = "0007"


def upgrade(work: Work) -> None:
    """Bring the database to the schema."""
    work.bring_to_schema()
