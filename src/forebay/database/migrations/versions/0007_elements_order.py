"""Elements note when they were sent, which is the order in which they are shown."""

from __future__ import annotations

from forebay.database.migrations.work import Work

revision = "0007"
down_revision = "0006"


def upgrade(work: Work) -> None:
    """Bring the database to the schema."""
    work.bring_to_schema()
