"""When each row was written, and which threads were deleted: what a write that comes late is held against."""

from __future__ import annotations

from forebay.database.migrations.work import Work

revision = "0002"
down_revision = "0001"


def upgrade(work: Work) -> None:
    """Bring the database to the schema."""
    work.bring_to_schema()
