"""The two drivers: their connections, as one Protocol, and their errors, as forebay's."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Protocol

import aiosqlite
import anyio
import asyncpg
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from forebay.database import error_codes
from forebay.database.sql.sqlite import SQLITE_FUNCTIONS
from forebay.database.sql.statement import Statement
from forebay.errors import (
    AccessError,
    DatabaseError,
    ForebayError,
    RowError,
    SchemaError,
    StatementError,
    TransientError,
)

# Short, since nothing can end SQLite's waiting for a lock: not a close either. The writer tries again.
BUSY_TIMEOUT_MS = 2000
IN_USE = "every connection is in use; raise FOREBAY_POOL_SIZE"


class Driver(Protocol):
    """One connection of the driver's own."""

    info: dict[Any, Any]  # what is known of the connection, for as long as it lives

    @property
    def closed(self) -> bool:
        """Whether the database has ended it."""

    async def fetch(self, statement: Statement, parameters: Mapping[str, Any]) -> list[Any]:
        """The statement's rows."""

    def transaction(self) -> Any:
        """An asynchronous context that commits at its end, or rolls back."""


async def connect(engine: AsyncEngine, location: str) -> AsyncConnection:
    """A connection. What goes wrong here is never a row's fault."""
    try:
        return await engine.connect()
    except Exception as error:
        raise _translate(error, location, sends_rows=False) from None


async def driver_of(connection: AsyncConnection) -> Driver:
    """The driver's own connection below SQLAlchemy's."""
    sync = connection.sync_connection
    if sync is not None and not sync.closed and not sync.invalidated:
        raw = sync.connection.driver_connection
    else:  # it has to be opened again
        raw = (await connection.get_raw_connection()).driver_connection
    if connection.dialect.name == "postgresql":
        return _Asyncpg(raw, connection.info)
    return _Aiosqlite(raw, connection.info)


