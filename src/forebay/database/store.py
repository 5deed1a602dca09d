"""The database: its connections, a batch, a read.

SQLAlchemy opens and pools the connections; the compiled statements run on the driver's own connection, which
costs half as much a statement. Every driver error leaves here as one of `forebay.errors`.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, cast

import anyio
import anyio.to_thread
import asyncpg
import orjson
import sqlalchemy as sa
from typing_extensions import override

from forebay.database import error_codes, migrations
from forebay.database.bookmarks import Bookmarks
from forebay.database.checkpoint import Checkpoint, CheckpointMoved, Position
from forebay.database.connections.drivers import Driver
from forebay.database.connections.endpoint import Endpoint, for_standby, merged, patience_of
from forebay.database.connections.pool import Connections, Held, forget
from forebay.database.connections.sqlite_file import BUSY_TIMEOUT_MS, is_held, open_file
from forebay.database.owners import Owned, name_id, with_owners, without_deleted_claimants
from forebay.database.queries import Row, rows_of
from forebay.database.replica import Replica
from forebay.database.sql.batch_parameters import Documents, documents
from forebay.database.sql.claims import claim_parameters, is_claim
from forebay.database.sql.deletes import FOREVER
from forebay.database.sql.dialect import MOVED, SEEN
from forebay.database.sql.statement import Statement
from forebay.database.sql.statements import statements_of
from forebay.database.sql.step_threads import put_into_threads, step_threads_parameters
from forebay.database.tls import tls_context
from forebay.database.translation import translated
from forebay.database.urls import in_memory, is_postgres, label_of, location_of, parse_url
from forebay.errors import RowError, SchemaError, SettingsError, TransientError
from forebay.model import changes, schema
from forebay.model.changes import Change, Delete, Upsert, lacks_thread, moment_of
from forebay.model.ids import Ids
from forebay.model.moments import Stored
from forebay.primitives import threads
from forebay.settings import Settings

logger = logging.getLogger("forebay.store")

# A change that comes later than this, in a journal or as a dead letter, brings its deleted thread back. 90 days.
_TOMBSTONES_KEPT_US = 90 * 24 * 3600 * 1_000_000


_OWNER_KEY = sa.text(
    "SELECT EXISTS (SELECT FROM pg_constraint WHERE contype = 'f'"
    " AND conrelid = to_regclass('threads') AND confrelid = to_regclass('users'))"
)
# From here on an answer is parsed beside the event loop: it takes milliseconds.
_MANY_ROWS, _LONG_DOCUMENT = 500, 500_000
_LONGEST_STATEMENT = 64 * 1024  # bytes
_LEAST_TIME = 1.0  # seconds; a smaller share of the time limit would tell nothing
# A batch whose threads others have changed while it waited for them looks again, at most so often at once.
_LOOKS = 20
# Threads that were deleted so long ago at most are looked for: are they back? An hour.
_GHOSTS_OF_US = 3600 * 1_000_000


class LeftOut(NamedTuple):
    """The place of a change whose row was not written, and why: by a name as `deleted_thread` or `unknown_step`."""

    place: int
    reason: str


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
        self.ids = Ids(uuids=self._postgres)  # which its tables can hold
        arguments = dict(connect_args or {})
        if ssl_require:
            if not self._postgres:
                raise SettingsError("ssl_require: a SQLite file has no connection to secure")
            arguments["ssl"] = tls_context(verify=settings.tls_verify)
        arguments_here = merged(from_url, arguments)
        self.location = location_of(self.url)  # where the database is, without the password
        self.label = label_of(self.url, arguments_here)
        self.database_id: str | None = None  # the database's own, when it has been asked
        endpoint = Endpoint(self.url, arguments_here, settings, settings.pool_size)
        self.engine = endpoint.engine
        self._connections = self._share(Connections(endpoint, settings.pool_size, patience_of(settings)))
        self._bookmarks = Bookmarks()
        self.replica = self._create_replica(settings.read_url, arguments)
        self.statements = statements_of(self.engine.dialect)
        self._exclusive = anyio.Lock() if in_memory(self.url) else None
        self._preparing = anyio.Lock()
        self._prepared = False
        # Whether a thread whose owner is not there is refused: SQLite looks at no foreign key, and some have none.
        self._tells_lost_owners = self._postgres
        # A journal, and how far the database had it, as far as is known; and who is told that it has not.
        self.known: Callable[[], tuple[str, int]] = lambda: ("", 0)
        self.on_gone_back: Callable[[], None] = lambda: None
        self._writer: Held | None = None
        self._is_writing = False

    @override
    def __repr__(self) -> str:
        return f"<Store {self.location}>"

    @property
    def in_memory(self) -> bool:
        """Whether the database ends with the process."""
        return in_memory(self.url)

    def _create_replica(self, text: str | None, connect_args: Mapping[str, Any]) -> Replica | None:
        """The standby of FOREBAY_READ_URL, reached as the primary is, for the readers of the pool."""
        if not text:
            return None
        url, from_url = parse_url(text, "FOREBAY_READ_URL")
        if not (self._postgres and is_postgres(url)):
            raise SettingsError("FOREBAY_READ_URL: only a PostgreSQL database has a standby; unset it")
        most = self._settings.pool_size - 1
        endpoint = Endpoint(url, for_standby(url, from_url, connect_args), self._settings, most)
        self._bookmarks.watch(self.engine)
        return Replica(endpoint, self._settings.statement_timeout, self._bookmarks, self, most)

    async def prepare(self) -> None:
        """Make sure once that the tables are forebay's, migrating them if the settings say so.

        Raises SchemaError when they are not, TransientError or AccessError when that can't be told.
        """
        if self._prepared:
            return
        async with self._preparing:
            if not self._prepared:
                with translated(self.location, sends_rows=False):
                    try:
                        # Not in the event loop, which would stand still meanwhile.
                        await anyio.to_thread.run_sync(self.statements.compile_writes)
                        await self._check_schema()
                        async with self._questioning():
                            self.database_id = await self.ask_id()
                            self._tells_lost_owners = await self._asks_for_owners()
                    except BaseException:
                        # It may be the connection's: another role's settings, or another server behind the name.
                        self._connections.endpoint.fitness.condemn()
                        raise
                self._prepared = True

    @asynccontextmanager
    async def _questioning(self) -> AsyncIterator[None]:
        """Around a short question on a connection of SQLAlchemy's: it may take twice as long as opening that."""
        limit = min(self._settings.statement_timeout, 2 * self._settings.connect_timeout)
        async with asyncio.timeout(limit):
            yield

    async def _open_file(self) -> None:
        """Fail here where a SQLite file can't be opened: aiosqlite's thread would outlive its event loop."""
        if not self._postgres and not in_memory(self.url):
            await anyio.to_thread.run_sync(open_file, self.url)

    async def _check_schema(self) -> None:
        await self._connections.release()
        await self._open_file()
        automatic = self._settings.auto_migrate
        async with self._questioning():
            is_current = await migrations.is_current(self.engine)
        if automatic or (automatic is None and not self._postgres):
            await migrations.upgrade(self.engine)  # which may take its time
        elif not is_current:
            raise SchemaError(
                "the database's tables are not forebay's yet: run `forebay migrate`, or set FOREBAY_AUTO_MIGRATE=true"
            )

    async def ask_id(self) -> str | None:
        """The id in the tables, and which copy of them this is: a copied database or schema keeps the id.

        With it comes the time on the database's clock, which tells the moments of changes from then on.

        The server's own word for it is the same for every user and host, and behind a pooler that renames it. The
        tables stay as they are. Raises a DatabaseError, also where they are not forebay's yet.
        """
        place: sa.ColumnElement[str] = sa.literal(Path(self.url.database or "").name)
        if self._postgres:
            place = sa.func.concat(sa.func.current_database(), ".", sa.func.current_schema())
        with translated(self.location, sends_rows=False):
            async with self.engine.connect() as connection:
                now = self.statements.moment if self._postgres else sa.null()
                row = (await connection.execute(sa.select(schema.database.c.id, place, now))).first()
                if row is None:
                    return None
                if self._postgres:  # a file has no clock but the machine's
                    changes.follow(row[2])
                return f"{row[0]} {row[1]}"

    async def _asks_for_owners(self) -> bool:
        """Whether the tables have the foreign key of a thread's owner, and it is looked at."""
        if not self._postgres:
            return False
        async with self.engine.connect() as connection:
            return bool(await connection.scalar(_OWNER_KEY))

    async def own_id(self) -> str | None:
        """The database's own id and name, which it keeps under every URL; None where somebody has deleted the id.

        Raises a DatabaseError.
        """
        await self.prepare()
        return self.database_id

    async def migrate(self) -> list[str]:
        """Bring the tables to forebay's; what was done, a line each. Raises a DatabaseError."""
        with translated(self.location, sends_rows=False):
            await self._open_file()
            return await migrations.upgrade(self.engine)

    async def migration_plan(self) -> str:
        """The SQL that `migrate` would run. Raises a DatabaseError."""
        with translated(self.location, sends_rows=False):
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
        if self.replica is not None and statement.on_standby is not None:
            rows = await self.replica.fetch(statement, parameters)
            if rows is not None:
                return await _document(statement, rows)
        return await self._one_document(statement, parameters)

    async def write(self, statement: Statement, **parameters: Any) -> Any:
        """Run one statement in a transaction of its own; its JSON document, as in `read`."""
        await self.prepare()
        return await self._one_document(statement, parameters, writes=True)

    async def _one_document(
        self,
        statement: Statement,
        parameters: Mapping[str, Any],
        *,
        writes: bool = False,
    ) -> Any:
        limit = self._settings.statement_timeout
        with self._rechecking(), translated(self.location):
            if not writes and self._exclusive is None:
                meet = None if statement is self.statements.position else partial(self._meet, *self.known())
                rows = await self._connections.fetch(statement, parameters, limit, meet)
            else:
                async with self._shared(), self._connections.held(limit) as held:
                    ask = self._write if writes else _fetch
                    rows = await ask(held.driver, statement, parameters)
        return await _document(statement, rows)

    async def _meet(self, journal_id: str, seq: int, driver: Driver) -> None:
        """Whoever reads must not see less than there was: the server may be another one, which lagged behind.

        Raises TransientError where it is; what it lacks is given to it again.
        """
        if seq:
            statement = self.statements.position
            found = statement.document(await driver.fetch(statement, {"journal_id": journal_id}))
            if _position(found).seq < seq:
                self.on_gone_back()
                raise TransientError("the database has gone back; it is given again what it lacks")

    async def _write(self, driver: Driver, statement: Statement, parameters: Mapping[str, Any]) -> list[Any]:
        try:
            if self._postgres:  # a single statement is a transaction; SQLite's driver would leave one open
                return await driver.fetch(statement, parameters)
            return await self._write_once_free(driver, statement, parameters)
        finally:  # after an error it may have been committed all the same
            self._bookmarks.committed_unmarked()

    async def _write_once_free(
        self, driver: Driver, statement: Statement, parameters: Mapping[str, Any]
    ) -> list[Any]:
        """In a transaction of a SQLite file, for which writers wait in no order: the unlucky ask again.

        Raises what SQLite says of a file that others hold for all of the statement's time.
        """
        tries = self._settings.statement_timeout * 1000 // BUSY_TIMEOUT_MS
        while True:
            try:
                async with driver.transaction():
                    return await driver.fetch(statement, parameters)
            except sqlite3.OperationalError as error:
                tries -= 1
                if tries <= 0 or not is_held(error):
                    raise

    async def select(self, statement: sa.Select[Any]) -> list[Row]:
        """The rows of a query that commands make, on a connection of its own. Raises a DatabaseError."""
        await self.prepare()
        with translated(self.location, sends_rows=False):
            async with self.engine.connect() as connection:
                return await rows_of(connection, statement)

    async def execute_sql(self, query: str, parameters: Mapping[str, Any]) -> list[dict[str, Any]] | int:
        """Run a statement of the caller's own: its rows, or how many it changed.

        Raises a DatabaseError; StatementError when the statement itself is wrong.
        """
        await self.prepare()
        limit = self._settings.statement_timeout
        with translated(self.location, own_statement=True):
            async with self._shared(), self._connections.held(limit, own_statement=True) as held:
                if self._exclusive is None and not held.driver.met:
                    await self._meet(*self.known(), held.driver)
                    held.driver.met = True
                try:
                    async with held.connection.begin():
                        result = await held.connection.execute(sa.text(query), dict(parameters))
                        if result.returns_rows:
                            return [dict(row) for row in result.mappings()]
                        return result.rowcount
                finally:
                    self._bookmarks.own_ended(held.driver.info)

    async def apply(
        self,
        changes: Sequence[Change],
        checkpoint: Checkpoint | None = None,
        *,
        late: bool = False,
        share: float = 1.0,
        apart: bool = False,
    ) -> frozenset[str | LeftOut]:
        """Write changes in their order, all in one transaction or none, and the journal's checkpoint with them.

        Nothing is written where the checkpoint was reached before: then this has happened already. Raises
        CheckpointMoved where the journal stands elsewhere than the checkpoint starts from.
        `late`: rows may have been written since the changes were made; what is newer stays. What was
        deleted, or is another thread's, is left out; returns the ids of the threads that were deleted, and the rows
        that were left out. Where a thread has changed while its lock was waited for, all is looked at again.
        With a checkpoint, a lock is waited for only briefly. `share`: of the time limit, which part it may take;
        `apart`: beside the writer, on a connection of its own. A change by itself that is refused, and would have been
        left out, is left out.
        Raises a DatabaseError.
        """
        try:
            return await self._apply(changes, checkpoint, late=late, share=share, apart=apart)
        except RowError:
            alone = changes[0] if len(changes) == 1 else None
            thread_id = alone.thread_id if isinstance(alone, Upsert) else None
            if thread_id is None or not await self._is_deleted(thread_id):
                raise
            await self._apply((), checkpoint, share=share, apart=apart)
            return frozenset((thread_id, LeftOut(0, "deleted_thread")))

    async def _is_deleted(self, thread_id: str) -> bool:
        if self.ids.spell(thread_id) is None:
            return False
        asked = {"thread_ids": orjson.dumps([thread_id]).decode(), "up_to": FOREVER}
        return bool(await self._one_document(self.statements.deleted_threads, asked))

    async def _apply(
        self,
        changes: Sequence[Change],
        checkpoint: Checkpoint | None = None,
        *,
        late: bool = False,
        share: float = 1.0,
        apart: bool = False,
    ) -> frozenset[str | LeftOut]:
        await self.prepare()
        with self._rechecking(), translated(self.location):
            async with (
                asyncio.timeout(self._time_limit(share)),
                self._shared(),
                self._apart() if apart else self._writing() as driver,
            ):
                buried: frozenset[str | LeftOut] = frozenset()
                for _ in range(_LOOKS):
                    try:
                        return buried | await self._apply_noted(driver, changes, checkpoint, late=late)
                    except asyncpg.InvalidTextRepresentationError as error:
                        if MOVED not in str(error):
                            raise
                    except asyncpg.ForeignKeyViolationError:
                        owned = await with_owners(driver, self.statements, changes, self.database_id)
                        if owned is None:
                            raise
                        buried |= _buried(changes, owned)
                        changes = owned.changes
        raise TransientError("others change the same threads all the time", sqlstate=error_codes.CONFLICT)

    def _time_limit(self, share: float) -> float:
        whole = self._settings.statement_timeout
        return min(whole, max(_LEAST_TIME, whole * share))

    async def _apply_noted(
        self, driver: Driver, changes: Sequence[Change], checkpoint: Checkpoint | None, *, late: bool
    ) -> frozenset[str | LeftOut]:
        """As `_apply_once`; a standby must have it before it answers a read."""
        if checkpoint is None:
            try:
                return await self._apply_once(driver, changes, checkpoint, late=late)
            finally:
                self._bookmarks.committed_unmarked()
        self._bookmarks.begin(checkpoint)
        found = await self._apply_once(driver, changes, checkpoint, late=late)
        self._bookmarks.committed(checkpoint)
        return found

    async def _apply_once(
        self, driver: Driver, changes: Sequence[Change], checkpoint: Checkpoint | None, *, late: bool
    ) -> frozenset[str | LeftOut]:
        if self._postgres and not late and not any(map(self._takes_more, changes)):
            return await self._upsert_run(
                driver, cast("Sequence[Upsert]", changes), late=late, checkpoint=checkpoint
            )
        async with driver.transaction():
            # First, since it holds back the same batch of another connection until this one is in.
            if checkpoint is not None and not await driver.fetch(
                self.statements.checkpoint, checkpoint.parameters
            ):
                return await self._already_in(driver, checkpoint)
            return await self._apply_runs(driver, changes, late=late)

    def _takes_more(self, change: Change) -> bool:
        """Whether it is more than a row of the batch's one statement."""
        if isinstance(change, Delete) or is_claim(change) or lacks_thread(change):
            return True
        return not self._tells_lost_owners and change.table == "threads" and "userId" in change.row

    async def thread_of(self, change: Change) -> str | None:
        """The thread of a row that is there, for a change that does not say it. Raises a DatabaseError."""
        if change.thread_id is not None or change.table == "threads":
            return change.thread_id or change.key
        found = await self.read(self.statements.thread_of(change.table), id=change.key)
        return found["threadId"] if found else None

    async def position(self, journal_id: str) -> Position:
        """Where a journal stands in the database. Raises a DatabaseError."""
        return _position(await self.read(self.statements.position, journal_id=journal_id))

    async def _already_in(self, driver: Driver, checkpoint: Checkpoint) -> frozenset[str | LeftOut]:
        """What was not taken has happened already, if its answer was lost. Raises CheckpointMoved otherwise."""
        statement = self.statements.position
        found = await driver.fetch(statement, {"journal_id": checkpoint.journal_id})
        position = _position(statement.document(found))
        if position != checkpoint.after:
            raise CheckpointMoved(position)
        return frozenset()

    @property
    def has_writer(self) -> bool:
        """Whether the connection that batches are written on is open, as far as is known."""
        return self._writer is not None and not self._writer.driver.closed

    async def _apply_runs(
        self, driver: Driver, changes: Sequence[Change], *, late: bool
    ) -> frozenset[str | LeftOut]:
        gone: set[str | LeftOut] = set()
        place = 0
        for settle in (without_deleted_claimants, *(() if self._tells_lost_owners else (with_owners,))):
            owned = await settle(driver, self.statements, changes, self.database_id)
            if owned is not None:
                gone |= _buried(changes, owned)
                changes = owned.changes
        for is_upsert, grouped in groupby(changes, lambda change: isinstance(change, Upsert)):
            run = list(grouped)
            if is_upsert:
                found = await self._upsert_all(driver, cast("list[Upsert]", run), late=late)
                gone |= {one if isinstance(one, str) else LeftOut(place + one[0], one[1]) for one in found}
            else:
                for change in cast("list[Delete]", run):
                    await self._delete(driver, change, late=late)
            place += len(run)
        return frozenset(gone)

    async def _upsert_all(
        self, driver: Driver, upserts: list[Upsert], *, late: bool
    ) -> frozenset[str | LeftOut]:
        """As `_upsert_run`, with what is to be done before and after it."""
        placed = list(enumerate(await self._put_into_threads(driver, upserts)))
        there = [(place, upsert) for place, upsert in placed if upsert is not None]
        run = [upsert for _, upsert in there]
        seen, discarded = "{}", list[str]()
        if late:
            given = run
            run, seen = await self._beneath(driver, given)
            discarded = [
                key for one, left in zip(given, run, strict=True) if (key := _content_lost(one, left))
            ]
        found = await self._upsert_run(driver, run, late=late, seen=seen, discarded=discarded)
        await self._give_to_claimants(driver, upserts)
        unknown = (LeftOut(place, "unknown_step") for place, upsert in placed if upsert is None)
        return frozenset(unknown) | {
            one if isinstance(one, str) else LeftOut(there[one.place][0], one.reason) for one in found
        }

    async def _beneath(self, driver: Driver, upserts: list[Upsert]) -> tuple[list[Upsert], str]:
        """What late changes still do to the rows that are there, which are held; and the ids of those, as JSON."""
        stored: dict[tuple[str, str], Stored] = {}
        # The threads of all of them: who holds a thread keeps others from writing into it.
        named = {("threads", one.thread_id) for one in upserts if one.thread_id is not None}
        named |= {(one.table, one.key) for one in upserts}
        for table in (table.name for table in schema.WRITE_ORDER):
            if ids := sorted(key for of, key in named if of == table):
                asked = {"ids": orjson.dumps(ids).decode()}
                found = await driver.fetch(self.statements.stored_rows(table), asked)
                stored.update({(table, row[0]): _stored(row[1]) for row in found})
        seen = {
            str(table.name): {key: 1 for of, key in stored if of == table.name}
            for table in schema.WRITE_ORDER
        }
        run = [
            changes.late_beneath(one, stored[one.table, one.key]) if (one.table, one.key) in stored else one
            for one in upserts
        ]
        return run, orjson.dumps(seen).decode()

    async def _put_into_threads(self, driver: Driver, upserts: list[Upsert]) -> Sequence[Upsert | None]:
        parameters = step_threads_parameters(upserts)
        if parameters is None:
            return upserts
        stored = await driver.fetch(self.statements.step_threads, parameters)
        return put_into_threads(upserts, {row[0]: row[1] for row in stored})

    async def _give_to_claimants(self, driver: Driver, upserts: Sequence[Upsert]) -> None:
        parameters = claim_parameters(upserts)
        if parameters is not None:
            await driver.fetch(self.statements.claimants, parameters)
            await driver.fetch(self.statements.claimed, parameters)

    def name_id(self, identifier: str) -> str:
        """An id that stands for a login name in this database, and does not tell it."""
        return name_id(self.database_id, identifier)

    async def bury_user(self, identifier: str) -> list[str]:
        """Take the login name from who has it, and note that they are deleted; their id, and those half deleted before.

        What a thread's owner they are is deleted from now on, instead of written, and who logs in with that name is
        somebody else. The row goes with `Delete("users", id)`. Raises a DatabaseError.
        """
        await self.prepare()
        statements, name = self.statements, self.name_id(identifier)
        with self._rechecking(), translated(self.location):
            async with (
                asyncio.timeout(self._settings.statement_timeout),
                self._shared(),
                self._apart() as driver,
                driver.transaction(),
            ):
                if statements.hold_names is not None:
                    await driver.fetch(statements.hold_names, {"names": orjson.dumps([name]).decode()})
                renamed = await driver.fetch(statements.rename_user, {"identifier": identifier})
                ids = [row[0] for row in renamed]
                noted = {"user_ids": orjson.dumps([*ids, name]).decode(), "moment": changes.next_moment()}
                await driver.fetch(statements.bury_users, noted)
                half = statements.half_deleted_users
                return list(half.document(await driver.fetch(half, {})))

    async def clear_checkpoints(self) -> None:
        """Forget the journals that nobody has written for long. Raises a DatabaseError."""
        await self.write(self.statements.clear_checkpoints, kept_us=_TOMBSTONES_KEPT_US)

    async def _upsert_run(
        self,
        driver: Driver,
        upserts: Sequence[Upsert],
        *,
        late: bool,
        checkpoint: Checkpoint | None = None,
        seen: str = "{}",
        discarded: Sequence[str] = (),
    ) -> frozenset[str | LeftOut]:
        batch = documents(upserts, discarded)
        batch.parameters[SEEN] = seen
        if self._postgres:
            statement = self.statements.batch(
                partial=batch.partial,
                late=late,
                checkpoint=checkpoint is not None,
                contents=batch.contents,
            )
            parameters = {**batch.parameters, **(checkpoint.parameters if checkpoint else {})}
            *dead, total = await driver.fetch(statement, parameters) or [(None, None, None)]
            if total[1] is None:
                assert checkpoint is not None
                return await self._already_in(driver, checkpoint)
            changes.follow(total[2])
            written = total[1]
        else:
            dead, written = await self._upsert_tables(driver, batch, late=late)
        if written == batch.rows:
            return frozenset()
        found = await driver.fetch(self.statements.left_out(late=late), batch.parameters)
        left_out = {(table, _plain(key)): reason for table, key, reason, _ in found}
        went = {_plain(key): at for _, key, reason, at in found if reason == "deleted" and at is not None}
        if went:
            left_out |= await self._delete_below(driver, upserts, went)
        return _as_spelled(upserts, {_plain(row[0]) for row in dead}, left_out)

    async def _delete_below(
        self, driver: Driver, upserts: Sequence[Upsert], went: Mapping[str, int]
    ) -> dict[tuple[str, str], str]:
        """Steps that were left out are deleted, and what hangs on them: of the batch, of before and of what comes.

        `went`: when each of them was deleted, with itself or with the step above it. The batch's rows that go with
        them, and why.
        """
        known = dict(went)
        below: dict[tuple[str, str], Delete] = {}
        rest = list(upserts)
        while found := [one for one in rest if _made_at(one) <= known.get(_above(one), -1)]:
            rest = [one for one in rest if one not in found]
            for one in found:
                at = known[_above(one)]
                below[one.table, _plain(one.key)] = Delete(one.table, one.key, one.thread_id, moment=at)
                if one.table == "steps":
                    known.setdefault(_plain(one.key), at)
        async with driver.transaction() if self._postgres else nullcontext():  # SQLite is in one
            for one in upserts:
                if one.table == "steps" and _plain(one.key) in went:
                    at = went[_plain(one.key)]
                    await self._delete(driver, Delete("steps", one.key, one.thread_id, moment=at), late=True)
            for delete in below.values():
                await self._delete(driver, delete, late=False)
        return dict.fromkeys(below, "deleted")

    async def _upsert_tables(self, driver: Driver, batch: Documents, *, late: bool) -> tuple[list[Any], int]:
        """One table after the other: the threads that are dead, and how many rows were written."""
        if batch.revives:
            await driver.fetch(self.statements.revive, batch.parameters)
        dead = await driver.fetch(self.statements.dead_threads, batch.parameters)
        if batch.contents:
            await driver.fetch(self.statements.discard_replaced, batch.parameters)
        written = 0
        for table in batch.tables:
            statement = self.statements.upsert(table, partial=batch.partial, late=late)
            written += len(await driver.fetch(statement, batch.parameters))
        if batch.contents and written != batch.rows:
            await driver.fetch(self.statements.discard_left_out, batch.parameters)
        return dead, written

    async def _delete(self, driver: Driver, change: Delete, *, late: bool) -> None:
        parameters = {
            "id": change.key,
            "thread_id": change.thread_id,
            "moment": change.moment,
            "up_to": change.moment if late else FOREVER,
            "kept_us": _TOMBSTONES_KEPT_US,
        }
        for statement in self.statements.delete(change.table):
            rows = await driver.fetch(statement, parameters)
            if statement.gives:
                parameters |= zip(statement.gives, rows[0], strict=True)
        if change.table == "threads":
            await self._sweep(driver, parameters)

    async def _sweep(self, driver: Driver, parameters: Mapping[str, Any]) -> None:
        """Delete again what is there though it was deleted: who knows no tombstones can have brought it back."""
        for (thread_id,) in await driver.fetch(self.statements.ghosts, {"recent_us": _GHOSTS_OF_US}):
            logger.warning("deleted thread was back, deleted again")
            again = {**parameters, "id": thread_id, "thread_id": thread_id, "moment": 0}
            for statement in self.statements.delete("threads"):
                await driver.fetch(statement, again)

    async def close(self) -> None:
        """Close every connection."""
        if self.replica is not None:
            await self.replica.close()
        await self._drop_writer()
        await self._connections.close()

    def forget_connections(self) -> None:
        """Drop connections whose event loop is gone; PostgreSQL's can't be closed any more."""
        if self._writer is not None:
            forget(self._writer)
            self._writer = None
        # Whoever held these will not give them back.
        self._is_writing = False
        self._preparing = anyio.Lock()
        if self._exclusive is not None:
            self._exclusive = anyio.Lock()
        self._connections = self._share(self._connections.renewed())
        if self.replica is not None:
            self.replica.forget_connections()

    def handed_over(self, journal_id: str, seq: int) -> None:
        """Another process has written this one's journal up to `seq`."""
        self._bookmarks.reached(journal_id, seq)

    def committed_elsewhere(self) -> None:
        """Another process has written something else that this one accepted."""
        self._bookmarks.committed_unmarked()

    @asynccontextmanager
    async def _shared(self) -> AsyncIterator[None]:
        """One at a time where all share one connection."""
        if self._exclusive is None:
            yield
        else:
            async with self._exclusive:
                yield

    def _share(self, connections: Connections) -> Connections:
        connections.on_shortage = self._offer_writer
        return connections

    def _offer_writer(self) -> None:
        """There are no more connections, and somebody waits for one: the writer's, while it writes nothing."""
        if self._writer is not None and not self._is_writing:
            writer, self._writer = self._writer, None
            self._connections.offer(writer)

    @asynccontextmanager
    async def _writing(self) -> AsyncIterator[Driver]:
        self._is_writing = True
        try:
            if self._writer is not None and not self._connections.is_fit(self._writer):
                await self._drop_writer()
            if self._writer is None:
                self._writer = await self._connections.take()
            yield self._writer.driver
        except BaseException as error:
            if self._is_done_for(error):
                with anyio.CancelScope(shield=True):
                    await self._drop_writer()
            raise
        finally:
            self._is_writing = False
            if self._connections.is_short:
                self._offer_writer()

    @asynccontextmanager
    async def _apart(self) -> AsyncIterator[Driver]:
        """Beside the writer; the time is limited by who asks."""
        async with self._connections.held(self._settings.statement_timeout) as held:
            yield held.driver

    def _is_done_for(self, error: BaseException) -> bool:
        """Whether the writer's connection is to be another one's after an error."""
        if self._writer is None:
            return False
        if not self._postgres:
            return not isinstance(error, sqlite3.Error)  # what was answered and rolled back
        return not self._connections.is_usable_after(self._writer, error)

    async def _drop_writer(self) -> None:
        if self._writer is not None:
            writer, self._writer = self._writer, None
            await self._connections.drop(writer)


