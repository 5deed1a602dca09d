"""A step's newest feedback is found by an index, however many there are. The one before it, on `forId`, may go."""

from __future__ import annotations

from forebay.database.migrations.work import Work

revision = "0009"
down_revision = "0008"


def upgrade(work: Work) -> None:
    """Bring the database to the schema."""
    work.bring_to_schema()
