"""Failovers: the standby takes over, with and without what was committed last, behind a name that lags.

What was acknowledged is in the database that answers in the end, once, and never gone back; reads of the standby show
what was written before, whichever server that is by now.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import sys
import time
from collections.abc import AsyncIterator

import pytest
from chainlit.types import ThreadDict

from forebay import ForebayDataLayer, TransientError
from tests.faults.conftest import MakeLayer
from tests.faults.load import Audit, Load, a_seed, audited, repeated
from tests.integration.contract import accounted_for
from tests.support.pair import Lag, Pair
from tests.support.patience import patience
from tests.support.patroni import Patroni

_ROUNDS = int(os.environ.get("FOREBAY_TEST_FAILOVERS", "3"))
_CHECKED = 20  # at most so many threads are read after each failover


@pytest.fixture(params=["asynchronous", "synchronous"])
async def pair(request: pytest.FixtureRequest) -> AsyncIterator[Pair]:
    async with Pair(synchronous=request.param == "synchronous") as pair:
        yield pair


@pytest.mark.timeout(600 + 60 * _ROUNDS)
async def test_failovers_lose_nothing(pair: Pair, make_journaled: MakeLayer) -> None:
    rng = random.Random(a_seed())
    values = {"read_url": pair.read_url, "auto_migrate": True, "metrics_address": "off"}
    layer = make_journaled(
        pair.url, journal_keep=3600, **values
    )  # a slow machine takes its time to fail over
    await layer._store.prepare()
    await audited(pair.direct_url)
    kinds = [(lag, crash) for lag in Lag for crash in (True, False)]
    rng.shuffle(kinds)
    waits = []
    async with Load(layer, pause=0.05) as load:
        for number in range(_ROUNDS):
            lag, crash = kinds[number % len(kinds)]
            parted = crash and not pair.synchronous and rng.random() < 0.7
            await load.goes_on(100)
            if parted:
                await pair.part()
                await load.goes_on(100)
            await pair.fail_over(lag, crash=crash)
            await load.goes_on(50)  # the journal takes them
            waits.append(await _writes_resume(layer, pair))
            if lag is not Lag.FORMER:
                await pair.come_back()
            await pair.followed()
            await _own_writes_are_seen(layer, load, rng)
            said = f"failover {number + 1}: {lag.value}, {'crash' if crash else 'stop'}"
            sys.stdout.write(
                f"{said}{', parted' if parted else ''}: writes went on after {waits[-1]:.1f} s\n"
            )
    await _assert_nothing_lost(layer, load, Audit(pair.direct_url), waits)


@pytest.mark.timeout(900)
async def test_a_leader_that_patroni_replaces(make_journaled: MakeLayer) -> None:
    """Both servers are in the URL, and etcd says which of them is the primary."""
    with Patroni() as cluster:
        database = await asyncio.to_thread(cluster.create_database)
        url = cluster.url(database)
        layer = make_journaled(url, read_url=url, auto_migrate=True, journal_keep=3600, metrics_address="off")
        await layer._store.prepare()
        await audited(cluster.nodes[0].url(database))
        waits, rng = [], random.Random(a_seed())
        async with Load(layer, pause=0.05) as load:
            for _ in range(2):
                await load.goes_on(200)
                leader = await asyncio.to_thread(lambda: cluster.leader)
                await asyncio.to_thread(leader.kill)
                follower = next(node for node in cluster.nodes if node is not leader)
                await load.goes_on(50)
                await asyncio.to_thread(cluster.until, follower.leads)
                waits.append(await _written(layer, layer._engine.counts.written.total()))
                await asyncio.to_thread(leader.start)
                await asyncio.to_thread(cluster.until, follower.is_followed)
                await _own_writes_are_seen(layer, load, rng)
        leader = await asyncio.to_thread(lambda: cluster.leader)
        await _assert_nothing_lost(layer, load, Audit(leader.url(database)), waits)


async def _assert_nothing_lost(layer: ForebayDataLayer, load: Load, audit: Audit, waits: list[float]) -> None:
    async with patience():
        await layer.flush()
    stored, applied = await audit.stored(), await audit.applied()
    lost = {key: version for key, version in load.kept.items() if stored.get(key) != version}
    counts = layer._engine.counts
    sys.stdout.write(
        f"{len(waits)} failovers, {load.writes} writes: {len(lost)} lost, {len(repeated(applied.values()))} twice or"
        f" backwards; writes went on after {statistics.median(waits):.1f} s, at most {max(waits):.1f} s;"
        f" alarms {dict(counts.checkpoint_alarms)}, reads {dict(counts.replica_reads)}\n"
    )
    assert lost == {}
    assert stored.keys() == load.kept.keys()
    assert repeated(applied.values()) == []
    assert accounted_for(layer), repr(layer)
    assert counts.dead_lettered.total() == counts.dropped.total() == counts.refused.total() == 0
    assert counts.checkpoint_alarms.keys() <= {"gone_back"}
    assert counts.replica_reads["replica"] > 0
    await layer.close()
    assert list(layer.settings.journal_dir.iterdir()) == []


async def _writes_resume(layer: ForebayDataLayer, pair: Pair) -> float:
    """The name leads to the new primary; after how many seconds something is written there."""
    written = layer._engine.counts.written.total()
    pair.arrive()
    return await _written(layer, written)


async def _written(layer: ForebayDataLayer, before: int) -> float:
    """Return when more than so many rows are written; after how many seconds."""
    began = time.monotonic()
    async with patience():
        while layer._engine.counts.written.total() == before:  # noqa: ASYNC110 - a counter has nothing to wait on
            await asyncio.sleep(0.01)
    return time.monotonic() - began


async def _own_writes_are_seen(layer: ForebayDataLayer, load: Load, rng: random.Random) -> None:
    """By whichever server answers."""
    async with patience():
        threads = sorted(set(load.thread_of.values()))
        for thread_id in rng.sample(threads, min(_CHECKED, len(threads))):
            acknowledged = {
                step_id: version
                for step_id, version in load.acknowledged.items()
                if load.thread_of[step_id] == thread_id
            }
            thread = await _read(layer, thread_id)
            seen = {step["id"]: int(step["output"].split()[0]) for step in thread["steps"]} if thread else {}
            assert {key: n for key, n in acknowledged.items() if seen.get(key, -1) < n} == {}


async def _read(layer: ForebayDataLayer, thread_id: str) -> ThreadDict | None:
    while True:
        try:
            return await layer.get_thread(thread_id)
        except TransientError:  # it says so
            await asyncio.sleep(0.05)
