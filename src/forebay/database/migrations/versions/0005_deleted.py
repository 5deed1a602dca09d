"""Which rows were deleted, of every table, and when: what was written before stays out."""

from __future__ import annotations

from forebay.database.migrations.work import Work

revision = "0005"
down_revision = "0004"


def upgrade(work: Work) -> None:
    """Bring the database to the schema."""
    work.bring_to_schema()
