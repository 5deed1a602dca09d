"""An id of the database's own, by which a journal knows it under whatever URL."""

from __future__ import annotations

from forebay.database.migrations.work import Work

revision = "0004"
down_revision = "0003"


def upgrade(work: Work) -> None:
    """Bring the database to the schema, and give it an id."""
    work.bring_to_schema()
    work.name_database()
