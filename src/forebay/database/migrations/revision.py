"""Where a database stands, and whether that is where this release needs it: without Alembic, for every start asks."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from forebay.database.migrations.activity import is_behind
from forebay.database.migrations.failures import translated
from forebay.errors import SchemaError

VERSION_TABLE = "forebay_migrations"
REVISION = sa.text("SELECT version_num FROM forebay_migrations")


@cache
def head() -> str:
    """The revision that this release needs: the newest of `versions`, whose files begin with theirs."""
    return max(path.name[:4] for path in (Path(__file__).parent / "versions").glob("[0-9]*.py"))


async def is_current(engine: AsyncEngine) -> bool:
    """Whether the database is at `head()`: one query.

    Raises TransientError or AccessError when that can't be told.
    """
    try:
        with translated():
            async with engine.connect() as connection:
                revision: str | None = await connection.scalar(REVISION)
                return revision == head()
    except SchemaError:  # there is no such table yet
        return False


async def is_complete(engine: AsyncEngine) -> bool:
    """Whether an upgrade has nothing to do. Raises what `is_current` does."""
    if not await is_current(engine):
        return False
    # Chainlit's own layer, while it still ran beside the migration, has made threads that have no updatedAt.
    with translated():
        async with engine.connect() as connection:
            return not await connection.run_sync(is_behind)
