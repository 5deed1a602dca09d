"""A pooler between forebay and the database, in trouble: killed, paused, with another server's start behind it."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from forebay import ForebayDataLayer, Settings, TransientError
from forebay.database.store import Store
from tests.faults.conftest import MakeLayer
from tests.faults.load import Load, a_seed, assert_exactly_once, audited
from tests.integration.contract import until
from tests.support.patience import patience
from tests.support.pgbouncer import Pgbouncer
from tests.support.postgres import PostgresServer

_MODES = {"session": "", "transaction": "?statement_cache_size=0"}


class _Trouble:
    """What can become of a pooler, and of the server behind it."""

    def __init__(self, pooler: Pgbouncer, server: PostgresServer, load: Load) -> None:
        self._pooler = pooler
        self._server = server
        self._load = load

    async def killed(self) -> None:
        """And started again after a while."""
        await asyncio.to_thread(self._pooler.kill)
        await self._load.goes_on()
        await asyncio.to_thread(self._pooler.start)

    async def paused(self) -> None:
        """As for maintenance; those whose session lasts go on."""
        self._pooler.pause()
        await self._load.goes_on()
        self._pooler.resume()

    async def server_restarted(self) -> None:
        """The pooler stays, and with it the connections to it; what was prepared at the server is gone."""
        await asyncio.to_thread(self._server.restart)

    async def server_crashed(self) -> None:
        """So that what it was at is known to nobody."""
        await asyncio.to_thread(self._server.crash)
        await self._load.goes_on()
        await asyncio.to_thread(self._server.start)

    async def paused_while_it_restarts(self) -> None:
        """As an operator does it, so that nobody sees an error."""
        self._pooler.pause()
        await self._load.goes_on()
        await asyncio.to_thread(self._server.restart)
        self._pooler.resume()


_Cause = Callable[[_Trouble], Awaitable[None]]
_TROUBLES: list[_Cause] = [
    _Trouble.killed,
    _Trouble.paused,
    _Trouble.server_restarted,
    _Trouble.server_crashed,
    _Trouble.paused_while_it_restarts,
]


@pytest.fixture(params=_MODES)
async def pooler(
    crashable_server: PostgresServer, request: pytest.FixtureRequest
) -> AsyncIterator[Pgbouncer]:
    url = crashable_server.create_database()
    store = Store(url, Settings())
    await store.migrate()
    await store.close()
    size = 3 if request.param == "transaction" else 8
    with Pgbouncer(url, request.param, pool_size=size) as pooler:
        yield pooler


@pytest.mark.parametrize("trouble", _TROUBLES, ids=lambda trouble: trouble.__name__)
async def test_writes_and_reads_go_on_behind_it(
    pooler: Pgbouncer, crashable_server: PostgresServer, make_journaled: MakeLayer, trouble: _Cause
) -> None:
    rng = random.Random(a_seed())
    audit = await audited(pooler.direct_url)
    url = pooler.url + _MODES[pooler.mode]
    layer = make_journaled(url, statement_timeout=5, connect_timeout=5)
    async with Load(layer) as load:
        troubles = _Trouble(pooler, crashable_server, load)
        for _ in range(2):
            await load.goes_on(100)
            await trouble(troubles)
            await _goes_on(layer)
            await _shows(layer, rng.sample(sorted(load.acknowledged), 10), load)
    await assert_exactly_once(layer, load, audit)


async def _goes_on(layer: ForebayDataLayer) -> None:
    counts = layer._engine.counts
    written = counts.written.total()
    await until(lambda: counts.written.total() > written)


async def _shows(layer: ForebayDataLayer, step_ids: list[str], load: Load) -> None:
    """Reads go on, too, and show what was acknowledged before."""
    async with patience():
        for step_id in step_ids:
            acknowledged = load.acknowledged[step_id]
            while True:
                with contextlib.suppress(TransientError):  # it says so
                    step = await layer.get_step(step_id)
                    assert step is not None
                    assert int(step["output"].split()[0]) >= acknowledged
                    break
                await asyncio.sleep(0.05)
