"""The database: its connections, a batch, a read. The one place that knows the drivers.

SQLAlchemy opens and pools the connections; the compiled statements run on the driver's own connection, which
costs half as much a statement. Every driver error leaves here as one of `forebay.errors`.
"""

from __future__ import annotations

import logging
import sqlite3
import ssl
import time
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from itertools import groupby
from typing import Any, NamedTuple, Protocol, cast
from weakref import WeakSet

import aiosqlite
import anyio
import anyio.to_thread
import asyncpg
import orjson
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, StaticPool

from forebay import migrations, retry
from forebay.changes import Change, Delete, Upsert
from forebay.dialects import SQLITE_FUNCTIONS
from forebay.errors import (
    AccessError,
    DatabaseError,
    ForebayError,
    RowError,
    SchemaError,
    SettingsError,
    StatementError,
    TransientError,
)
from forebay.settings import Settings
from forebay.statements import Statement, Statements, documents
from forebay.urls import in_memory, is_postgres, parse_url, tls_context

logger = logging.getLogger("forebay.store")

# Short, since nothing can end SQLite's waiting for a lock: not a close either. The writer tries again.
_BUSY_TIMEOUT_MS = 2000
# A change that comes later than this, in a journal or as a dead letter, brings its deleted thread back. 90 days.
_TOMBSTONES_KEPT_US = 90 * 24 * 3600 * 1_000_000


class Checkpoint(NamedTuple):
    """How far a journal is in the database."""

    journal_id: str
    applied_seq: int


class Driver(Protocol):
    """One connection of the driver's own."""

    @property
    def closed(self) -> bool:
        """Whether the database has ended it."""

    async def fetch(self, statement: Statement, parameters: Mapping[str, Any]) -> list[Any]:
        """The statement's rows."""

    def transaction(self) -> Any:
        """An asynchronous context that commits at its end, or rolls back."""


