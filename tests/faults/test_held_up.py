"""A thread that the database holds up: by a lock that somebody forgot, by a value that takes too long, by an answer
that is about one row. It waits by itself, in its order; the others are written and read meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from chainlit.types import Feedback

from forebay import ForebayDataLayer
from forebay.database.store import Store
from forebay.errors import QueueFull, ThreadHeldUp
from forebay.pipeline.drain import Drain
from forebay.telemetry.collector import Metrics
from tests.faults.conftest import MakeLayer
from tests.faults.load import Audit, audited, repeated, versioned
from tests.integration.contract import accounted_for, rows, stored_step, until
from tests.support.patience import FOR_EVER, PATIENCE

_SLOW = (
    "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.name = 'slow' THEN"
    " PERFORM pg_sleep(100000); END IF; RETURN NEW; END $$",
    "CREATE TRIGGER slow BEFORE INSERT ON steps FOR EACH ROW EXECUTE FUNCTION slow()",
)
# Neither a row's nor the connection's: `object_not_in_prerequisite_state`.
_ODD = (
    "CREATE SEQUENCE odd",
    "CREATE FUNCTION odd() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.name = 'odd' THEN"
    " PERFORM currval('odd'); END IF; RETURN NEW; END $$",
    "CREATE TRIGGER odd BEFORE INSERT ON steps FOR EACH ROW EXECUTE FUNCTION odd()",
)


@asynccontextmanager
async def _held(url: str, *thread_ids: str) -> AsyncIterator[None]:
    """While it lasts, somebody holds the threads' rows."""
    human = await asyncpg.connect(url)
    try:
        async with human.transaction():
            await human.execute(
                "SELECT 1 FROM threads WHERE id = ANY($1::uuid[]) FOR UPDATE", list(thread_ids)
            )
            yield
    finally:
        await human.close()


def _new() -> str:
    return str(uuid.uuid4())


async def _begun(layer: ForebayDataLayer, *thread_ids: str) -> None:
    """These threads are there."""
    for thread_id in thread_ids:
        await layer.create_step(versioned(_new(), thread_id, 0))
    await layer.flush()


async def _is_parked(layer: ForebayDataLayer, threads: int = 1) -> None:
    await until(lambda: len(layer._engine.lanes.open) == threads)


async def _readers_are_told(layer: ForebayDataLayer, thread_id: str) -> None:
    """Once a try of its own has failed; until then they wait for that."""
    await until(lambda: layer._engine.lanes.open[thread_id].failure is not None)
    with pytest.raises(ThreadHeldUp):
        await layer.get_thread(thread_id)


async def _statements(url: str, *statements: str) -> None:
    other = await asyncpg.connect(url)
    for statement in statements:
        await other.execute(statement)
    await other.close()


async def _outputs(audit: Audit, thread_id: str) -> dict[str, str]:
    found = await audit.fetch(f"""SELECT id, output FROM steps WHERE "threadId" = '{thread_id}'""")
    return {str(row["id"]): row["output"].strip() for row in found}


async def _done(layer: ForebayDataLayer) -> None:
    """Everything gets in, once, and nothing is left."""
    await asyncio.wait_for(layer.flush(), PATIENCE)
    assert accounted_for(layer)
    counts = layer._engine.counts
    assert counts.pending == counts.dead_lettered.total() == counts.dropped.total() == 0
    assert counts.checkpoint_alarms.total() == 0
    lanes = layer._engine.lanes
    assert (lanes.open, lanes.size, lanes._rows, lanes.is_full) == ({}, 0, {}, False)
    await layer.close()
    if layer.settings.durability == "journal":
        assert list(layer.settings.journal_dir.iterdir()) == []


