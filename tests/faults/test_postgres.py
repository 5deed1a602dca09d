"""A PostgreSQL that crashes, ends its sessions, takes long to come back, has no room, or is read-only."""

from __future__ import annotations

import asyncio
import random
import uuid

import pytest
import sqlalchemy as sa

from forebay import ForebayDataLayer, TransientError
from tests.faults.conftest import MakeLayer
from tests.faults.load import LONG, Audit, Load, a_seed, assert_exactly_once, audited, versioned
from tests.integration.contract import until
from tests.support.postgres import PostgresServer, name_of

_RESTART = 30.0 if LONG else 3.0  # seconds


class _Server:
    """The server's owner, who does from another database what owners do."""

    def __init__(self, server: PostgresServer, url: str) -> None:
        self.server = server
        self.url = url
        self._database = name_of(url)
        self._elsewhere = Audit(server.url())

    async def end_sessions(self) -> None:
        """End every session of the layer's database."""
        await self._elsewhere.fetch(
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{self._database}'"
        )

    async def alter(self, setting: str) -> None:
        """Change the layer's database; it holds for sessions that begin then."""
        await self._elsewhere.fetch(f'ALTER DATABASE "{self._database}" {setting}')
        await self.end_sessions()

    async def a_role(self, name: str, limit: int) -> str:
        """A role that may do all in the tables, in at most `limit` sessions; the database's URL with it."""
        await self._elsewhere.fetch(f"CREATE ROLE {name} LOGIN CONNECTION LIMIT {limit}")
        await Audit(self.url).fetch(
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {name}"
        )
        await Audit(self.url).fetch(f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {name}")
        return sa.make_url(self.url).set(username=name).render_as_string(hide_password=False)

    async def let_in(self, name: str) -> None:
        """Lift a role's limit."""
        await self._elsewhere.fetch(f"ALTER ROLE {name} CONNECTION LIMIT -1")


@pytest.fixture
def owner(crashable_server: PostgresServer) -> _Server:
    return _Server(crashable_server, crashable_server.create_database())


@pytest.fixture
async def layer(owner: _Server, make_journaled: MakeLayer) -> ForebayDataLayer:
    """A layer on a migrated database, connected."""
    layer = make_journaled(owner.url, auto_migrate=True)
    await layer.execute_sql("SELECT 1", {})
    return layer


@pytest.fixture
async def audit(owner: _Server, layer: ForebayDataLayer) -> Audit:
    return await audited(owner.url)


async def _assert_reads_fail(layer: ForebayDataLayer, because: str | None = None) -> None:
    await until(lambda: layer._engine.failure is not None)
    with pytest.raises(TransientError, match=because):
        await layer.execute_sql("SELECT 1", {})


async def test_crashes_in_mid_load(layer: ForebayDataLayer, owner: _Server, audit: Audit) -> None:
    rng = random.Random(a_seed())
    async with Load(layer, deletes=True) as load:
        for _ in range(3):
            await asyncio.sleep(rng.uniform(0, 0.1))
            await asyncio.to_thread(owner.server.crash)
            await _assert_reads_fail(layer)
            await asyncio.to_thread(owner.server.start)
            await load.goes_on()
    await assert_exactly_once(layer, load, audit)


async def test_a_restart_that_takes_long(layer: ForebayDataLayer, owner: _Server, audit: Audit) -> None:
    async with Load(layer, pause=0.01) as load:
        await asyncio.to_thread(owner.server.stop)
        back = asyncio.create_task(asyncio.sleep(_RESTART))
        while not back.done():
            await load.goes_on()
            await _assert_reads_fail(layer)
        await asyncio.to_thread(owner.server.start)
        await load.goes_on()
    await assert_exactly_once(layer, load, audit)


async def test_sessions_that_are_ended_in_a_loop(
    layer: ForebayDataLayer, owner: _Server, audit: Audit
) -> None:
    rng = random.Random(a_seed())
    async with Load(layer, deletes=True) as load:
        for _ in range(30):
            await load.goes_on(1)
            await asyncio.sleep(rng.uniform(0, 0.03))
            await owner.end_sessions()
    assert layer._engine.counts.retries.total() > 0
    await assert_exactly_once(layer, load, audit)


async def test_connections_that_ended_while_nobody_used_them_cost_no_failure(
    layer: ForebayDataLayer, owner: _Server
) -> None:
    thread_id = str(uuid.uuid4())
    await layer.create_step(versioned(str(uuid.uuid4()), thread_id, 0))
    await asyncio.gather(*(layer.get_thread(thread_id) for _ in range(10)))
    await owner.end_sessions()
    await asyncio.sleep(0.1)  # the driver notices

    await layer.create_step(versioned(str(uuid.uuid4()), thread_id, 0))
    thread = await layer.get_thread(thread_id)

    assert thread is not None
    assert len(thread["steps"]) == 2
    assert layer._engine.counts.retries.total() == 0


async def test_a_server_without_room_for_a_connection_at_start(
    layer: ForebayDataLayer, owner: _Server, audit: Audit, make_journaled: MakeLayer
) -> None:
    role = f"forebay_{uuid.uuid4().hex}"
    late = make_journaled(await owner.a_role(role, limit=0), journal_dir=layer.settings.journal_dir / "late")
    async with Load(late) as load:
        await _assert_reads_fail(late, "FOREBAY_POOL_SIZE.*53300")
        await load.goes_on(50)
        await owner.let_in(role)
    await assert_exactly_once(late, load, audit)


async def test_a_database_that_is_read_only_for_a_while(
    layer: ForebayDataLayer, owner: _Server, audit: Audit
) -> None:
    """As a standby is before it takes over."""
    async with Load(layer) as load:
        await owner.alter("SET default_transaction_read_only = on")
        await until(lambda: "25006" in str(layer._engine.failure))
        await _assert_reads_fail(layer, "read-only")
        await load.goes_on(50)
        await owner.alter("RESET default_transaction_read_only")
        await load.goes_on()
    await assert_exactly_once(layer, load, audit)
