"""One upgrade of a database at a time, whoever else starts one."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import anyio
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from forebay.errors import TransientError

logger = logging.getLogger("forebay.migrations")

# How long to wait for another upgrade, in seconds: building indexes on large tables takes a while.
PATIENCE = 3600.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 1.0
_KEY = int.from_bytes(b"forebay!")  # the advisory lock's number, one per database


def exclusive(engine: AsyncEngine) -> AbstractAsyncContextManager[AsyncConnection]:
    """A connection that is the only one to migrate this database.

    On PostgreSQL it is in no transaction, and is closed at the end, never pooled again. On SQLite it is in a
    transaction, which is committed at the end or rolled back. Raises TransientError after an hour.
    """
    return _exclusive_sqlite(engine) if engine.dialect.name == "sqlite" else _exclusive_postgres(engine)


@asynccontextmanager
async def _exclusive_postgres(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    async with engine.connect() as connection:
        try:
            await _wait_for(lambda: _try_advisory_lock(connection))
            async with connection.begin():
                await connection.execute(sa.text("SET statement_timeout = 0"))  # an index may take its time
            yield connection
        finally:
            # The lock and the settings are the session's: closing it ends them, however the upgrade ended.
            with anyio.CancelScope(shield=True):
                await connection.invalidate()


async def _try_advisory_lock(connection: AsyncConnection) -> bool:
    # Asked for again and again, since a session that waits for it holds a snapshot, and CREATE INDEX
    # CONCURRENTLY waits for every snapshot: the two would wait for each other.
    async with connection.begin():
        return bool(await connection.scalar(sa.text("SELECT pg_try_advisory_lock(:key)"), {"key": _KEY}))


@asynccontextmanager
async def _exclusive_sqlite(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    async with engine.connect() as connection:
        # Without the driver's own transactions, which leave DDL out; then one that holds the write lock.
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        async with connection.begin():
            await _wait_for(lambda: _try_begin(connection))
            yield connection


async def _try_begin(connection: AsyncConnection) -> bool:
    raw = (await connection.get_raw_connection()).driver_connection
    assert raw is not None
    if raw.in_transaction:  # a listener of the engine's has begun one, without the lock
        await raw.rollback()
    try:
        await raw.execute_fetchall("BEGIN IMMEDIATE")
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorname", "").startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            return False
        raise
    return True


async def _wait_for(attempt: Callable[[], Awaitable[bool]]) -> None:
    deadline = anyio.current_time() + PATIENCE
    pause = _FIRST_PAUSE
    while not await attempt():
        if pause == _FIRST_PAUSE:
            logger.info("another process is migrating this database; waiting for it")
        if anyio.current_time() >= deadline:
            raise TransientError("another process has held the migration's lock for an hour; see if it hangs")
        await anyio.sleep(pause)
        pause = min(pause * 2, _LONGEST_PAUSE)