def _buried(changes: Sequence[Change], owned: Owned) -> frozenset[str | LeftOut]:
    """What was left out, since its owner was deleted: the threads, and the rows."""
    keys = {changes[place].key for place in owned.buried}
    return frozenset(keys) | {LeftOut(place, "deleted_user") for place in owned.buried}


async def _document(statement: Statement, rows: Sequence[Sequence[Any]]) -> Any:
    """What it returned, parsed; of much, in a thread: the event loop would stand still for seconds."""
    head = rows[0][0] if rows else None
    if len(rows) > _MANY_ROWS or (head is not None and len(head) > _LONG_DOCUMENT):
        return await threads.run(partial(statement.document, rows))
    return statement.document(rows)


def _above(upsert: Upsert) -> str:
    """The step that a row hangs on."""
    return _plain(upsert.row.get(schema.HANGS_ON.get(upsert.table, ""), ""))


def _made_at(upsert: Upsert) -> int:
    made: int = upsert.row.get(schema.MADE_AT, moment_of(upsert))
    return made


def _content_lost(change: Upsert, left: Upsert) -> str | None:
    """Where the content is that a late change brings, if a newer one has taken its place."""
    key: str | None = change.row.get("objectKey") if "objectKey" not in left.row else None
    return key


def _as_spelled(
    upserts: Sequence[Upsert], dead: set[str], left_out: Mapping[tuple[str, str], str]
) -> frozenset[str | LeftOut]:
    """Threads that are dead and rows that were left out, as the changes spell them, not as the database does."""
    threads = {
        upsert.thread_id for upsert in upserts if upsert.thread_id and _plain(upsert.thread_id) in dead
    }
    reasons = (left_out.get((upsert.table, _plain(upsert.key))) for upsert in upserts)
    rows = {LeftOut(place, reason) for place, reason in enumerate(reasons) if reason is not None}
    return frozenset(threads) | rows


def _plain(key: str) -> str:
    try:
        return str(uuid.UUID(key))
    except ValueError:
        return key


def _stored(document: str) -> Stored:
    found = orjson.loads(document)
    objects = {name: value for name, value in found["objects"].items() if isinstance(value, dict)}
    there = frozenset(name for name, is_there in found["there"].items() if is_there)
    return Stored(found["written_at"], found["moments"] or {}, there, objects, found["now"])


async def _fetch(driver: Driver, statement: Statement, parameters: Mapping[str, Any]) -> list[Any]:
    return await driver.fetch(statement, parameters)


def _position(found: Mapping[str, Any] | None) -> Position:
    return Position(int(found["seq"]), int(found["token"])) if found else Position()
