"""When a thread was last used, as SQL: as is stored, or else as its steps say, which another layer may have written."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.sql.selectable import FromClause

from forebay.database.sql.dialect import Expression
from forebay.model.schema import steps, threads


def computed_activity(thread: FromClause = threads) -> Expression:
    """Where none is stored: its newest step's time, or else since when it is there; NULL where nothing tells."""
    newest = sa.select(sa.func.max(steps.c.createdAt)).where(steps.c.threadId == thread.c["id"])
    return sa.func.coalesce(newest.scalar_subquery(), thread.c["createdAt"])


def activity(thread: FromClause = threads) -> Expression:
    """When it was last used; NULL where nothing tells."""
    return sa.func.coalesce(thread.c["updatedAt"], computed_activity(thread))
