"""The database: reachable, of a known version, encrypted, migrated, indexed, with connections enough."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.schema import CreateIndex

from forebay.database import migrations
from forebay.database.migrations.failures import translated
from forebay.database.migrations.shape import Shape, read_shape
from forebay.database.migrations.todo import decide
from forebay.database.store import Store
from forebay.database.urls import in_memory, is_postgres, parse_url
from forebay.doctor.disk import check_file_system
from forebay.doctor.findings import Finding, Level, error, note, ok, warning
from forebay.doctor.role import check_role
from forebay.doctor.standby import check_standby
from forebay.errors import AccessError, DatabaseError, ForebayError, SchemaError, SettingsError
from forebay.model import schema
from forebay.settings import Settings

_OLDEST_POSTGRES = (12, 0)
_OLDEST_SQLITE = (3, 35)
_SKEW = 2.0  # seconds
_SLOW_ANSWER = 0.05  # seconds, for a statement that does nothing
_LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1", "", None)
_SERVER = sa.text(
    "SELECT current_setting('server_version') AS version, current_setting('max_connections')::int AS most,"
    " current_setting('superuser_reserved_connections')::int AS reserved, pg_backend_pid() AS pid,"
    " (SELECT count(*) FROM pg_catalog.pg_stat_activity WHERE backend_type = 'client backend') AS used,"
    " (SELECT ssl FROM pg_catalog.pg_stat_ssl WHERE pid = pg_backend_pid()) AS encrypted"
)
_OFFICIAL = sa.text("""SELECT to_regclass('"Thread"') IS NOT NULL AND to_regclass('"Step"') IS NOT NULL""")
_NOW = sa.text("SELECT extract(epoch FROM clock_timestamp())::float8")
_NO_CACHE = "statement_cache_size=0"
_UNREACHABLE = "check the host and the port in the URL, whether the server runs, and the network between"


@dataclass(frozen=True)
class Target:
    """How an app reaches its database: what it passes to the data layer."""

    url: str | None
    settings: Settings
    connect_args: Mapping[str, Any] = field(default_factory=dict)
    ssl_require: bool = False

    def store(self) -> Store:
        """As the app opens it. Raises SettingsError."""
        return Store(self.url, self.settings, connect_args=self.connect_args, ssl_require=self.ssl_require)

    def cautious(self) -> Store:
        """One whose statements get through any pooler."""
        assert self.url is not None
        url = sa.make_url(self.url).update_query_dict({"statement_cache_size": "0"})
        return replace(self, url=url.render_as_string(hide_password=False)).store()

    @property
    def prepares_nothing(self) -> bool:
        """Whether the app's statements get through any pooler."""
        assert self.url is not None
        _, from_url = parse_url(self.url)
        return {**from_url, **self.connect_args}.get("statement_cache_size") == 0


async def database_of(target: Target) -> tuple[str | None, str | None]:
    """Where the database is and its own id, as journals name them; None for what can't be told. It stays as it is."""
    try:
        store = target.store()
    except SettingsError:
        return None, None
    settings = target.settings
    try:
        if not _is_there(store):
            return store.label, None
        with anyio.fail_after(settings.connect_timeout + settings.statement_timeout):
            return store.label, await store.ask_id()
    except (DatabaseError, TimeoutError):
        return store.label, None
    finally:
        await store.close()


def _is_there(store: Store) -> bool:
    """False for a SQLite file that asking would make."""
    return is_postgres(store.url) or Path(store.url.database or "").exists()


async def check_database(target: Target, replicas: int = 1) -> AsyncIterator[Finding]:
    """Everything about it. `replicas`: how many processes will have a pool each."""
    try:
        store = target.store()
    except SettingsError as wrong:
        yield error("database", str(wrong), "set FOREBAY_DATABASE_URL, or pass --database-url")
        return
    checks = _check_postgres(target, store, replicas) if is_postgres(store.url) else _check_sqlite(store)
    try:
        async for finding in checks:
            yield finding
    except TimeoutError:
        yield error("database", f"{store.location} does not answer in time", _UNREACHABLE)
    except DatabaseError as failed:
        yield error("database", f"{failed} [{store.location}]", _remedy(failed))
    finally:
        await store.close()


def _remedy(failed: DatabaseError) -> str:
    if isinstance(failed, AccessError):
        return "check the user, the password, the database's name and sslmode in the URL"
    if isinstance(failed, SchemaError):
        return "forebay migrate"
    return _UNREACHABLE


# ---- PostgreSQL


