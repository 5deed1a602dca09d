"""Migrating real databases: each shape that Chainlit's releases left behind, and what can go wrong on the way."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from forebay.database import migrations
from forebay.database.migrations import activity, runner, work
from forebay.database.migrations.shape import read_shape
from forebay.database.migrations.todo import decide
from forebay.errors import AccessError, SchemaError, TransientError
from forebay.model import schema
from tests.integration.old_schemas import (
    LATEST,
    NEWEST_STEPS,
    OLD_SCHEMAS,
    V2_0,
    OldSchema,
    an_id,
    create,
    fingerprint,
    insert,
    snapshot,
)
from tests.support.patience import patience

DRIVERS = {"postgresql": "postgresql+asyncpg", "sqlite": "sqlite+aiosqlite"}
each_schema = pytest.mark.parametrize("old", OLD_SCHEMAS, ids=str)


def engine_of(url: str, **options: Any) -> AsyncEngine:
    parsed = sa.make_url(url)
    return create_async_engine(parsed.set(drivername=DRIVERS[parsed.get_backend_name()]), **options)


@asynccontextmanager
async def opened(url: str, **options: Any) -> AsyncIterator[AsyncEngine]:
    engine = engine_of(url, **options)
    try:
        yield engine
    finally:
        await engine.dispose()


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    async with opened(database_url) as engine:
        yield engine


@pytest.fixture
async def postgres(postgres_url: str) -> AsyncIterator[AsyncEngine]:
    async with opened(postgres_url) as engine:
        yield engine


@pytest.fixture
async def sqlite(sqlite_url: str) -> AsyncIterator[AsyncEngine]:
    async with opened(sqlite_url) as engine:
        yield engine


async def run(engine: AsyncEngine, *statements: str) -> None:
    async with engine.begin() as connection:
        for statement in statements:
            await connection.execute(sa.text(statement))


async def ask(engine: AsyncEngine, query: str) -> Any:
    async with engine.connect() as connection:
        return await connection.scalar(sa.text(query))


async def newest_steps(engine: AsyncEngine) -> dict[int, str | None]:
    async with engine.connect() as connection:
        rows = await connection.execute(sa.text('SELECT id, "updatedAt" FROM threads'))
        return {int(str(row.id)[-12:], 16): row.updatedAt for row in rows}


async def is_complete(engine: AsyncEngine) -> bool:
    """Whether the database lacks nothing, whatever its version table says."""
    async with engine.connect() as connection:
        todo = await connection.run_sync(lambda c: decide(read_shape(c)))
    return not (todo.tables or todo.columns or todo.indexes or todo.default_old_column or todo.fill)


class TestEachShape:
    @each_schema
    async def test_keeps_every_row_and_gets_everything(self, engine: AsyncEngine, old: OldSchema):
        await create(engine, old)
        before = await snapshot(engine, old)
        assert not await migrations.is_current(engine)
        lines = await migrations.upgrade(engine)
        assert await snapshot(engine, old) == before
        assert await is_complete(engine)
        assert await newest_steps(engine) == NEWEST_STEPS
        assert await migrations.is_current(engine)
        assert 'added the column steps."forebayExtra"' in lines
        assert 'filled "updatedAt" of 2 threads' in lines
        assert ('added the column steps."autoCollapse"' in lines) == ("autoCollapse" not in old.optional)
        assert not [
            line for line in lines if line.startswith("warning") or "forebay_users_identifier" in line
        ]

    @pytest.mark.parametrize("old", [V2_0, LATEST], ids=str)
    async def test_chainlits_own_layer_works_afterwards(
        self, engine: AsyncEngine, old: OldSchema, layer: Layer
    ):
        await create(engine, old)
        await migrations.upgrade(engine)
        await use_chainlits_layer(layer(engine))

    async def test_chainlits_own_layer_works_on_new_tables(self, engine: AsyncEngine, layer: Layer):
        await migrations.upgrade(engine)
        await use_chainlits_layer(layer(engine))

    async def test_a_second_upgrade_does_nothing(self, engine: AsyncEngine):
        await create(engine, V2_0)
        await migrations.upgrade(engine)
        before = await fingerprint(engine)
        assert await migrations.upgrade(engine) == []
        assert await migrations.plan(engine) == ""
        assert await fingerprint(engine) == before

    async def test_the_revision_before_goes_on_from_where_it_is(self, engine: AsyncEngine):
        await create(engine, LATEST)
        await migrations.upgrade(engine)
        tables = ("threads", "steps", "elements", "feedbacks")
        await run(
            engine,
            "DROP TABLE forebay_tombstones",
            "DROP TABLE forebay_garbage",
            "DROP INDEX forebay_feedbacks_newest",
            *(f'ALTER TABLE {table} DROP COLUMN "{schema.WRITTEN_AT}"' for table in tables),
            "UPDATE forebay_migrations SET version_num = '0001'",
        )
        before = await snapshot(engine, LATEST)
        assert not await migrations.is_current(engine)
        assert "forebay_tombstones" in await migrations.plan(engine)
        assert len(await migrations.upgrade(engine)) == 8
        assert await snapshot(engine, LATEST) == before
        assert await is_complete(engine)
        assert await migrations.is_current(engine)

    async def test_an_empty_database_gets_the_schema(self, engine: AsyncEngine):
        lines = await migrations.upgrade(engine)
        assert {f"created the table {name}" for name in schema.metadata.tables} <= set(lines)
        async with engine.connect() as connection:
            assert await connection.run_sync(differences) == []
        assert await migrations.is_current(engine)
        assert await ask(engine, "SELECT version_num FROM forebay_migrations") == migrations.head()

    async def test_a_database_with_some_tables_gets_the_others(self, engine: AsyncEngine):
        await run(engine, *LATEST.ddl()[:2])
        await migrations.upgrade(engine)
        assert await is_complete(engine)

    async def test_an_in_memory_database(self):
        async with opened("sqlite://") as engine:
            await migrations.upgrade(engine)
            assert await migrations.is_current(engine)
            assert await migrations.upgrade(engine) == []


def test_the_newest_file_is_alembics_head():
    assert migrations.head() == runner._scripts().get_current_head()


def test_a_start_does_not_load_alembic():
    code = "import sys, forebay; forebay.ForebayDataLayer; sys.exit('alembic' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def differences(connection: sa.Connection) -> Any:
    is_postgres = connection.dialect.name == "postgresql"

    def is_meant(_object: Any, name: str | None, *_rest: Any) -> bool:
        # Alembic doesn't know that this index is PostgreSQL's only.
        return is_postgres or name != "forebay_steps_favorite"

    options = {"version_table": migrations.VERSION_TABLE, "include_object": is_meant}
    context = MigrationContext.configure(connection, opts=options)
    # Nor that of two of one name it is to take this database's.
    both = [index for index in schema.feedbacks.indexes if index.name == "forebay_feedbacks_newest"]
    (others,) = (index for index in both if ("NULLS LAST" in str(index.expressions[1])) != is_postgres)
    schema.feedbacks.indexes.discard(others)
    try:
        return compare_metadata(context, schema.metadata)
    finally:
        schema.feedbacks.indexes.add(others)


class TestGarbage:
    """Up to 0005 it was keyed by the object's key, which is too long for an index of PostgreSQL's at some length."""

    OLD_TABLE = "CREATE TABLE forebay_garbage (object_key TEXT NOT NULL, PRIMARY KEY (object_key))"

    async def old(self, engine: AsyncEngine) -> None:
        await create(engine, LATEST)
        await migrations.upgrade(engine)
        await run(
            engine,
            "DROP TABLE forebay_garbage",
            "DROP INDEX forebay_elements_key",
            self.OLD_TABLE,
            "INSERT INTO forebay_garbage (object_key) VALUES ('a/b/c'), ('d')",
            "UPDATE forebay_migrations SET version_num = '0005'",
        )

    async def keys(self, engine: AsyncEngine) -> list[tuple[str, str]]:
        async with engine.connect() as connection:
            rows = await connection.execute(sa.text("SELECT object_key, key_hash FROM forebay_garbage"))
            return sorted((row.object_key, row.key_hash) for row in rows)

    @pytest.mark.parametrize("by_hand", [False, True])
    async def test_what_is_noted_is_kept(self, engine: AsyncEngine, by_hand: bool):
        await self.old(engine)
        if by_hand:
            await run_by_hand(engine, await migrations.plan(engine))
        else:
            assert "keyed forebay_garbage by a hash" in await migrations.upgrade(engine)
        assert await is_complete(engine)
        assert await migrations.upgrade(engine) == []
        kept = await self.keys(engine)
        assert [key for key, _ in kept] == ["a/b/c", "d"]
        assert len({hashed for _, hashed in kept}) == 2

    async def test_a_release_before_goes_on_beside_it(self, engine: AsyncEngine):
        await self.old(engine)
        await migrations.upgrade(engine)
        await run(
            engine,
            "INSERT INTO forebay_garbage (object_key) SELECT 'e' WHERE true ON CONFLICT DO NOTHING",
            "DELETE FROM forebay_garbage WHERE object_key = 'd'",
        )
        assert [key for key, _ in await self.keys(engine)] == ["a/b/c", "e"]

    async def test_an_interrupted_migration_goes_on(self, engine: AsyncEngine):
        await self.old(engine)
        await migrations.upgrade(engine)
        await run(engine, "UPDATE forebay_migrations SET version_num = '0005'")
        before = await self.keys(engine)
        await migrations.upgrade(engine)
        assert await self.keys(engine) == before


class TestDisableFeedback:
    async def test_it_gets_a_default_and_keeps_its_values(self, engine: AsyncEngine):
        await create(engine, V2_0)
        await migrations.upgrade(engine)
        columns = [name for name in V2_0.columns("steps") if name != "disableFeedback"]
        async with engine.begin() as connection:
            row = {
                "id": an_id("steps", 9),
                "threadId": an_id("threads", 1),
                "name": "",
                "type": "",
                "streaming": False,
            }
            await insert(connection, "steps", row, columns)
            values = await connection.scalars(sa.text('SELECT "disableFeedback" FROM steps ORDER BY id'))
            assert [bool(value) for value in values] == [False, True, False, False, False]

    async def test_sqlite_keeps_what_hangs_on_the_table(self, sqlite: AsyncEngine):
        await create(sqlite, V2_0)
        trigger = "CREATE TRIGGER seen AFTER INSERT ON steps BEGIN UPDATE users SET metadata = '{}'; END"
        await run(sqlite, trigger, "CREATE INDEX long_outputs ON steps (length(output)) WHERE output != ''")
        before = [row for row in await fingerprint(sqlite) if row[1] in {"seen", "long_outputs"}]
        with pytest.warns(sa.exc.SAWarning, match="expression-based index"):
            await migrations.upgrade(sqlite)
        assert [row for row in await fingerprint(sqlite) if row[1] in {"seen", "long_outputs"}] == before

    async def test_sqlite_knows_columns_in_any_case(self, sqlite: AsyncEngine):
        await create(sqlite, V2_0)
        await run(sqlite, "ALTER TABLE steps ADD COLUMN autocollapse BOOLEAN")
        await migrations.upgrade(sqlite)
        assert await is_complete(sqlite)


class TestPlan:
    @pytest.mark.parametrize("old", [None, V2_0, LATEST], ids=["empty", "2.0", "latest"])
    async def test_it_changes_nothing_and_can_be_run_by_hand(
        self, engine: AsyncEngine, old: OldSchema | None
    ):
        if old:
            await create(engine, old)
        before = await fingerprint(engine)
        plan = await migrations.plan(engine)
        assert await fingerprint(engine) == before
        assert "CREATE TABLE forebay_checkpoints" in plan
        assert ("CREATE INDEX CONCURRENTLY" in plan) == (
            old is not None and engine.dialect.name == "postgresql"
        )
        assert ('ADD COLUMN "autoCollapse" BOOLEAN' in plan) == (old is not None)
        await run_by_hand(engine, plan)
        assert await is_complete(engine)
        assert await migrations.is_current(engine)

    async def test_it_raises_what_the_upgrade_raises(self, postgres: AsyncEngine):
        await create(postgres, LATEST)
        await run(postgres, 'ALTER TABLE elements ALTER COLUMN "props" TYPE TEXT')
        with pytest.raises(SchemaError, match="props"):
            await migrations.plan(postgres)


async def run_by_hand(engine: AsyncEngine, plan: str) -> None:
    async with (
        opened(engine.url.render_as_string(hide_password=False)) as other,
        other.connect() as connection,
    ):
        raw: Any = (await connection.get_raw_connection()).driver_connection
        if engine.dialect.name == "sqlite":
            await raw.executescript(plan)
            return
        for statement in plan.split(";\n"):
            await raw.execute(statement)


class TestActivity:
    async def test_it_is_filled_page_by_page(self, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(activity, "PAGE_ROWS", 2)
        await create(engine, LATEST)
        expected = dict(NEWEST_STEPS)
        async with engine.begin() as connection:
            for number in range(10, 15):
                thread, stamp = an_id("threads", number), f"2024-06-{number}"
                await insert(connection, "threads", {"id": thread}, ["id"])
                step = {
                    "id": an_id("steps", number),
                    "threadId": thread,
                    "createdAt": stamp,
                    "name": "",
                    "type": "",
                }
                await insert(connection, "steps", {**step, "streaming": False}, LATEST.columns("steps"))
                expected[number] = stamp
        assert 'filled "updatedAt" of 7 threads' in await migrations.upgrade(engine)
        assert await newest_steps(engine) == expected

    async def test_threads_that_came_later_are_filled_by_the_next_upgrade(self, engine: AsyncEngine):
        await create(engine, LATEST)
        await migrations.upgrade(engine)
        await run(engine, 'UPDATE threads SET "updatedAt" = NULL')
        assert "UPDATE threads" in await migrations.plan(engine)
        assert await migrations.upgrade(engine) == ['filled "updatedAt" of 2 threads']
        assert await newest_steps(engine) == NEWEST_STEPS

    async def test_a_locked_thread_is_waited_for_in_short_tries(
        self, postgres: AsyncEngine, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(work, "LOCK_TIMEOUT_MS", 50)
        await create(postgres, LATEST)
        await migrations.upgrade(postgres)
        await run(postgres, 'UPDATE threads SET "updatedAt" = NULL')
        async with postgres.connect() as other:
            await other.execute(sa.text("SELECT * FROM threads FOR UPDATE"))
            upgrade = asyncio.create_task(migrations.upgrade(postgres))
            await asyncio.sleep(0.3)
            assert not upgrade.done()
        assert await upgrade == ['filled "updatedAt" of 2 threads']

    async def test_a_column_of_the_same_name_is_made_to_sort_by_code_point(self, postgres: AsyncEngine):
        await create(postgres, LATEST)
        await run(postgres, 'ALTER TABLE threads ADD COLUMN "updatedAt" TEXT')
        assert 'made threads."updatedAt" sort by code point' in await migrations.upgrade(postgres)
        assert await is_complete(postgres)


class TestTogether:
    async def test_several_may_start_at_once(self, database_url: str, engine: AsyncEngine):
        await create(engine, V2_0)
        before = await snapshot(engine, V2_0)
        others = [engine_of(database_url) for _ in range(2)]
        lines = await asyncio.gather(*(migrations.upgrade(one) for one in (engine, *others)))
        assert len([done for done in lines if done]) == 1
        assert await snapshot(engine, V2_0) == before
        assert await is_complete(engine)
        for other in others:
            await other.dispose()

    async def test_two_databases_at_once(self, postgres: AsyncEngine, sqlite: AsyncEngine):
        await asyncio.gather(migrations.upgrade(postgres), migrations.upgrade(sqlite))
        assert await is_complete(postgres)
        assert await is_complete(sqlite)

    async def test_it_waits_for_a_lock_in_short_tries(
        self, postgres: AsyncEngine, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(work, "LOCK_TIMEOUT_MS", 50)
        await create(postgres, LATEST)
        async with postgres.connect() as other:
            await other.execute(sa.text("SELECT count(*) FROM steps"))
            upgrade = asyncio.create_task(migrations.upgrade(postgres))
            await asyncio.sleep(0.4)
            assert not upgrade.done()
            await other.rollback()
        lines = await upgrade
        assert len(lines) == len(set(lines))
        assert await is_complete(postgres)

    async def test_it_gives_up_on_a_lock_and_goes_on_the_next_time(
        self, postgres: AsyncEngine, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(work, "LOCK_TIMEOUT_MS", 50)
        monkeypatch.setattr(runner, "LOCK_ATTEMPTS", 1)
        await create(postgres, LATEST)
        async with postgres.connect() as other:
            await other.execute(sa.text("SELECT count(*) FROM steps"))
            with pytest.raises(TransientError, match="pg_stat_activity"):
                await migrations.upgrade(postgres)
            assert not await migrations.is_current(postgres)
            assert "CREATE TABLE IF NOT EXISTS forebay_migrations" in await migrations.plan(postgres)
        await migrations.upgrade(postgres)
        assert await is_complete(postgres)

    async def test_it_never_waits_for_a_table_while_it_holds_another(
        self, postgres: AsyncEngine, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(work, "LOCK_TIMEOUT_MS", 10_000)
        await create(postgres, LATEST)
        here = "(SELECT oid FROM pg_database WHERE datname = current_database())"
        waiting = f"SELECT pid FROM pg_locks WHERE NOT granted AND database = {here}"
        async with postgres.connect() as writer:
            await writer.execute(sa.text("UPDATE steps SET output = output"))
            upgrade = asyncio.create_task(migrations.upgrade(postgres))
            while await ask(postgres, waiting) is None:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            held = f"FROM pg_locks WHERE granted AND mode = 'AccessExclusiveLock' AND pid IN ({waiting})"
            assert await ask(postgres, f"SELECT count(*) {held}") == 0
            await writer.commit()
        await upgrade

    async def test_a_writer_goes_on_while_an_index_is_built(self, postgres: AsyncEngine):
        await create(postgres, LATEST)
        async with building_an_index(postgres) as upgrade, patience():
            await run(postgres, "UPDATE steps SET output = output", "UPDATE threads SET name = 'new'")
            assert not upgrade.done()
        await upgrade
        assert await is_complete(postgres)

    async def test_a_listener_that_begins_transactions_does_no_harm(self, sqlite: AsyncEngine):
        await create(sqlite, V2_0)

        @sa.event.listens_for(sqlite.sync_engine, "connect")
        def _connect(connection: Any, _record: Any) -> None:
            connection.isolation_level = None

        @sa.event.listens_for(sqlite.sync_engine, "begin")
        def _begin(connection: sa.Connection) -> None:
            connection.exec_driver_sql("BEGIN")

        await sqlite.dispose()
        await migrations.upgrade(sqlite)
        assert await is_complete(sqlite)


@asynccontextmanager
async def building_an_index(postgres: AsyncEngine) -> AsyncIterator[asyncio.Task[list[str]]]:
    """An upgrade that is stuck at an index until the end of the context."""
    async with postgres.connect() as slow:
        await slow.execute(
            sa.text("SELECT txid_current()")
        )  # CREATE INDEX CONCURRENTLY waits for this transaction
        upgrade = asyncio.create_task(migrations.upgrade(postgres))
        while not await ask(postgres, "SELECT count(*) FROM pg_index WHERE NOT indisvalid"):
            assert not upgrade.done()
            await asyncio.sleep(0.02)
        yield upgrade


class TestInterrupted:
    async def test_the_next_run_goes_on(self, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch):
        def fail(*_args: Any) -> int:
            raise sa.exc.OperationalError("UPDATE", {}, Exception("the plug was pulled"))

        await create(engine, V2_0)
        before = await snapshot(engine, V2_0)
        with monkeypatch.context() as patched:
            patched.setattr(work, "fill", fail)
            with pytest.raises(SchemaError, match="plug"):
                await migrations.upgrade(engine)
        assert not await migrations.is_current(engine)
        assert await migrations.upgrade(engine)
        assert await is_complete(engine)
        assert await snapshot(engine, V2_0) == before

    async def test_an_unfinished_index_is_built_anew(self, postgres: AsyncEngine):
        await create(postgres, LATEST)
        name = "forebay_steps_thread"
        async with postgres.connect() as connection:
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            with pytest.raises(sa.exc.IntegrityError):  # several steps are of one thread
                await connection.execute(
                    sa.text(f'CREATE UNIQUE INDEX CONCURRENTLY {name} ON steps ("threadId")')
                )
        lines = await migrations.upgrade(postgres)
        assert f"rebuilt the index {name}" in lines
        definition = await ask(postgres, f"SELECT pg_get_indexdef('{name}'::regclass)")
        assert definition.endswith('("threadId", "createdAt")')
        assert await ask(postgres, "SELECT count(*) FROM pg_index WHERE NOT indisvalid") == 0

    async def test_a_cancelled_upgrade_lets_go_of_the_lock(self, postgres: AsyncEngine):
        await create(postgres, LATEST)
        async with building_an_index(postgres) as upgrade:
            upgrade.cancel()
            with pytest.raises(asyncio.CancelledError):
                await upgrade
        async with patience():
            lines = await migrations.upgrade(postgres)
        assert any(line.startswith("rebuilt the index") for line in lines)
        assert await is_complete(postgres)

    async def test_a_newer_revision_is_left_alone(self, engine: AsyncEngine):
        await migrations.upgrade(engine)
        await run(engine, "UPDATE forebay_migrations SET version_num = '9999'")
        assert not await migrations.is_current(engine)
        with pytest.raises(SchemaError, match="newer forebay"):
            await migrations.upgrade(engine)


class TestWhatAnOperatorMustDecide:
    async def test_identifiers_that_occur_twice(self, engine: AsyncEngine):
        await create_without_unique(engine)
        async with engine.begin() as connection:
            for number, identifier in enumerate(["ann", "ann", "eve", "eve", "joe"], start=20):
                row = {"id": an_id("users", number), "identifier": identifier, "metadata": {}}
                await insert(connection, "users", row, list(row))
        before = await fingerprint(engine)
        with pytest.raises(SchemaError, match="2 identifiers in more than one row"):
            await migrations.upgrade(engine)
        assert await fingerprint(engine) == before

    async def test_identifiers_become_unique(self, engine: AsyncEngine):
        await create_without_unique(engine)
        assert "created the index forebay_users_identifier" in await migrations.upgrade(engine)
        await run(
            engine,
            f"INSERT INTO users (id, identifier, metadata) VALUES ('{an_id('users', 7)}', 'ann', '{{}}')",
        )
        with pytest.raises(sa.exc.IntegrityError):
            await run(
                engine,
                f"INSERT INTO users (id, identifier, metadata) VALUES ('{an_id('users', 8)}', 'ann', '{{}}')",
            )

    async def test_wrong_types_are_told_with_the_statements_that_mend_them(self, postgres: AsyncEngine):
        loose = OldSchema("no foreign keys", LATEST.optional, foreign_keys=False)
        await create(postgres, loose)
        before = await snapshot(postgres, loose)
        await run(
            postgres,
            'ALTER TABLE elements ALTER COLUMN "props" TYPE TEXT',
            'ALTER TABLE steps ALTER COLUMN "id" TYPE TEXT',
            'ALTER TABLE users ALTER COLUMN "metadata" TYPE JSON',
            'ALTER TABLE threads ALTER COLUMN "tags" TYPE JSONB USING to_jsonb("tags")',
        )
        unchanged = await fingerprint(postgres)
        with pytest.raises(SchemaError) as raised:
            await migrations.upgrade(postgres)
        assert await fingerprint(postgres) == unchanged
        message = str(raised.value)
        for found in (
            'users."metadata" is JSON',
            'steps."id" is TEXT and must be UUID',
            'threads."tags" is JSONB',
        ):
            assert found in message
        await run(postgres, *re.findall(r"(?:ALTER TABLE|UPDATE) [^;]+;", message))
        await migrations.upgrade(postgres)
        assert await is_complete(postgres)
        assert await snapshot(postgres, loose) == before

    async def test_types_that_do_as_well_are_left_alone(self, postgres: AsyncEngine):
        await create(postgres, LATEST)
        await run(
            postgres,
            'ALTER TABLE steps ALTER COLUMN "name" TYPE VARCHAR(400)',
            'ALTER TABLE feedbacks ALTER COLUMN "value" TYPE SMALLINT',
            'ALTER TABLE threads ALTER COLUMN "tags" TYPE VARCHAR[]',
        )
        await migrations.upgrade(postgres)

    async def test_another_applications_tables(self, engine: AsyncEngine):
        await run(engine, "CREATE TABLE users (id INTEGER PRIMARY KEY, email TEXT)")
        with pytest.raises(SchemaError, match=r'users has no "identifier", "metadata".*another schema'):
            await migrations.upgrade(engine)

    async def test_a_table_without_a_key(self, engine: AsyncEngine):
        statements = [statement.replace(" PRIMARY KEY", "") for statement in LATEST.ddl()[-1:]]
        await run(engine, re.sub(r" REFERENCES \S+ ON DELETE CASCADE", "", statements[0]))
        with pytest.raises(SchemaError, match="ALTER TABLE feedbacks ADD PRIMARY KEY"):
            await migrations.upgrade(engine)

    async def test_columns_that_refuse_inserts_are_told(self, engine: AsyncEngine):
        ddl = [
            statement.replace('"url" TEXT', '"url" TEXT NOT NULL, "tenant" TEXT NOT NULL')
            for statement in LATEST.ddl()
        ]
        await run(engine, *ddl)
        warnings = [line for line in await migrations.upgrade(engine) if line.startswith("warning: ")]
        assert [line.split()[1] for line in warnings] == ['elements."url"', 'elements."tenant"']


async def create_without_unique(engine: AsyncEngine) -> None:
    await run(engine, *(statement.replace(" UNIQUE", "") for statement in LATEST.ddl()))


class TestRights:
    @pytest.fixture
    async def visitor(self, postgres_url: str, postgres: AsyncEngine) -> AsyncIterator[AsyncEngine]:
        """A user with every right on the rows, and none on the tables."""
        role = f"visitor_{uuid4().hex}"
        await run(postgres, f"CREATE ROLE {role}")
        try:
            async with opened(postgres_url, connect_args={"server_settings": {"role": role}}) as engine:
                yield engine
        finally:
            await run(postgres, f"DROP OWNED BY {role}", f"DROP ROLE {role}")

    async def grant(self, postgres: AsyncEngine, visitor: AsyncEngine, rights: str) -> None:
        role = await ask(visitor, "SELECT current_user")
        await run(postgres, f"GRANT {rights} TO {role}")

    async def test_not_the_owner(self, postgres: AsyncEngine, visitor: AsyncEngine):
        await create(postgres, LATEST)
        await self.grant(postgres, visitor, "ALL ON ALL TABLES IN SCHEMA public")
        await self.grant(postgres, visitor, "ALL ON SCHEMA public")
        before = await fingerprint(postgres)
        with pytest.raises(AccessError, match=r"does not own users, threads, .*as their owner") as raised:
            await migrations.upgrade(visitor)
        assert raised.value.sqlstate == "42501"
        assert await fingerprint(postgres) == before

    async def test_no_right_to_create(self, postgres: AsyncEngine, visitor: AsyncEngine):
        await run(postgres, "REVOKE CREATE ON SCHEMA public FROM PUBLIC")
        with pytest.raises(AccessError, match="permission denied for schema public"):
            await migrations.upgrade(visitor)

    async def test_no_right_to_look(self, postgres: AsyncEngine, visitor: AsyncEngine):
        await migrations.upgrade(postgres)
        with pytest.raises(AccessError):
            await migrations.is_current(visitor)

    async def test_a_read_only_file(self, sqlite_url: str, sqlite: AsyncEngine):
        await create(sqlite, LATEST)
        before = await fingerprint(sqlite)
        path = sa.make_url(sqlite_url).database
        async with opened(f"sqlite:///file:{path}?mode=ro&uri=true") as read_only:
            with pytest.raises(AccessError, match="read-only"):
                await migrations.upgrade(read_only)
            assert not await migrations.is_current(read_only)
        assert await fingerprint(sqlite) == before

    async def test_no_server(self):
        async with opened("postgresql://nobody@127.0.0.1:1/none") as engine:
            with pytest.raises(TransientError, match="can't be reached"):
                await migrations.upgrade(engine)
            with pytest.raises(TransientError, match="can't be reached"):
                await migrations.is_current(engine)


class TestNeighbours:
    async def test_the_applications_own_alembic_history_stays(self, engine: AsyncEngine):
        await run(
            engine,
            "CREATE TABLE alembic_version (version_num TEXT)",
            "INSERT INTO alembic_version VALUES ('a')",
        )
        await migrations.upgrade(engine)
        assert await ask(engine, "SELECT version_num FROM alembic_version") == "a"

    async def test_the_schema_is_that_of_the_search_path(self, postgres_url: str, postgres: AsyncEngine):
        await create(postgres, V2_0)
        before = await fingerprint(postgres)
        await run(postgres, "CREATE SCHEMA tenant")
        async with opened(
            postgres_url, connect_args={"server_settings": {"search_path": "tenant"}}
        ) as tenant:
            await create(tenant, LATEST)
            await migrations.upgrade(tenant)
            assert await is_complete(tenant)
            assert await newest_steps(tenant) == NEWEST_STEPS
        assert await fingerprint(postgres) == before


Layer = Callable[[AsyncEngine], Any]


@pytest.fixture
def layer() -> Layer:
    """Chainlit's own layer on an engine's database, in a context such as an HTTP request has."""
    from chainlit.context import init_http_context
    from chainlit.data.sql_alchemy import SQLAlchemyDataLayer

    def on(engine: AsyncEngine) -> Any:
        init_http_context()
        return SQLAlchemyDataLayer(engine.url.render_as_string(hide_password=False))

    return on


async def use_chainlits_layer(layer: Any) -> None:
    """Write and read one of everything, with what the present Chainlit passes."""
    from chainlit.step import Step
    from chainlit.types import Feedback
    from chainlit.user import User

    try:
        user = await layer.create_user(User(identifier="new user", metadata={"role": "admin"}))
        thread_id = str(uuid4())
        await layer.update_thread(thread_id, name="new thread", user_id=user.id, metadata={"a": 1})
        step = Step(name="tool", type="tool", thread_id=thread_id)
        step.output = "first"
        await layer.create_step(step.to_dict())
        step.output = "second"
        await layer.update_step(step.to_dict())
        await layer.upsert_feedback(Feedback(forId=step.id, threadId=thread_id, value=1, comment="good"))
        thread = await layer.get_thread(thread_id)
        assert (thread["name"], thread["userIdentifier"]) == ("new thread", "new user")
        assert [found["output"] for found in thread["steps"]] == ["second"]
        assert thread["steps"][0]["feedback"]["comment"] == "good"
        await layer.delete_thread(thread_id)
        assert await layer.get_thread(thread_id) is None
    finally:
        await layer.close()
