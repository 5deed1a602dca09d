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
from alembic.script.revision import RevisionError
from alembic.util import CommandError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from forebay.database.migrations.activity import is_behind
from forebay.database.migrations.failures import is_busy, translated
from forebay.database.migrations.lock import exclusive
from forebay.database.migrations.revision import REVISION, VERSION_TABLE, head
from forebay.database.migrations.shape import read_shape
from forebay.database.migrations.todo import Todo, decide
from forebay.database.migrations.work import Work
from forebay.errors import SchemaError
from forebay.primitives.backoff import Backoff

# How often to try again when other sessions hold locks on the tables, with pauses of up to 3 seconds.
LOCK_ATTEMPTS = 15


async def upgrade(engine: AsyncEngine) -> list[str]:
    """See `migrations.upgrade`."""
    with translated():
        async with exclusive(engine) as connection:
            return await _upgrade_patiently(connection)


async def plan(engine: AsyncEngine) -> str:
    """See `migrations.plan`."""
    with translated():
        async with engine.connect() as connection:
            return await connection.run_sync(_plan)


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
    try:
        with context.begin_transaction():
            context.run_migrations(work=work)
    except (CommandError, RevisionError) as error:
        raise SchemaError(
            f"the database's revision is unknown here ({error}); a newer forebay migrated it, so install that"
        ) from None


def _revision(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table(VERSION_TABLE):
        return None
    revision: str | None = connection.scalar(REVISION)
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
