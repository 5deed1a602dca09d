"""Steps note when they were sent: those of one moment are shown in this order."""

from __future__ import annotations

from forebay.database.migrations.work import Work

revision = "0010"
down_revision = "0009"


def upgrade(work: Work) -> None:
    """Bring the database to the schema."""
    work.bring_to_schema()
