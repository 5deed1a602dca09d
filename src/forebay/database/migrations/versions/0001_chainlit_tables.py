"""Chainlit's tables, and what forebay adds to them.

The databases that it meets differ, so it looks at what is there (`forebay.migrations.todo`) and adds the
rest. What the schema gains later belongs into a revision of its own, which does the same again. There is no
way down: Chainlit's own layer works on the migrated tables.
"""

from __future__ import annotations

from forebay.database.migrations.work import Work

revision = "0001"
down_revision = None


def upgrade(work: Work) -> None:
    """Bring the database to the schema."""
    work.bring_to_schema()