class Store:
    """A database of either kind, reached with a bounded number of connections.

    `connect_args` go to the driver. Raises SettingsError for a URL that can't be used.
    """

    def __init__(
        self,
        url: str | None,
        settings: Settings,
        *,
        connect_args: Mapping[str, Any] | None = None,
        ssl_require: bool = False,
    ) -> None:
        self.url, from_url = parse_url(url)
        self._settings = settings
        self._postgres = is_postgres(self.url)
        arguments = {**from_url, **(connect_args or {})}
        if ssl_require:
            if not self._postgres:
                raise SettingsError("ssl_require: a SQLite file has no connection to secure")
            arguments["ssl"] = tls_context(verify=settings.tls_verify)
        self.engine = self._create_engine(arguments)
        self.statements = Statements(self.engine.dialect)
        self._exclusive = anyio.Lock() if in_memory(self.url) else None
        self._preparing = anyio.Lock()
        self._prepared = False
        self._writer: AsyncConnection | None = None
        self._files: WeakSet[Any] = WeakSet()

    def __repr__(self) -> str:
        return f"<Store {self.location}>"

    @property
    def location(self) -> str:
        """Where the database is, without the password."""
        return self.url.set(drivername=self.url.get_backend_name(), query={}).render_as_string(
            hide_password=True
        )

    @property
    def in_memory(self) -> bool:
        """Whether the database ends with the process."""
        return in_memory(self.url)

    def valid_id(self, key: str) -> bool:
        """Whether a row could have this id; the PostgreSQL tables take UUIDs only."""
        return _is_uuid(key) if self._postgres else "\x00" not in key

    def _create_engine(self, arguments: dict[str, Any]) -> AsyncEngine:
        if in_memory(self.url):
            engine = create_async_engine(self.url, connect_args=arguments, poolclass=StaticPool)
        else:
            if self._postgres:
                arguments.setdefault("timeout", self._settings.connect_timeout)
            engine = create_async_engine(
                self.url,
                connect_args=arguments,
                poolclass=AsyncAdaptedQueuePool,  # early releases of SQLAlchemy 2.0 give SQLite none
                pool_size=self._settings.pool_size,
                max_overflow=0,
                pool_timeout=self._settings.connect_timeout,
            )
        if not self._postgres:
            sa.event.listen(engine.sync_engine, "connect", self._prepare_sqlite)
        return engine

    def _prepare_sqlite(self, connection: Any, _record: Any) -> None:
        self._files.add(connection.driver_connection)
        _prepare_sqlite(connection)

    async def prepare(self) -> None:
        """Make sure once that the tables are forebay's, migrating them if the settings say so.

        Raises SchemaError when they are not, TransientError or AccessError when that can't be told.
        """
        if self._prepared:
            return
        async with self._preparing:
            if not self._prepared:
                with _translated(self.location, sends_rows=False):
                    await self._check_schema()
                self._prepared = True

    async def _open_file(self) -> None:
        """Fail here where a SQLite file can't be opened: aiosqlite's thread would outlive its event loop."""
        if not self._postgres and not in_memory(self.url):
            await anyio.to_thread.run_sync(_open_and_close, self.url)

    async def _check_schema(self) -> None:
        await self._open_file()
        automatic = self._settings.auto_migrate
        if automatic or (automatic is None and not self._postgres):
            await migrations.upgrade(self.engine)
        elif not await migrations.is_current(self.engine):
            raise SchemaError(
                f"the tables of {self.location} are not forebay's yet: run `forebay migrate`,"
                " or set FOREBAY_AUTO_MIGRATE=true"
            )

    async def migrate(self) -> list[str]:
        """Bring the tables to forebay's; what was done, a line each. Raises a DatabaseError."""
        with _translated(self.location, sends_rows=False):
            await self._open_file()
            return await migrations.upgrade(self.engine)

    async def migration_plan(self) -> str:
        """The SQL that `migrate` would run. Raises a DatabaseError."""
        with _translated(self.location, sends_rows=False):
            await self._open_file()
            return await migrations.plan(self.engine)

    @contextmanager
    def _rechecking(self) -> Iterator[None]:
        """Look at the tables again after somebody has changed them, so that a migration mends it."""
        try:
            yield
        except SchemaError:
            self._prepared = False
            raise

    async def read(self, statement: Statement, **parameters: Any) -> Any:
        """Run a statement that returns one JSON document, and parse it. None when there is no row."""
        await self.prepare()
        return await self._one_document(statement, parameters)

    async def write(self, statement: Statement, **parameters: Any) -> Any:
        """Run one statement in a transaction of its own; its JSON document, as in `read`."""
        await self.prepare()
        # PostgreSQL's single statement is a transaction; SQLite's driver would leave one open.
        return await self._one_document(statement, parameters, in_transaction=not self._postgres)

    async def _one_document(
        self, statement: Statement, parameters: Mapping[str, Any], *, in_transaction: bool = False
    ) -> Any:
        with (
            self._rechecking(),
            _translated(self.location),
            anyio.fail_after(self._settings.statement_timeout),
        ):
            async with self._reader() as driver:
                if in_transaction:
                    async with driver.transaction():
                        rows = await driver.fetch(statement, parameters)
                else:
                    rows = await driver.fetch(statement, parameters)
        return orjson.loads(rows[0][0]) if rows else None

    async def execute_sql(self, query: str, parameters: Mapping[str, Any]) -> list[dict[str, Any]] | int:
        """Run a statement of the caller's own: its rows, or how many it changed.

        Raises a DatabaseError; StatementError when the statement itself is wrong.
        """
        await self.prepare()
        with _translated(self.location, own_statement=True):
            async with self._shared(), self.engine.begin() as connection:
                result = await connection.execute(sa.text(query), dict(parameters))
                if result.returns_rows:
                    return [dict(row) for row in result.mappings()]
                return result.rowcount

    async def apply(
        self, changes: Sequence[Change], checkpoint: Checkpoint | None = None, *, late: bool = False
    ) -> frozenset[str]:
        """Write changes in their order, all in one transaction or none, and the journal's checkpoint with them.

        Nothing is written when the checkpoint was reached before: then this has happened already.
        `late`: rows may have been written since the changes were made; what is newer stays. What belongs to a
        thread that was deleted is left out; returns the ids of those threads. Raises a DatabaseError.
        """
        await self.prepare()
        with (
            self._rechecking(),
            _translated(self.location),
            anyio.fail_after(self._settings.statement_timeout),
        ):
            async with self._shared(), self._writing() as driver:
                if self._postgres and not any(isinstance(change, Delete) for change in changes):
                    return await self._upsert_run(
                        driver, cast("Sequence[Upsert]", changes), late=late, checkpoint=checkpoint
                    )
                async with driver.transaction():
                    # First, since it holds back the same batch of another connection until this one is in.
                    if checkpoint is not None and not await driver.fetch(
                        self.statements.checkpoint, checkpoint._asdict()
                    ):
                        return frozenset()
                    return await self._apply_runs(driver, changes, late=late)

    async def applied_seq(self, journal_id: str) -> int:
        """Up to where a journal is in the database; 0 for nothing of it. Raises a DatabaseError."""
        found = await self.read(self.statements.applied_seq, journal_id=journal_id)
        return int(found["applied_seq"]) if found else 0

    async def _apply_runs(self, driver: Driver, changes: Sequence[Change], *, late: bool) -> frozenset[str]:
        dead: frozenset[str] = frozenset()
        for is_upsert, run in groupby(changes, lambda change: isinstance(change, Upsert)):
            if is_upsert:
                dead |= await self._upsert_run(driver, cast("list[Upsert]", list(run)), late=late)
            else:
                for change in run:
                    await self._delete(driver, change)
        return dead

    async def forget_journal(self, journal_id: str) -> None:
        """Delete the checkpoint of a journal that is gone. Raises a DatabaseError."""
        await self.write(self.statements.forget_journal, journal_id=journal_id)

    async def _upsert_run(
        self, driver: Driver, upserts: Sequence[Upsert], *, late: bool, checkpoint: Checkpoint | None = None
    ) -> frozenset[str]:
        if self._postgres:
            batch = documents(upserts)
            statement = self.statements.batch(
                partial=batch.partial, late=late, checkpoint=checkpoint is not None
            )
            parameters = {**batch.parameters, **(checkpoint._asdict() if checkpoint else {})}
            dead = {uuid.UUID(row[0]) for row in await driver.fetch(statement, parameters)}
            # As the changes spell them, which need not be PostgreSQL's way.
            ids = {upsert.thread_id for upsert in upserts if upsert.thread_id} if dead else ()
            return frozenset(thread_id for thread_id in ids if uuid.UUID(thread_id) in dead)
        gone = await self._dead_threads(driver, upserts)
        batch = documents([upsert for upsert in upserts if upsert.thread_id not in gone])
        for table in batch.tables:
            await driver.fetch(
                self.statements.upsert(table, partial=batch.partial, late=late), batch.parameters
            )
        return gone

    async def _dead_threads(self, driver: Driver, upserts: Sequence[Upsert]) -> frozenset[str]:
        ids = list({upsert.thread_id for upsert in upserts if upsert.thread_id is not None})
        rows = await driver.fetch(self.statements.dead_threads, {"ids": orjson.dumps(ids).decode()})
        return frozenset(row[0] for row in rows)

    async def _delete(self, driver: Driver, change: Change) -> None:
        now = time.time_ns() // 1000
        parameters = {"id": change.key, "now_us": now, "old_us": now - _TOMBSTONES_KEPT_US}
        for statement in self.statements.delete(change.table):
            await driver.fetch(statement, parameters)

    async def close(self) -> None:
        """Close every connection."""
        await self._drop_writer()
        await self.engine.dispose()

    def forget_connections(self) -> None:
        """Drop connections whose event loop is gone; PostgreSQL's can't be closed any more."""
        for connection in self._files:
            if hasattr(connection, "stop"):  # since aiosqlite 0.22; it needs no event loop
                connection.stop()
        if self._writer is not None and self._writer.sync_connection is not None:
            self._writer.sync_connection.detach()  # or the pool would try to close it
        self._writer = None
        self.engine.sync_engine.dispose(close=False)

    @asynccontextmanager
    async def _shared(self) -> AsyncIterator[None]:
        """One at a time where all share one connection."""
        if self._exclusive is None:
            yield
        else:
            async with self._exclusive:
                yield

    @asynccontextmanager
    async def _reader(self) -> AsyncIterator[Driver]:
        async with self._shared(), self._connected() as connection:
            driver = await self._driver(connection)
            if driver.closed:  # the database has ended it while it lay in the pool
                await connection.invalidate()
                driver = await self._driver(connection)
            try:
                yield driver
            except BaseException:
                # A cancelled or failed statement may still be on its way; its connection is not used again.
                if self._postgres:
                    with anyio.CancelScope(shield=True):
                        await connection.invalidate()
                raise

    async def _connect(self) -> AsyncConnection:
        """A connection. What goes wrong here is never a row's fault."""
        try:
            return await self.engine.connect()
        except Exception as error:
            raise _translate(error, self.location, sends_rows=False) from None

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[AsyncConnection]:
        connection = await self._connect()
        try:
            yield connection
        finally:
            with anyio.CancelScope(shield=True):
                await connection.close()

    @asynccontextmanager
    async def _writing(self) -> AsyncIterator[Driver]:
        if self._writer is None:
            self._writer = await self._connect()
        try:
            yield await self._driver(self._writer)
        except (asyncpg.PostgresError, sqlite3.Error):
            raise  # it was answered and rolled back, so the connection is good, or says itself that it is lost
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._drop_writer()
            raise

    async def _drop_writer(self) -> None:
        if self._writer is not None:
            writer, self._writer = self._writer, None
            if self._postgres:
                await writer.invalidate()
            await writer.close()

    async def _driver(self, connection: AsyncConnection) -> Driver:
        raw = (await connection.get_raw_connection()).driver_connection
        return _Asyncpg(raw) if self._postgres else _Aiosqlite(raw)


