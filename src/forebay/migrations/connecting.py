"""A connection that goes back to its pool in order, also when its task is cancelled meanwhile."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine


@asynccontextmanager
async def connected(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A connection. An anyio scope cancels each await anew, so that SQLAlchemy's own closing would fail in it."""
    connection = await engine.connect()
    try:
        yield connection
    finally:
        with anyio.CancelScope(shield=True):
            await connection.close()