async def _check_postgres(target: Target, store: Store, replicas: int) -> AsyncIterator[Finding]:
    # The app's own way is tried at the end: what it meets is then known.
    cautious, settings = target.cautious(), target.settings
    try:
        with translated(), anyio.fail_after(settings.connect_timeout + settings.statement_timeout):
            async with cautious.engine.connect() as connection:
                started = time.perf_counter()
                server = (await connection.execute(_SERVER)).mappings().one()
                took = time.perf_counter() - started
                pooled = await _backend_pid(connection) != server["pid"]
                findings = [
                    _answer(store, server["version"], took),
                    _tls(store, encrypted=server["encrypted"], pooled=pooled),
                    await _clock(connection),
                    _connections(server, settings.pool_size, replicas, pooled=pooled),
                    *(about_role := await check_role(connection, settings, settings.pool_size * replicas)),
                ]
                findings += [finding async for finding in _official(connection)]
                if not any(one.level is Level.ERROR and one.check == "rights" for one in about_role):
                    findings += [finding async for finding in _tables(cautious, connection)]
            findings.append(await _pooler(target, cautious, store, pooled=pooled))
        patience = settings.connect_timeout + settings.statement_timeout
        findings += [one async for one in check_standby(store, settings.pool_size, replicas, patience)]
    finally:
        await cautious.close()
    for finding in findings:
        yield finding


async def _official(connection: AsyncConnection) -> AsyncIterator[Finding]:
    if (await connection.execute(_OFFICIAL)).scalar_one():
        yield note(
            "official layer",
            "the tables of Chainlit's official layer are in this database too",
            "`forebay import` copies their chats into forebay's, while both run: see its --help",
        )


async def _backend_pid(connection: AsyncConnection) -> int:
    """The server process that the connection was opened to, as whoever opened it says: a pooler makes one up."""
    raw: Any = (await connection.get_raw_connection()).driver_connection
    return int(raw.get_server_pid())


def _answer(store: Store, version: str, took: float) -> Finding:
    said = f"PostgreSQL {version.split(' ')[0]} at {store.location} answers in {took * 1000:.1f} ms"
    if _numbers(version) < _OLDEST_POSTGRES:
        return error("database", said, f"forebay needs PostgreSQL {_OLDEST_POSTGRES[0]} or newer")
    if took > _SLOW_ANSWER:
        return warning("database", said, "move the app nearer to it: each read waits for one answer")
    return ok("database", said)


def _numbers(version: str) -> tuple[int, ...]:
    digits = "".join(c if c.isdigit() or c == "." else " " for c in version).split()
    return tuple(int(part) for part in digits[0].split(".") if part) if digits else ()


def _tls(store: Store, *, encrypted: bool, pooled: bool) -> Finding:
    if pooled:
        return note("tls", "there is a pooler between, whose own TLS settings count")
    if encrypted:
        return ok("tls", "the connection is encrypted")
    if store.url.host in _LOCAL_HOSTS:
        return ok("tls", "not encrypted, and on this machine")
    return warning(
        "tls",
        "the connection is not encrypted: passwords and chats cross the network as they are",
        "add ?sslmode=verify-full to the URL, with &sslrootcert=FILE for an authority of your own",
    )


async def _clock(connection: AsyncConnection) -> Finding:
    before = time.time()
    there = (await connection.execute(_NOW)).scalar_one()
    after = time.time()
    skew = max(before - there, there - after, 0.0)
    said = f"{skew:.1f} s from the database's"
    if skew > _SKEW:
        return warning(
            "clock", said, "let NTP set both clocks: what is newer is told by them where processes meet"
        )
    return ok("clock", said)


def _connections(server: Any, pool_size: int, replicas: int, *, pooled: bool) -> Finding:
    wanted, most = pool_size * replicas, server["most"] - server["reserved"]
    pools = f"{replicas} times FOREBAY_POOL_SIZE={pool_size}"
    said = f"{wanted} wanted ({pools}), {most} allowed, {server['used']} in use now"
    if pooled:
        return note("connections", f"{said}; the pooler's limits count as well")
    if wanted > most:
        return error(
            "connections", said, "lower FOREBAY_POOL_SIZE, raise max_connections, or put a pooler between"
        )
    if wanted > most * 0.8:
        return warning("connections", said, "leave some to migrations, backups and people")
    return ok("connections", said)


async def _pooler(target: Target, cautious: Store, store: Store, *, pooled: bool) -> Finding:
    if not pooled:
        return ok("pooler", "none between")
    if not await _shares_servers(cautious):
        return ok("pooler", "one is between, in session mode")
    said = "one is between, in transaction mode"
    if target.prepares_nothing:
        return ok("pooler", f"{said}, and {_NO_CACHE} is set; migrate without it")
    if await _keeps_statements(store):
        return ok("pooler", f"{said}, and it keeps prepared statements; migrate without it")
    return error(
        "pooler",
        f"{said}: prepared statements get lost in it",
        f"add ?{_NO_CACHE} to the URL; or let pgbouncer (1.21 or newer) keep them, by max_prepared_statements",
    )