class _Asyncpg:
    def __init__(self, connection: Any) -> None:
        self._connection: asyncpg.Connection[Any] = connection

    @property
    def closed(self) -> bool:
        return self._connection.is_closed()

    async def fetch(self, statement: Statement, parameters: Mapping[str, Any]) -> list[Any]:
        return await self._connection.fetch(statement.sql, *statement.arguments(parameters))

    def transaction(self) -> Any:
        return self._connection.transaction()


class _Aiosqlite:
    def __init__(self, connection: Any) -> None:
        self._connection: aiosqlite.Connection = connection

    @property
    def closed(self) -> bool:
        return False  # a file does not hang up

    async def fetch(self, statement: Statement, parameters: Mapping[str, Any]) -> list[Any]:
        return list(await self._connection.execute_fetchall(statement.sql, statement.arguments(parameters)))

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


def _open_and_close(url: sa.URL) -> None:
    engine = sa.create_engine(url.set(drivername="sqlite"))
    try:
        with engine.connect() as connection:
            connection.execute(sa.text("PRAGMA schema_version"))
    finally:
        engine.dispose()


def _prepare_sqlite(connection: Any) -> None:
    cursor = connection.cursor()
    # FULL syncs each commit, as PostgreSQL does.
    for pragma in (f"busy_timeout = {_BUSY_TIMEOUT_MS}", "synchronous = FULL"):
        cursor.execute(f"PRAGMA {pragma}")
    try:
        cursor.execute("PRAGMA journal_mode = WAL")  # lets readers go on while a batch commits
    except sqlite3.OperationalError as error:
        # The mode is the file's. While another connection writes, or sets it, this one must do without waiting.
        if getattr(error, "sqlite_errorname", "") not in ("SQLITE_BUSY", "SQLITE_LOCKED"):
            raise
    cursor.close()
    for name, count, function in SQLITE_FUNCTIONS:
        connection.create_function(name, count, function, deterministic=True)


