"""A network that resets, stalls, refuses, and breaks exactly where it hurts: at the commit."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import AsyncIterator

import pytest

from forebay import ForebayDataLayer, TransientError
from tests.faults.conftest import MakeLayer
from tests.faults.load import Audit, Load, a_seed, assert_exactly_once, audited, versioned
from tests.integration.contract import until
from tests.support.patience import PATIENCE
from tests.support.proxy import Cut, Proxy

_STATEMENT_TIMEOUT = 0.5


@pytest.fixture
async def audit(migrated_postgres_url: str) -> Audit:
    return await audited(migrated_postgres_url)


@pytest.fixture
async def proxy(migrated_postgres_url: str) -> AsyncIterator[Proxy]:
    async with Proxy.before(migrated_postgres_url) as proxy:
        yield proxy


@pytest.fixture
async def layer(
    migrated_postgres_url: str, audit: Audit, proxy: Proxy, make_journaled: MakeLayer
) -> ForebayDataLayer:
    """A layer behind the proxy, connected."""
    layer = make_journaled(proxy.url(migrated_postgres_url), statement_timeout=_STATEMENT_TIMEOUT)
    await layer.execute_sql("SELECT 1", {})
    return layer


def _retries(layer: ForebayDataLayer) -> int:
    return layer._engine.counts.retries.total()


async def test_connections_that_are_reset_in_mid_load(
    layer: ForebayDataLayer, proxy: Proxy, audit: Audit
) -> None:
    rng = random.Random(a_seed())
    async with Load(layer, deletes=True) as load:
        for _ in range(20):
            await load.goes_on(1)
            await asyncio.sleep(rng.uniform(0, 0.03))
            proxy.reset()
    assert _retries(layer) > 0
    await assert_exactly_once(layer, load, audit)


async def test_a_network_that_stalls_for_longer_than_a_statement_may_take(
    layer: ForebayDataLayer, proxy: Proxy, audit: Audit
) -> None:
    async with Load(layer) as load:
        proxy.freeze()
        await until(lambda: layer._engine.failure is not None)
        with pytest.raises(TransientError):
            await layer.get_thread(next(iter(load.thread_of.values())))
        await load.goes_on(50)
        proxy.reset()
        proxy.thaw()
        await load.goes_on()
    await assert_exactly_once(layer, load, audit)


async def test_a_statement_that_arrives_after_it_was_given_up(
    layer: ForebayDataLayer, proxy: Proxy, audit: Audit
) -> None:
    """One connection stalls; its statement reaches the server when newer ones are in already."""
    thread_id, step_id = str(uuid.uuid4()), str(uuid.uuid4())
    load = Load(layer)
    load.thread_of[step_id] = thread_id

    async def write(version: int) -> None:
        await layer.update_step(versioned(step_id, thread_id, version))
        load.acknowledged[step_id], load.writes = version, version + 1

    await write(0)
    await layer.flush()
    proxy.freeze(new=False)
    await write(1)
    await until(lambda: _retries(layer) > 0)
    for version in (2, 3):
        await layer.flush()
        await write(version)
    await layer.flush()
    proxy.thaw()
    await proxy.passed_on()
    await assert_exactly_once(layer, load, audit)


async def test_refused_connections(layer: ForebayDataLayer, proxy: Proxy, audit: Audit) -> None:
    async with Load(layer) as load:
        await proxy.refuse()
        await until(lambda: _retries(layer) > 2)
        with pytest.raises(TransientError):
            await layer.get_thread(next(iter(load.thread_of.values())))
        await load.goes_on(50)
        await proxy.listen()
        await load.goes_on()
    await assert_exactly_once(layer, load, audit)


@pytest.mark.parametrize("transaction", [False, True], ids=["batch", "transaction"])
@pytest.mark.parametrize("when", [*Cut], ids=[when.value for when in Cut])
async def test_a_connection_that_is_cut_at_a_commit(
    layer: ForebayDataLayer, proxy: Proxy, audit: Audit, when: Cut, transaction: bool
) -> None:
    async with Load(layer, deletes=transaction) as load:
        for _ in range(5):
            await asyncio.wait_for(proxy.cut(when, transaction=transaction), PATIENCE)
            await load.goes_on(5)
    assert _retries(layer) >= 5
    await assert_exactly_once(layer, load, audit)


async def test_a_slow_line(layer: ForebayDataLayer, proxy: Proxy, audit: Audit) -> None:
    proxy.to_server_delay, proxy.to_client_delay = 0.03, 0.02
    async with Load(layer) as load:
        await asyncio.wait_for(proxy.cut(Cut.AFTER), PATIENCE)
        await load.goes_on(100)
    await assert_exactly_once(layer, load, audit)