@pytest.mark.parametrize("durability", ["journal", "memory", "commit"])
async def test_a_lock_that_somebody_holds_costs_its_thread_alone(
    migrated_postgres_url: str, make_journaled: MakeLayer, durability: str
) -> None:
    audit = await audited(migrated_postgres_url)
    layer = make_journaled(migrated_postgres_url, durability=durability)
    locked, other = _new(), _new()
    await _begun(layer, locked, other)
    step, calls = _new(), []
    async with _held(migrated_postgres_url, locked):
        for version in range(5):
            calls.append(asyncio.create_task(layer.update_step(versioned(step, locked, version))))
            calls.append(asyncio.create_task(layer.update_step(versioned(_new(), locked, 0))))
            await asyncio.sleep(0.01)
        others = [asyncio.create_task(layer.update_step(versioned(_new(), other, n))) for n in range(50)]
        await _is_parked(layer)
        await asyncio.gather(*others)
        seen = await layer.get_thread(other)
        assert seen is not None
        assert len(seen["steps"]) == 51
        await _readers_are_told(layer, locked)
        assert layer._engine.failure is None
        assert layer._engine.counts.parkings == {"lock": 1}
        assert len(await _outputs(audit, locked)) == 1
    await asyncio.gather(*calls)
    await asyncio.wait_for(layer.flush(), PATIENCE)
    assert (await _outputs(audit, locked))[step] == "4"
    seen = await layer.get_thread(locked)
    assert seen is not None
    assert len(seen["steps"]) == 7
    assert repeated((await audit.applied()).values()) == []
    await _done(layer)


async def test_a_value_that_takes_too_long_costs_its_thread_alone(
    migrated_postgres_url: str, make_journaled: MakeLayer
) -> None:
    layer = make_journaled(migrated_postgres_url, statement_timeout=1.5)
    slow, other = _new(), _new()
    await _begun(layer, slow, other)
    await _statements(migrated_postgres_url, *_SLOW)
    bad: Any = {**versioned(_new(), slow, 1), "name": "slow"}
    await asyncio.gather(
        *(layer.create_step(versioned(_new(), other, n)) for n in range(20)),
        layer.create_step(bad),
        *(layer.create_step(versioned(_new(), slow, n)) for n in range(5)),
        *(layer.create_step(versioned(_new(), other, n)) for n in range(20)),
    )
    await _is_parked(layer)
    assert layer._engine.counts.parkings == {"time": 1}
    await asyncio.wait_for(layer.create_step(versioned(_new(), other, 1)), PATIENCE)
    seen = await layer.get_thread(other)
    assert seen is not None
    assert len(seen["steps"]) == 42
    await _readers_are_told(layer, slow)
    await _statements(migrated_postgres_url, "DROP TRIGGER slow ON steps")
    await _done(layer)


async def test_an_answer_that_is_about_one_row_costs_its_thread_alone(
    migrated_postgres_url: str, make_journaled: MakeLayer
) -> None:
    await _statements(migrated_postgres_url, *_ODD)
    layer = make_journaled(migrated_postgres_url)
    threads = [_new() for _ in range(20)]
    steps: list[Any] = [versioned(_new(), thread_id, n) for thread_id in threads for n in range(10)]
    for at in (37, 38, 120):
        steps[at]["name"] = "odd"
    await asyncio.gather(*(layer.create_step(step) for step in steps))
    await _is_parked(layer, 2)
    await asyncio.wait_for(layer.create_step(versioned(_new(), threads[0], 1)), PATIENCE)
    seen = await layer.get_thread(threads[0])
    assert seen is not None
    assert len(seen["steps"]) == 11
    assert layer._engine.counts.parkings == {"answer": 2}
    assert layer._engine.failure is None
    await _statements(migrated_postgres_url, "SELECT nextval('odd')", "DROP TRIGGER odd ON steps")
    await _done(layer)


async def test_two_threads_held_up_and_one_of_them_is_deleted(
    migrated_postgres_url: str, make_journaled: MakeLayer
) -> None:
    audit = await audited(migrated_postgres_url)
    layer = make_journaled(migrated_postgres_url)
    one, two, step = _new(), _new(), _new()
    await _begun(layer, one, two)
    async with _held(migrated_postgres_url, one), _held(migrated_postgres_url, two):
        await layer.update_step(versioned(step, one, 1))
        await layer.update_step(versioned(_new(), two, 1))
        await _is_parked(layer, 2)
        deleting = asyncio.create_task(layer.delete_thread(one))
        await layer.update_step(versioned(step, two, 2))  # a row stays in its thread
        await asyncio.sleep(0.1)
        assert not deleting.done()
    await asyncio.wait_for(deleting, PATIENCE)
    await asyncio.wait_for(layer.flush(), PATIENCE)
    assert await layer.get_thread(one) is None
    assert await _outputs(audit, one) == {}
    assert len(await _outputs(audit, two)) >= 2
    assert accounted_for(layer)
    await layer.close()
    assert list(layer.settings.journal_dir.iterdir()) == []


