"""The two drivers' connections, as one Protocol. Statements run on them, below SQLAlchemy."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Protocol

import aiosqlite
import anyio
import asyncpg

from forebay.database.sql.statement import Statement

# A statement without an answer for so long makes somebody look whether its connection is still there. Seconds.
SILENCE = 5.0


class Driver(Protocol):
    """One connection of the driver's own."""

    info: dict[Any, Any]  # what is known of the connection, for as long as it lives
    raw: Any  # as the driver has it
    met: bool  # whether its server is known to have what this process has written

    @property
    def closed(self) -> bool:
        """Whether the database has ended it."""

    @property
    def lived_at(self) -> float:
        """When it was opened, or was asked last what it has answered; on the monotonic clock."""

    @property
    def asked_at(self) -> float:
        """When it was asked last."""

    async def fetch(self, statement: Statement, parameters: Mapping[str, Any]) -> list[Any]:
        """The statement's rows."""

    def transaction(self) -> Any:
        """An asynchronous context that commits at its end, or rolls back."""

    def terminate(self) -> None:
        """End it at once, without a word to the database. What runs on it fails."""


class Suspects(Protocol):
    """Who is told of statements that have no answer."""

    def suspect(self, driver: AsyncpgDriver, asked: asyncio.TimerHandle) -> None:
        """`asked` is cancelled when the answer comes."""


class AsyncpgDriver:
    """A connection to PostgreSQL."""

    def __init__(
        self,
        connection: asyncpg.Connection[Any],
        info: dict[Any, Any],
        suspects: Suspects,
        opened_at: float,
        old_at: float,
    ) -> None:
        self.info = info
        self.raw = connection
        self.met = False
        self.lived_at = self.asked_at = opened_at
        self.old_at = old_at  # when it is to be replaced
        self._suspects = suspects
        self._loop = asyncio.get_running_loop()

    @property
    def closed(self) -> bool:
        """See `Driver`."""
        return self.raw.is_closed()

    async def fetch(self, statement: Statement, parameters: Mapping[str, Any]) -> list[Any]:
        """See `Driver`."""
        self.asked_at = asked_at = time.monotonic()
        asked = self._asked = self._loop.call_later(SILENCE, self._hears_nothing)
        try:
            rows = await self.raw.fetch(statement.sql, *statement.arguments(parameters))
        finally:
            asked.cancel()
        self.lived_at = asked_at
        return rows

    def _hears_nothing(self) -> None:
        self._suspects.suspect(self, self._asked)

    def transaction(self) -> Any:
        """See `Driver`."""
        return self.raw.transaction()

    def terminate(self) -> None:
        """See `Driver`."""
        self.raw.terminate()


class AiosqliteDriver:
    """A connection to a SQLite file."""

    closed = False  # a file does not hang up
    met = True
    lived_at = asked_at = float("inf")

    def __init__(self, connection: aiosqlite.Connection, info: dict[Any, Any]) -> None:
        self.info = info
        self.raw = connection

    async def fetch(self, statement: Statement, parameters: Mapping[str, Any]) -> list[Any]:
        """See `Driver`."""
        try:
            return list(await self.raw.execute_fetchall(statement.sql, statement.arguments(parameters)))
        except asyncio.CancelledError:
            await self.raw.interrupt()  # or its thread would go on with it, for nobody
            raise

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        """See `Driver`."""
        # IMMEDIATE takes the write lock at once, where waiting for it is allowed.
        await self.raw.execute_fetchall("BEGIN IMMEDIATE")
        try:
            yield
            await self.raw.commit()
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.raw.rollback()
            raise

    def terminate(self) -> None:
        """See `Driver`. A file needs no ending."""