class Connections:
    """At most `most` connections of an engine, lent in the order in which they were asked for.

    One is kept at hand: fetching it from the pool costs half as much as a read. While somebody waits, a connection
    goes straight from hand to hand: each turn of a busy event loop in which it lies idle is one in which nobody reads.
    """

    def __init__(self, engine: AsyncEngine, location: str, most: int, patience: float) -> None:
        self.engine = engine
        self._location = location
        self._most = most
        self._patience = patience  # seconds that somebody waits for a connection
        self.lent = 0  # those that are being opened included
        self._spare: AsyncConnection | None = None
        self._waiting: deque[asyncio.Future[AsyncConnection | None]] = deque()
        self._closed = False

    async def take(self) -> AsyncConnection:
        """A connection that is the caller's until it gives or drops it. Raises a DatabaseError."""
        if self.lent >= self._most:
            return await self._handed_over() or await self._opened()
        self.lent += 1
        if self._spare is not None:
            connection, self._spare = self._spare, None
            return connection
        return await self._opened()

    async def give(self, connection: AsyncConnection) -> None:
        """Give back a connection that nothing runs on any more."""
        if self._hand_over(connection):
            return
        self.lent -= 1
        if self._spare is None and not self._closed:
            self._spare = connection
        else:
            await connection.close()

    async def drop(self, connection: AsyncConnection) -> None:
        """Give back a connection that may be of no use any more."""
        try:
            await connection.close()
        finally:
            self._leave()

    async def _opened(self) -> AsyncConnection:
        try:
            return await connect(self.engine, self._location)
        except BaseException:
            self._leave()
            raise

    async def _handed_over(self) -> AsyncConnection | None:
        """What the next one gives back: a connection, or the room to open one."""
        handed: asyncio.Future[AsyncConnection | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(handed)
        try:
            with anyio.fail_after(self._patience):
                return await handed
        except BaseException as error:
            if handed.cancelled() or not handed.done():
                self._waiting.remove(handed)
            elif (connection := handed.result()) is not None:
                with anyio.CancelScope(shield=True):
                    await self.give(connection)
            else:
                self._leave()
            if isinstance(error, TimeoutError):
                raise TransientError(IN_USE) from None
            raise

    def _hand_over(self, connection: AsyncConnection | None) -> bool:
        for handed in self._waiting:
            if not handed.done():
                self._waiting.remove(handed)
                handed.set_result(connection)
                return True
        return False

    def _leave(self) -> None:
        if not self._hand_over(None):
            self.lent -= 1

    async def driver(self, connection: AsyncConnection) -> Driver:
        """Its driver's own, or another one where the database has ended it meanwhile. Raises a DatabaseError."""
        try:
            driver = await driver_of(connection)
            while driver.closed:  # its place is taken by one of the pool's, which may have ended with it
                await connection.invalidate()
                driver = await driver_of(connection)
        except Exception as error:
            raise _translate(error, self._location, sends_rows=False) from None
        return driver

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[AsyncConnection]:
        """A connection as SQLAlchemy has it."""
        connection = await self.take()
        try:
            yield connection
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.drop(connection)
            raise
        await self.give(connection)

    @asynccontextmanager
    async def reader(self) -> AsyncIterator[Driver]:
        """A connection for statements that need no transaction."""
        async with self.connection() as connection:
            try:
                yield await self.driver(connection)
            except BaseException:
                # A cancelled or failed statement may still be on its way; its connection is not used again.
                if connection.dialect.name == "postgresql":
                    with anyio.CancelScope(shield=True):
                        await connection.invalidate()
                raise

    async def release(self) -> None:
        """Let the engine have the one at hand, for those who ask it for connections themselves."""
        if self._spare is not None:
            spare, self._spare = self._spare, None
            await spare.close()

    async def close(self) -> None:
        """Close every connection."""
        self._closed = True
        await self.release()
        await self.engine.dispose()

    def renewed(self) -> Connections:
        """For another event loop: the connections of this one's are dropped, whatever holds them."""
        if self._spare is not None:
            forget(self._spare)
            self._spare = None
        self.engine.sync_engine.dispose(close=False)
        return Connections(self.engine, self._location, self._most, self._patience)


def forget(connection: AsyncConnection) -> None:
    """Keep the pool from closing a connection whose event loop is gone."""
    if connection.sync_connection is not None:
        connection.sync_connection.detach()


class _Asyncpg:
    def __init__(self, connection: Any, info: dict[Any, Any]) -> None:
        self.info = info
        self._connection: asyncpg.Connection[Any] = connection

    @property
    def closed(self) -> bool:
        return self._connection.is_closed()

    async def fetch(self, statement: Statement, parameters: Mapping[str, Any]) -> list[Any]:
        return await self._connection.fetch(statement.sql, *statement.arguments(parameters))

    def transaction(self) -> Any:
        return self._connection.transaction()


class _Aiosqlite:
    def __init__(self, connection: Any, info: dict[Any, Any]) -> None:
        self.info = info
        self._connection: aiosqlite.Connection = connection

    @property
    def closed(self) -> bool:
        return False  # a file does not hang up

    async def fetch(self, statement: Statement, parameters: Mapping[str, Any]) -> list[Any]:
        try:
            return list(
                await self._connection.execute_fetchall(statement.sql, statement.arguments(parameters))
            )
        except asyncio.CancelledError:
            await self._connection.interrupt()  # or its thread would go on with it, for nobody
            raise

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        # IMMEDIATE takes the write lock at once, where waiting for it is allowed.
        await self._connection.execute_fetchall("BEGIN IMMEDIATE")
        try:
            yield
            await self._connection.commit()
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._connection.rollback()
            raise


def open_file(url: sa.URL) -> None:
    """Open a SQLite file, and close it again. Raises SQLAlchemy's errors."""
    engine = sa.create_engine(url.set(drivername="sqlite"))
    try:
        with engine.connect() as connection:
            connection.execute(sa.text("PRAGMA schema_version"))
    finally:
        engine.dispose()


def prepare_sqlite(connection: Any) -> None:
    """Set a new connection to a SQLite file up: its pragmas and forebay's functions."""
    cursor = connection.cursor()
    # FULL syncs each commit, as PostgreSQL does.
    for pragma in (f"busy_timeout = {BUSY_TIMEOUT_MS}", "synchronous = FULL"):
        cursor.execute(f"PRAGMA {pragma}")
    try:
        cursor.execute("PRAGMA journal_mode = WAL")  # lets readers go on while a batch commits
    except sqlite3.OperationalError as error:
        # The mode is the file's. While another connection writes, or sets it, this one must do without waiting.
        if not is_held(error):
            raise
    cursor.close()
    for name, count, function in SQLITE_FUNCTIONS:
        connection.create_function(name, count, function, deterministic=True)


def is_held(error: sqlite3.Error) -> bool:
    """Whether it says that another connection holds the SQLite file, or a table in it."""
    return getattr(error, "sqlite_errorname", "").startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))