async def test_what_names_no_thread_does_not_overtake_its_row(
    migrated_postgres_url: str, make_journaled: MakeLayer
) -> None:
    audit = await audited(migrated_postgres_url)
    layer = make_journaled(migrated_postgres_url)
    locked, step, child = _new(), _new(), _new()
    await _begun(layer, locked)
    async with _held(migrated_postgres_url, locked):
        await layer.create_step(versioned(step, locked, 1))
        below: Any = {**versioned(child, locked, 1), "parentId": step}
        await layer.create_step(below)
        await _is_parked(layer)
        deleting = asyncio.create_task(layer.delete_step(step))
        await asyncio.sleep(0.1)
        assert not deleting.done()
    await asyncio.wait_for(deleting, PATIENCE)
    assert not {step, child} & (await _outputs(audit, locked)).keys()
    await _done(layer)


async def test_a_feedback_that_names_no_thread_waits_with_its_step(
    migrated_postgres_url: str, make_journaled: MakeLayer
) -> None:
    layer = make_journaled(migrated_postgres_url)
    locked, step = _new(), _new()
    await _begun(layer, locked)
    async with _held(migrated_postgres_url, locked):
        await layer.create_step(versioned(step, locked, 1))
        await _is_parked(layer)
        await _readers_are_told(layer, locked)
        with pytest.raises(ThreadHeldUp):
            await layer.get_step(step)
        rated = await layer.upsert_feedback(Feedback(forId=step, threadId="", value=1))
    await asyncio.wait_for(layer.flush(), PATIENCE)
    assert (await stored_step(layer, step))["feedback"]["id"] == rated
    await _done(layer)


async def test_at_its_bound_the_newest_of_the_thread_is_refused(
    migrated_postgres_url: str, make_journaled: MakeLayer
) -> None:
    layer = make_journaled(migrated_postgres_url, journal_max_bytes=2**20)
    locked, other = _new(), _new()
    await _begun(layer, locked, other)
    kept = 0
    async with _held(migrated_postgres_url, locked):
        await layer.create_step(versioned(_new(), locked, 1))
        await _is_parked(layer)
        with contextlib.suppress(QueueFull):
            while True:
                await layer.create_step(versioned(_new(), locked, 1, 10_000))
                kept += 1
        assert kept * 10_000 < 2 * 2**20
        assert layer._engine.counts.refused == {"thread_held_up": 1}
        for _ in range(100):
            await layer.create_step(versioned(_new(), other, 1, 10_000))
    await asyncio.wait_for(layer.flush(), PATIENCE)
    stored = await rows(layer, f"""SELECT id FROM steps WHERE "threadId" = '{locked}'""")
    assert len(stored) == kept + 2
    await layer.create_step(versioned(_new(), locked, 1))
    await _done(layer)


async def test_close_leaves_what_is_parked_to_the_next_process(
    migrated_postgres_url: str, make_journaled: MakeLayer
) -> None:
    audit = await audited(migrated_postgres_url)
    layer = make_journaled(migrated_postgres_url, close_timeout=FOR_EVER)  # nothing comes of waiting
    locked, other, step = _new(), _new(), _new()
    await _begun(layer, locked, other)
    async with _held(migrated_postgres_url, locked):
        for version in range(3):
            await layer.update_step(versioned(step, locked, version))
        await _is_parked(layer)
        await layer.update_step(versioned(_new(), other, 1))
        await asyncio.wait_for(layer.close(), PATIENCE)
        assert len(await _outputs(audit, other)) == 2
        (left,) = layer.settings.journal_dir.glob("*.journal")
        layer = make_journaled(migrated_postgres_url, journal_keep=0)
        await layer.start()
        await _is_parked(layer)  # it is held up still, in another lane
        await until(lambda: not left.exists())
        await layer.update_step(versioned(step, locked, 3))
        await layer.update_step(versioned(_new(), other, 1))
        assert await layer.get_thread(other)
    await asyncio.wait_for(layer.flush(), PATIENCE)
    assert (await _outputs(audit, locked))[step] == "3"
    assert repeated((await audit.applied()).values()) == []
    await _done(layer)


