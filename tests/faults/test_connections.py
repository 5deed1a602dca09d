"""Connections that are not what they were: forgotten, aged, of another role, with other settings, too many."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator

import pytest
import sqlalchemy as sa

from forebay import ForebayDataLayer, Settings, TransientError
from forebay.database.connections import drivers, fitness
from forebay.database.store import Store
from tests.faults.conftest import MakeLayer
from tests.faults.load import Audit, versioned
from tests.integration.contract import until
from tests.support.patience import patience
from tests.support.postgres import PostgresServer, Standby, name_of
from tests.support.proxy import Proxy


@pytest.fixture
async def proxy(migrated_postgres_url: str) -> AsyncIterator[Proxy]:
    async with Proxy.before(migrated_postgres_url) as proxy:
        yield proxy


async def _write(layer: ForebayDataLayer, thread_id: str, version: int) -> None:
    await layer.create_step(versioned(str(uuid.uuid4()), thread_id, version))


async def _connected(layer: ForebayDataLayer, readers: int) -> str:
    """Its writer and so many readers have connections; a thread of one step."""
    thread_id = str(uuid.uuid4())
    await _write(layer, thread_id, 0)
    await layer.flush()
    await asyncio.gather(*(layer.get_thread(thread_id) for _ in range(readers)))
    return thread_id


async def test_connections_that_the_network_forgot_cost_one_wait(
    proxy: Proxy, migrated_postgres_url: str, make_journaled: MakeLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No time limit is reached: the server says that their sessions have nothing to do."""
    monkeypatch.setattr(drivers, "SILENCE", 0.3)
    monkeypatch.setattr(fitness, "_AGAIN", 0.1)
    layer = make_journaled(proxy.url(migrated_postgres_url), statement_timeout=3600)
    thread_id = await _connected(layer, 8)
    proxy.freeze(new=False)
    async with patience():
        assert await layer.get_thread(thread_id) is not None
        assert layer._engine.counts.retries == {}
        await _write(layer, thread_id, 1)
        await layer.flush()
        found = await asyncio.gather(*(layer.get_thread(thread_id) for _ in range(8)))
    assert [len(thread["steps"]) for thread in found if thread is not None] == [2] * 8
    assert layer._engine.counts.retries == {}


async def test_a_statement_that_is_slow_is_left_alone(
    migrated_postgres_url: str, make_journaled: MakeLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drivers, "SILENCE", 0.05)
    monkeypatch.setattr(fitness, "SILENCE", 0.05)
    monkeypatch.setattr(fitness, "_AGAIN", 0.05)
    layer = make_journaled(migrated_postgres_url)
    thread_id = await _connected(layer, 1)
    locked = asyncio.Event()

    async def hold() -> None:
        engine = layer.engine
        async with engine.begin() as connection:
            await connection.execute(sa.text("LOCK TABLE threads IN ACCESS EXCLUSIVE MODE"))
            locked.set()
            await connection.execute(sa.text("SELECT pg_sleep(1.5)"))

    holding = asyncio.create_task(hold())
    await locked.wait()
    assert await layer.get_thread(thread_id) is not None
    await holding


async def test_a_question_that_is_never_answered_ends(proxy: Proxy, migrated_postgres_url: str) -> None:
    """The first one, a statement of the application's own, and a read."""
    url = proxy.url(migrated_postgres_url)
    store = Store(url, Settings(statement_timeout=1, connect_timeout=1))
    try:
        proxy.freeze()
        async with patience():
            with pytest.raises(TransientError):
                await store.prepare()
            proxy.thaw()
            assert await store.execute_sql("SELECT 1 AS one", {}) == [{"one": 1}]
            for _ in range(3):
                with pytest.raises(TransientError):
                    await store.execute_sql("SELECT 1 FROM pg_sleep(3600)", {})
            proxy.freeze()
            with pytest.raises(TransientError):
                await store.position("a")
    finally:
        proxy.thaw()
        await store.close()


async def test_what_is_too_old_is_replaced(migrated_postgres_url: str) -> None:
    store = Store(migrated_postgres_url, Settings())
    pid = "SELECT pg_backend_pid() AS pid"
    try:
        seen = await store.execute_sql(pid, {})
        assert await store.execute_sql(pid, {}) == seen
        assert store._connections._spare is not None
        store._connections._spare.driver.old_at = 0.0  # type: ignore[attr-defined]
        assert await store.execute_sql(pid, {}) != seen
    finally:
        await store.close()