def _is_uuid(text: str) -> bool:
    digits = text.replace("-", "").strip("{}")
    if len(digits) != 32:
        return False
    try:
        int(digits, 16)
    except ValueError:
        return False
    return "_" not in digits and digits.isalnum()


@contextmanager
def _translated(location: str, *, own_statement: bool = False, sends_rows: bool = True) -> Iterator[None]:
    """Every driver's error as one of forebay's, without its cause, whose text may quote a row."""
    try:
        yield
    except ForebayError:
        raise
    except Exception as error:
        raise _translate(error, location, own_statement=own_statement, sends_rows=sends_rows) from None


def _translate(
    error: Exception, location: str, *, own_statement: bool = False, sends_rows: bool = True
) -> DatabaseError:
    for cause in _causes(error):
        if isinstance(cause, asyncpg.PostgresError) and cause.sqlstate:
            return _located(retry.from_sqlstate(cause.sqlstate), location, cause if own_statement else None)
        if isinstance(cause, sqlite3.Error):
            code = getattr(cause, "sqlite_errorname", None) or "SQLITE_MISUSE"
            known = retry.from_sqlite(code, str(cause))
            if own_statement and code == "SQLITE_ERROR" and isinstance(known, RowError):
                known = StatementError("SQLite does not understand the statement", sqlstate=code)
            return _located(known, location, cause if own_statement else None)
        if isinstance(cause, ssl.SSLError):
            return AccessError(f"TLS with {location} failed; check the certificate, or FOREBAY_TLS_VERIFY")
        if isinstance(cause, sa.exc.TimeoutError):
            return TransientError("every connection is in use; raise FOREBAY_POOL_SIZE")
        if isinstance(cause, asyncpg.InternalClientError):  # its session was ended in the middle of an answer
            return TransientError(f"the driver lost track of {location}")
        if isinstance(cause, OSError | TimeoutError | EOFError | asyncpg.InterfaceError):
            return TransientError(f"{location} can't be reached ({type(cause).__name__})")
    if own_statement:
        return StatementError(f"the statement or its parameters are wrong ({type(error).__name__})")
    if not sends_rows:  # or good rows would be dead letters for what went wrong before them
        return TransientError(f"{location} can't be reached ({type(error).__name__})")
    return RowError(f"a row can't be sent to the database ({type(error).__name__})")


def _causes(error: BaseException) -> Iterable[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        original = getattr(seen, "orig", None)
        if isinstance(original, BaseException):
            yield from _causes(original)
        yield seen
        seen = seen.__cause__


def _located(error: DatabaseError, location: str, cause: BaseException | None) -> DatabaseError:
    """Where the database is, for what is about it; what the caller's own statement did wrong, for that."""
    if isinstance(error, TransientError | AccessError | SchemaError):
        return type(error)(f"{error} [{location}]", sqlstate=error.sqlstate)
    if cause is not None and isinstance(error, StatementError):
        # Errors of this class quote names of the statement, never values.
        return StatementError(f"{error}: {str(cause).splitlines()[0]}", sqlstate=error.sqlstate)
    return error