async def _shares_servers(store: Store) -> bool:
    """Whether a pooler gives a connection's server to another one while both are open."""
    pid = sa.text("SELECT pg_backend_pid()")
    seen: set[int] = set()
    async with store.engine.connect() as first, store.engine.connect() as second:
        first = await first.execution_options(isolation_level="AUTOCOMMIT")
        for _ in range(3):
            # Twice, or two connections that take turns could keep to the same two servers for ever.
            for _ in range(2):
                seen.add((await first.execute(pid)).scalar_one())
            async with second.begin():
                if len(seen) > 1 or (await second.execute(pid)).scalar_one() in seen:
                    return True
    return False


async def _keeps_statements(store: Store) -> bool:
    """Whether a statement that was prepared once is there on each server that the pooler may choose."""
    query = "SELECT 1 AS forebay_doctor"
    try:
        async with store.engine.connect() as first, store.engine.connect() as second:
            one: Any = (await first.get_raw_connection()).driver_connection
            other: Any = (await second.get_raw_connection()).driver_connection
            await one.fetch(query)
            for _ in range(4):
                async with other.transaction():
                    await other.execute("SELECT 1")
                    await one.fetch(query)
    except Exception:  # whatever a pooler makes of it
        return False
    return True


# ---- SQLite


async def _check_sqlite(store: Store) -> AsyncIterator[Finding]:
    file_findings = await anyio.to_thread.run_sync(lambda: list(_check_file(store)))
    for finding in file_findings:
        yield finding
    if any(finding.check == "database" for finding in file_findings):
        return
    with translated():
        async with store.engine.connect() as connection:
            version = (await connection.execute(sa.text("SELECT sqlite_version()"))).scalar_one()
            said = f"SQLite {version}, {store.url.database}"
            if _numbers(version) < _OLDEST_SQLITE:
                yield error("database", said, "forebay needs SQLite 3.35 or newer; use a newer Python")
            else:
                yield ok("database", said)
            async for finding in _tables(store, connection):
                yield finding


def _check_file(store: Store) -> Iterator[Finding]:
    """What is to be said of the file before it is opened, which would make it."""
    if in_memory(store.url):
        yield warning(
            "database", "SQLite in memory: all of it ends with the process", "name a file in the URL"
        )
        return
    path = Path(store.url.database or "")
    if str(path).startswith("file:"):
        return
    yield from check_file_system("database file", path.parent)
    if path.exists():
        return
    if path.parent.is_dir():
        yield note("database", f"{path} is not there yet; the first use makes and migrates it")
    else:
        yield error("database", f"{path.parent} is not there", f"mkdir -p {path.parent}")


# ---- both


async def _tables(store: Store, connection: AsyncConnection) -> AsyncIterator[Finding]:
    revision = await migrations.is_current(store.engine)
    if not revision:
        yield error("schema", "the tables are not forebay's yet, or of another release", "forebay migrate")
        return
    yield ok("schema", f"at revision {migrations.head()}")
    try:
        missing = await connection.run_sync(_missing_parts)
    except ForebayError as wrong:
        yield error("indexes", str(wrong), "forebay migrate --dry-run says more")
        return
    if missing:
        yield warning(
            "indexes", "some are missing or unfinished: reads scan whole tables", "\n".join(missing)
        )
    else:
        yield ok("indexes", "all there")


def _missing_parts(connection: sa.Connection) -> list[str]:
    """The SQL that brings back what somebody has dropped since the migration."""
    shape = read_shape(connection)
    todo = decide(replace(shape, foreign=()))
    lines = [f'ALTER TABLE {column.table.name} ADD COLUMN "{column.name}" …;' for column in todo.columns]
    for index in todo.indexes:
        if index.unfinished:
            lines.append(f"DROP INDEX {index.name};")
        lines.append(_create_index(shape, index.name))
    return lines


def _create_index(shape: Shape, name: str) -> str:
    indexes = {str(index.name): index for table in schema.metadata.tables.values() for index in table.indexes}
    if name not in indexes:  # the one on users.identifier, where the table had no constraint
        return f"CREATE UNIQUE INDEX {name} ON users (identifier);"
    text = " ".join(str(CreateIndex(indexes[name]).compile(dialect=shape.dialect)).split())
    return (text.replace("CREATE INDEX", "CREATE INDEX CONCURRENTLY") if shape.is_postgres else text) + ";"