@pytest.mark.parametrize("number", range(3))
async def test_what_is_parked_survives_a_kill(
    migrated_postgres_url: str, make_journaled: MakeLayer, tmp_path: Path, number: int
) -> None:
    audit = await audited(migrated_postgres_url)
    threads = [_new(), _new()]
    await _statements(
        migrated_postgres_url,
        *(f"""INSERT INTO threads (id, "createdAt") VALUES ('{each}', '2026-01-01')""" for each in threads),
    )
    async with _held(migrated_postgres_url, *threads):
        acknowledged = await asyncio.to_thread(
            _killed_after, migrated_postgres_url, tmp_path / "journals", threads, 2.0 + number / 3
        )
        assert {thread for _, thread in acknowledged} >= set(threads)
        layer = make_journaled(migrated_postgres_url)
        await layer.start()
        await _is_parked(layer, 2)
    await asyncio.wait_for(layer.flush(), PATIENCE)
    await layer.execute_sql("SELECT 1", {})
    await _done(layer)
    stored, applied = await audit.stored(), await audit.applied()
    lost = {step: n for (step, _), n in acknowledged.items() if stored.get(step, -1) < n}
    assert lost == {}
    assert repeated(applied.values()) == [], "applied twice, or backwards"


def _killed_after(url: str, folder: Path, threads: list[str], seconds: float) -> dict[tuple[str, str], int]:
    """The last acknowledged version of each step, by step and thread."""
    command = [sys.executable, "-m", "tests.faults.held_up_worker", url, str(folder), *threads]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        lines: list[str] = []
        for line in worker.stdout:
            lines.append(line)
            if line == "parked\n":
                break
        try:
            worker.wait(seconds - 2.0)
        except subprocess.TimeoutExpired:
            os.kill(worker.pid, signal.SIGKILL)
        lines += worker.stdout.readlines()
    acknowledged = {}
    for line in lines:
        if line.startswith("ack") and line.endswith("\n"):
            _, step, thread, version = line.split()
            acknowledged[step, thread] = int(version)
    return acknowledged


async def test_with_an_external_writer_only_its_readers_are_told_too(
    migrated_postgres_url: str, make_journaled: MakeLayer
) -> None:
    audit = await audited(migrated_postgres_url)
    layer = make_journaled(migrated_postgres_url, writer="external")
    settings, store = layer.settings, Store(migrated_postgres_url, layer.settings)
    draining, stop = Drain(settings.journal_dir, store, settings, Metrics()), asyncio.Event()
    running = asyncio.create_task(draining.run(stop))
    locked, other, step = _new(), _new(), _new()
    await _begun(layer, locked, other)
    async with _held(migrated_postgres_url, locked):
        await layer.update_step(versioned(step, locked, 1))
        await until(lambda: bool(draining._lanes.open))
        await layer.update_step(versioned(_new(), other, 1))
        await layer.flush()
        seen = await layer.get_thread(other)
        assert seen is not None
        assert len(seen["steps"]) == 2
        with pytest.raises(ThreadHeldUp):
            await layer.get_thread(locked)
        await layer.update_step(versioned(step, locked, 2))
    await until(lambda: not draining._lanes.open)
    seen = await layer.get_thread(locked)
    assert seen is not None
    assert len(seen["steps"]) == 2
    assert (await _outputs(audit, locked))[step] == "2"
    await layer.close()
    stop.set()
    await asyncio.wait_for(running, PATIENCE)
    await draining.close()
    assert draining.counts.pending == 0
    assert list(settings.journal_dir.iterdir()) == []


async def test_draining_leaves_what_is_held_up_and_says_so(
    migrated_postgres_url: str, make_journaled: MakeLayer
) -> None:
    layer = make_journaled(migrated_postgres_url, close_timeout=0.5)
    locked = _new()
    await _begun(layer, locked)
    async with _held(migrated_postgres_url, locked):
        for version in range(3):
            await layer.update_step(versioned(_new(), locked, version))
        await layer.close()
        settings = layer.settings
        for _ in range(2):
            draining = Drain(
                settings.journal_dir, Store(migrated_postgres_url, settings), settings, Metrics()
            )
            await asyncio.wait_for(draining.run(), PATIENCE)
            await draining.close()
            assert len(draining.left()) == 1
    draining = Drain(settings.journal_dir, Store(migrated_postgres_url, settings), settings, Metrics())
    await asyncio.wait_for(draining.run(), PATIENCE)
    await draining.close()
    assert draining.left() == []
    audit = Audit(migrated_postgres_url)
    assert len(await _outputs(audit, locked)) == 4
