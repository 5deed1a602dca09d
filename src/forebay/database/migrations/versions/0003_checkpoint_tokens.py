"""A checkpoint is known by a token, and cleared by its age."""

from __future__ import annotations

from forebay.database.migrations.work import Work

revision = "0003"
down_revision = "0002"


def upgrade(work: Work) -> None:
    """Bring the database to the schema."""
    work.bring_to_schema()
