"""Garbage is keyed by a hash, and elements are found by the key of their content: either may be of any length."""

from __future__ import annotations

from forebay.database.migrations.work import Work

revision = "0006"
down_revision = "0005"


def upgrade(work: Work) -> None:
    """Bring the database to the schema."""
    work.bring_to_schema()