async def test_a_session_that_has_lost_its_statements_is_replaced(
    migrated_postgres_url: str, make_journaled: MakeLayer
) -> None:
    """As by a pooler that resets it, or by a DISCARD ALL of the application's own."""
    layer = make_journaled(migrated_postgres_url)
    thread_id = await _connected(layer, 1)
    writer, reader = layer._store._writer, layer._store._connections._spare
    assert writer is not None
    assert reader is not None
    for held in (writer, reader):
        await held.driver.raw.execute("DEALLOCATE ALL")
    with pytest.raises(TransientError, match="prepared statement"):
        await layer.get_thread(thread_id)
    assert await layer.get_thread(thread_id) is not None
    await _write(layer, thread_id, 1)
    async with patience():
        await layer.flush()
    assert layer._engine.counts.retries == {"TransientError": 1}
    assert layer._store._writer is not writer


async def test_a_setting_of_the_database_that_is_changed_under_way(
    postgres_server: PostgresServer, migrated_postgres_url: str, make_journaled: MakeLayer
) -> None:
    """No session is ended: each would keep what it began with."""
    database = name_of(migrated_postgres_url)
    elsewhere = Audit(postgres_server.url())
    await elsewhere.fetch(f'ALTER DATABASE "{database}" SET default_transaction_read_only = on')
    layer = make_journaled(migrated_postgres_url)
    thread_id = str(uuid.uuid4())
    await _write(layer, thread_id, 0)
    await until(lambda: "25006" in str(layer._engine.failure))
    await elsewhere.fetch(f'ALTER DATABASE "{database}" RESET default_transaction_read_only')
    async with patience():
        await layer.flush()
    await elsewhere.fetch(f'ALTER DATABASE "{database}" SET search_path = nowhere')
    await Audit(migrated_postgres_url).fetch("SELECT 1")
    await layer._store._drop_writer()
    await _write(layer, thread_id, 1)
    await until(lambda: layer._engine.failure is not None)
    await elsewhere.fetch(f'ALTER DATABASE "{database}" RESET search_path')
    async with patience():
        await layer.flush()
    assert len(await Audit(migrated_postgres_url).stored()) == 2


async def test_a_name_that_leads_to_the_standby_for_a_while(make_journaled: MakeLayer) -> None:
    """As after a failover, when the old primary is back beside the new one, and the name lags behind."""
    with PostgresServer(own=True) as primary, Standby(primary) as standby:
        url = primary.create_database()
        async with Proxy.before(url) as proxy:
            layer = make_journaled(proxy.url(url), auto_migrate=True)
            thread_id = await _connected(layer, 3)
            await asyncio.to_thread(standby.catch_up)
            proxy.lead_to(standby.url(name_of(url)))
            proxy.reset()
            await _write(layer, thread_id, 1)
            await until(lambda: "is a standby at present" in str(layer._engine.failure))
            with pytest.raises(TransientError):
                await layer.get_thread(thread_id)
            proxy.lead_to(url)
            async with patience():
                await layer.flush()
            found = await layer.get_thread(thread_id)
            assert found is not None
            assert len(found["steps"]) == 2
            await layer.close()


async def test_where_there_is_room_for_one_connection_all_share_it(
    postgres_server: PostgresServer, migrated_postgres_url: str, make_journaled: MakeLayer
) -> None:
    role = f"few_{uuid.uuid4().hex[:8]}"
    database = Audit(migrated_postgres_url)
    await database.fetch(f"CREATE ROLE {role} LOGIN CONNECTION LIMIT 1")
    await database.fetch(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}")
    url = sa.make_url(migrated_postgres_url).set(username=role).render_as_string(hide_password=False)
    layer = make_journaled(url, metrics_address="off")
    threads = [str(uuid.uuid4()) for _ in range(10)]
    async with patience():
        for turn in range(3):
            await asyncio.gather(*(_write(layer, thread_id, turn) for thread_id in threads))
            found = await asyncio.gather(*(layer.get_thread(thread_id) for thread_id in threads))
            assert {len(thread["steps"]) for thread in found if thread is not None} == {turn + 1}
    await layer.close()
    await database.fetch(f"DROP OWNED BY {role}")
    await database.fetch(f"DROP ROLE {role}")
