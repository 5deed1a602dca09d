"""Running Alembic's revisions against a database, or into a text."""

from __future__ import annotations

import io
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import anyio
import sqlalchemy as sa
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext, MigrationStep, RevisionStep
from alembic.script import ScriptDirectory
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from forebay.database.migrations.activity import is_behind
from forebay.database.migrations.failures import is_busy, translated
from forebay.database.migrations.lock import exclusive
from forebay.database.migrations.shape import read_shape
from forebay.database.migrations.todo import Todo, decide
from forebay.database.migrations.work import Work
from forebay.errors import SchemaError
from forebay.primitives.backoff import Backoff

VERSION_TABLE = "forebay_migrations"
# How often to try again when other sessions hold locks on the tables, with pauses of up to 3 seconds.
LOCK_ATTEMPTS = 15

_REVISION = sa.text("SELECT version_num FROM forebay_migrations")


def head() -> str:
    """The revision that this release needs."""
    revision = _scripts().get_current_head()
    assert revision is not None
    return revision


async def is_current(engine: AsyncEngine) -> bool:
    """Whether the database is at `head()`: one query.

    Raises TransientError or AccessError when that can't be told.
    """
    try:
        with translated():
            async with engine.connect() as connection:
                revision: str | None = await connection.scalar(_REVISION)
                return revision == head()
    except SchemaError:  # there is no such table yet
        return False


async def upgrade(engine: AsyncEngine) -> list[str]:
    """Bring the database to `forebay.schema`, keeping every row; returns what was done, a line each.

    Nothing is done, and the list is empty, when it is there already. Several processes may call it at once:
    one works, the others wait. Writers go on meanwhile: on PostgreSQL, tables in use are altered within a
    short lock, and their indexes are built concurrently. That needs a connection of its own: no pooler in
    transaction mode, and no `command_timeout` of asyncpg's.

    Raises SchemaError when the tables are such that an operator must decide, and AccessError when they are not
    the user's (nothing was changed then); TransientError when they stay locked or can't be reached. Whatever
    ends it, the database works as before, and the next upgrade goes on from there.
    """
    with translated():
        if await is_current(engine) and not await _is_behind(engine):
            return []
        async with exclusive(engine) as connection:
            return await _upgrade_patiently(connection)


async def plan(engine: AsyncEngine) -> str:
    """The SQL that `upgrade` would run, or "" when there is nothing to do. Changes nothing.

    Raises what `upgrade` raises.
    """
    with translated():
        async with engine.connect() as connection:
            return await connection.run_sync(_plan)


async def _is_behind(engine: AsyncEngine) -> bool:
    # Chainlit's own layer, while it still ran beside the migration, has made threads that have no updatedAt.
    async with engine.connect() as connection:
        return await connection.run_sync(is_behind)


async def _upgrade_patiently(connection: AsyncConnection) -> list[str]:
    lines: list[str] = []
    backoff = Backoff(base=0.1, cap=3.0)
    while True:
        try:
            await connection.run_sync(_upgrade, lines)
        except sa.exc.DBAPIError as error:
            if backoff.attempts >= LOCK_ATTEMPTS or not is_busy(error):
                raise
            await connection.rollback()
            await anyio.sleep(backoff.next_delay())
        else:
            return lines


def _upgrade(connection: sa.Connection, lines: list[str]) -> None:
    """One attempt, which looks at what is there anew."""
    if connection.in_transaction():  # SQLite's one transaction
        revision, todo = _look(connection)
    else:
        with connection.begin():
            connection.execute(sa.text("SET lock_timeout = 0"))
            revision, todo = _look(connection)
        if revision == head():
            connection = connection.execution_options(isolation_level="AUTOCOMMIT")
    context = MigrationContext.configure(connection=connection, opts=_options())
    _run(context, Work(Operations(context), todo, lines), revision)


def _plan(connection: sa.Connection) -> str:
    revision, todo = _look(connection)
    text = io.StringIO()
    opts = _options() | {
        "as_sql": True,
        "output_buffer": text,
        "starting_rev": revision or "base",
        "literal_binds": True,
        "transactional_ddl": True,
    }
    context = MigrationContext.configure(dialect=connection.dialect, opts=opts)
    _run(context, Work(Operations(context), todo), revision)
    # An interrupted run leaves it empty, and Alembic would create it again.
    statement = f"CREATE TABLE {VERSION_TABLE}"
    return text.getvalue().replace(statement, statement.replace("TABLE", "TABLE IF NOT EXISTS")).strip()


def _look(connection: sa.Connection) -> tuple[str | None, Todo]:
    """The database's revision, and what there is to do."""
    revision = _revision(connection)
    if revision == head():
        return revision, Todo(fill=is_behind(connection))
    return revision, decide(read_shape(connection))


def _run(context: MigrationContext, work: Work, revision: str | None) -> None:
    if revision == head():
        work.fill_activity()
        return
    with context.begin_transaction():
        context.run_migrations(work=work)


def _revision(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table(VERSION_TABLE):
        return None
    revision: str | None = connection.scalar(_REVISION)
    return revision


def _options() -> dict[str, Any]:
    return {"version_table": VERSION_TABLE, "transaction_per_migration": True, "fn": _steps}


def _steps(revision: Any, _context: MigrationContext) -> Iterable[RevisionStep]:
    scripts = _scripts()
    upwards = reversed(list(scripts.iterate_revisions("head", revision, implicit_base=True)))
    return [MigrationStep.upgrade_from_script(scripts.revision_map, script) for script in upwards]


@cache
def _scripts() -> ScriptDirectory:
    return ScriptDirectory(str(Path(__file__).parent))