@contextmanager
def translated(location: str, *, own_statement: bool = False, sends_rows: bool = True) -> Iterator[None]:
    """Every driver's error as one of forebay's, without its cause, whose text may quote a row."""
    try:
        yield
    except DatabaseError as error:  # a migration's, which does not know where it is
        error.location = error.location or location
        raise
    except ForebayError:
        raise
    except Exception as error:
        raise _translate(error, location, own_statement=own_statement, sends_rows=sends_rows) from None


def _translate(
    error: Exception, location: str, *, own_statement: bool = False, sends_rows: bool = True
) -> DatabaseError:
    translation = _translation(error, own_statement=own_statement, sends_rows=sends_rows)
    if isinstance(
        translation, TransientError | AccessError | SchemaError
    ):  # it is about the database, not a row
        translation.location = location
    return translation


def _translation(error: Exception, *, own_statement: bool, sends_rows: bool) -> DatabaseError:
    for cause in _causes(error):
        if isinstance(cause, asyncpg.PostgresError) and cause.sqlstate:
            known = _by_name(_by_a_row(cause) or error_codes.from_sqlstate(cause.sqlstate), cause)
            return _of_its_own(known, cause) if own_statement else known
        if isinstance(cause, sqlite3.Error):
            code = getattr(cause, "sqlite_errorname", None) or "SQLITE_MISUSE"
            known = error_codes.from_sqlite(code, str(cause))
            if own_statement and code == "SQLITE_ERROR" and isinstance(known, RowError):
                known = StatementError("SQLite does not understand the statement", sqlstate=code)
            return _of_its_own(known, cause) if own_statement else known
        if isinstance(cause, sa.exc.TimeoutError):
            return TransientError(IN_USE)
        if isinstance(cause, asyncpg.InternalClientError):  # its session was ended in the middle of an answer
            return TransientError("the driver lost track of the database's answers")
        if known_of_network := error_codes.from_network(cause):
            if not sends_rows:
                known_of_network.sqlstate = None  # nothing that was written took too long
            return known_of_network
    if own_statement:
        return StatementError(f"the statement or its parameters are wrong ({type(error).__name__})")
    if not sends_rows:  # or good rows would be dead letters for what went wrong before them
        return TransientError(f"the database can't be reached ({type(error).__name__})")
    return RowError(f"a row can't be sent to the database ({type(error).__name__})")


def _by_name(known: DatabaseError, cause: asyncpg.PostgresError) -> DatabaseError:
    """With the constraint that refuses the row, which PostgreSQL names apart from the text that quotes values."""
    name = getattr(cause, "constraint_name", None)
    if not name or not isinstance(known, RowError):
        return known
    return RowError(f"{known}, constraint {name}", sqlstate=known.sqlstate)


# What in PostgreSQL says no to a row, whatever the SQLSTATE: the functions of its source that an error comes from.
_REFUSING = {
    "exec_stmt_raise": "a trigger refuses the row",
    "ExecWithCheckOptions": "a row-level security policy or a view's check refuses the row",
}


def _by_a_row(error: asyncpg.PostgresError) -> RowError | None:
    """The refusal of a row that its SQLSTATE does not tell: a trigger may raise any."""
    reason = _REFUSING.get(getattr(error, "server_source_function", None) or "")
    return RowError(f"{reason} (SQLSTATE {error.sqlstate})", sqlstate=error.sqlstate) if reason else None


def _causes(error: BaseException) -> Iterable[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        original = getattr(seen, "orig", None)
        if isinstance(original, BaseException):
            yield from _causes(original)
        yield seen
        seen = seen.__cause__


def _of_its_own(error: DatabaseError, cause: BaseException) -> DatabaseError:
    """With what is wrong in the caller's own statement."""
    if isinstance(error, StatementError):
        # Errors of this class quote names of the statement, never values.
        return StatementError(f"{error}: {str(cause).splitlines()[0]}", sqlstate=error.sqlstate)
    return error
