"""Start, close, another loop, and callers that are cancelled: nothing leaks, and the layer still serves."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from chainlit.types import Feedback
from sqlalchemy.pool import QueuePool

from forebay import ForebayDataLayer, LayerClosed, QueueFull, Settings
from tests.integration.conftest import MakeLayer
from tests.integration.contract import (
    UNREACHABLE,
    a_step,
    a_thread,
    accounted_for,
    locked,
    new_id,
    sessions_wait,
    stored_step,
    stored_thread,
    until,
)
from tests.support.patience import FOR_EVER, patience
from tests.support.spells import QuietSpells
from tests.support.storage import MemoryStorage


def tasks() -> set[asyncio.Task[Any]]:
    return {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}


async def assert_serves(layer: ForebayDataLayer) -> None:
    """Reads and writes go on, and no connection is missing."""
    thread_id = await a_thread(layer, name="still here")
    pool_size = layer.settings.pool_size
    found = await asyncio.gather(*(layer.get_thread(thread_id) for _ in range(2 * pool_size)))
    assert [thread["name"] for thread in found if thread] == ["still here"] * 2 * pool_size
    pool = layer.engine.pool
    assert isinstance(pool, QueuePool)
    assert pool.checkedout() <= 2, "the writer's, and the one that is kept at hand"
    assert layer._engine.store._connections.lent <= 1, "the writer's"
    assert accounted_for(layer)


# ---- start


async def test_the_first_use_starts_it_in_the_running_loop(layer: ForebayDataLayer) -> None:
    assert tasks() == set()
    await a_thread(layer)
    assert {task.get_name() for task in tasks()} == {"forebay-writer", "forebay-uploads", "forebay-garbage"}


def _said(caplog: pytest.LogCaptureFixture, word: str) -> list[str]:
    return [line for line in caplog.messages if line.startswith(word)]


@pytest.mark.parametrize("address", ["off", "127.0.0.1:0"])
async def test_the_log_tells_what_runs_and_whether_the_database_can_be_used(
    make_layer: MakeLayer,
    emptied_url: str,
    address: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("FOREBAY_METRICS_ADDRESS", address)
    monkeypatch.setenv("FOREBAY_JOURNL_DIR", "nowhere")
    caplog.set_level("INFO", "forebay")
    good, bad = make_layer(emptied_url), make_layer(UNREACHABLE)
    for layer, said in ((good, "database answers"), (bad, "not usable reason=")):
        await layer.start()
        await until(lambda said=said: bool(_said(caplog, said)))  # type: ignore[misc]
    assert len(_said(caplog, "started version=")) == 2
    assert "did you mean FOREBAY_JOURNAL_DIR?" in caplog.text
    assert "remedy=`forebay doctor`" in caplog.text
    await a_thread(good)
    await good.close()
    assert _said(caplog, "stopped accepted=1 written=1 ")


async def test_a_layer_that_was_never_used_closes_without_a_database() -> None:
    await ForebayDataLayer(UNREACHABLE).close()


def test_a_layer_may_be_made_where_no_loop_runs(migrated_url: str) -> None:
    layer = ForebayDataLayer(migrated_url)

    async def use() -> None:
        await a_thread(layer)
        await layer.close()

    asyncio.run(use())


# ---- close


async def test_closing_writes_out_the_queue_and_ends_every_task(
    emptied_url: str, make_layer: MakeLayer
) -> None:
    layer = make_layer(emptied_url, settings=Settings(linger=10))
    steps = [a_step(new_id()) for _ in range(100)]
    await asyncio.gather(*map(layer.create_step, steps))
    await layer.close()
    assert tasks() == set()
    after = make_layer(emptied_url)
    assert {(await stored_step(after, step["id"]))["id"] for step in steps} == {s["id"] for s in steps}


async def test_what_is_written_while_it_closes_is_written(
    emptied_url: str, make_layer: MakeLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message's handler goes on for a moment after SIGTERM."""
    layer, spells = (
        make_layer(emptied_url, settings=Settings(close_timeout=FOR_EVER)),
        QuietSpells(monkeypatch),
    )
    await a_thread(layer)
    closing = asyncio.create_task(layer.close())
    late = [a_step(new_id()) for _ in range(10)]
    for step in late:
        spell = await spells.next()
        await layer.create_step(step)
        spell.set()
    (await spells.next()).set()
    await closing
    spells.over()
    after = make_layer(emptied_url)
    assert [(await stored_step(after, step["id"]))["id"] for step in late] == [s["id"] for s in late]


@pytest.mark.parametrize("used", [True, False])
async def test_closing_twice_is_no_error(layer: ForebayDataLayer, used: bool) -> None:
    if used:
        await a_thread(layer)
    await layer.close()
    await layer.close()


CALLS: list[Callable[[ForebayDataLayer], Coroutine[Any, Any, Any]]] = [
    lambda layer: layer.create_step(a_step(new_id())),
    lambda layer: layer.update_thread(new_id()),
    lambda layer: layer.delete_thread(new_id()),
    lambda layer: layer.get_thread(new_id()),
    lambda layer: layer.get_user("ada"),
    lambda layer: layer.execute_sql("SELECT 1", {}),
    lambda layer: layer.flush(),
]


@pytest.mark.parametrize("call", CALLS, ids=range(len(CALLS)))
async def test_a_call_after_the_end_says_that_it_is_closed(layer: ForebayDataLayer, call: Any) -> None:
    await a_thread(layer)
    await layer.close()
    with pytest.raises(LayerClosed):
        await call(layer)


async def test_a_storage_client_that_cannot_close_does_not_keep_the_database_open(
    layer: ForebayDataLayer, storage: MemoryStorage, caplog: pytest.LogCaptureFixture
) -> None:
    """Chainlit's S3 client raises TypeError."""
    await a_thread(layer)
    storage.failing.add("close")
    await layer.close()
    assert "storage client not closed reason=TypeError" in caplog.text
    assert "secret" not in caplog.text
    pool = layer.engine.pool
    assert isinstance(pool, QueuePool)
    assert (pool.checkedout(), pool.checkedin()) == (0, 0)


async def test_closing_without_a_database_ends_in_time_says_what_is_lost_and_frees_who_waits(
    make_layer: MakeLayer, caplog: pytest.LogCaptureFixture
) -> None:
    layer = make_layer(UNREACHABLE, settings=Settings(durability="memory", close_timeout=0.05))
    await layer.create_step(a_step(new_id()))
    waiting = asyncio.create_task(layer.delete_thread(new_id()))
    flushing = asyncio.create_task(layer.flush())
    await asyncio.sleep(0)
    async with patience():
        await layer.close()
    for task in (waiting, flushing):
        with pytest.raises(LayerClosed):
            await task
    assert "closed with unwritten changes rows=2" in caplog.text
    assert layer._engine.inbox.pending == 2


async def test_who_stands_at_the_door_of_a_full_queue_is_told_that_it_closed(make_layer: MakeLayer) -> None:
    settings = Settings(durability="memory", close_timeout=0.05, queue_max_bytes=1024)
    layer = make_layer(UNREACHABLE, settings=settings)
    await layer.create_step(a_step(new_id()))
    waiting = asyncio.create_task(layer.create_step(a_step(new_id(), output="x" * 1000)))
    await asyncio.sleep(0)
    assert layer._engine.inbox.waiting == 1
    await layer.close()
    with pytest.raises(LayerClosed):
        await waiting


async def test_a_failed_close_of_one_layer_leaves_another_alone(
    emptied_url: str, make_layer: MakeLayer
) -> None:
    gone = make_layer(UNREACHABLE, settings=Settings(close_timeout=0.01))
    layer = make_layer(emptied_url)
    await gone.create_step(a_step(new_id()))
    await gone.close()
    await assert_serves(layer)


# ---- loops


# Nothing can close a connection whose loop has ended; the garbage collector does, and warns.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_new_loop_takes_over_from_one_that_has_ended(
    migrated_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    layer = ForebayDataLayer(migrated_url)
    thread_id = new_id()

    async def first() -> None:
        await layer.update_thread(thread_id, name="from the first loop")
        await layer.flush()

    async def second() -> None:
        await layer.update_thread(thread_id, tags=["second"])
        thread = await stored_thread(layer, thread_id)
        assert (thread["name"], thread["tags"]) == ("from the first loop", ["second"])
        await layer.close()

    asyncio.run(first())
    asyncio.run(second())
    gc.collect()
    assert caplog.text == ""


# ---- cancellation


async def test_readers_that_are_cancelled_in_mid_query_give_their_connections_back(
    emptied_postgres_url: str, make_layer: MakeLayer
) -> None:
    layer = make_layer(emptied_postgres_url, settings=Settings(pool_size=3))
    await a_thread(layer)
    readers = [
        asyncio.create_task(layer.execute_sql("SELECT pg_sleep(60)", {})) for _ in range(10)
    ]  # three at most run, the others wait for a connection
    await sessions_wait(emptied_postgres_url, "Timeout", 2)
    for reader in readers:
        reader.cancel()
    done = await asyncio.gather(*readers, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in done)
    await assert_serves(layer)


@pytest.mark.parametrize("read", ["get_thread", "get_step", "get_thread_author", "get_favorite_steps"])
async def test_cancelled_reads_that_wait_for_a_lock_leave_nothing_behind(
    emptied_postgres_url: str, make_layer: MakeLayer, read: str
) -> None:
    layer = make_layer(emptied_postgres_url, settings=Settings(pool_size=3))
    await layer.flush()
    async with locked(emptied_postgres_url):
        readers = [asyncio.create_task(getattr(layer, read)(new_id())) for _ in range(10)]
        if read != "get_step":  # whose tables are not locked
            await sessions_wait(emptied_postgres_url, "Lock", 2)
        for reader in readers:
            reader.cancel()
        await asyncio.wait(readers)
    await assert_serves(layer)


STEPS_OF_THE_LOOP = (0, 1, 2, 3, 5, 8, 13, 21, 34, 55)


@pytest.mark.parametrize("steps", STEPS_OF_THE_LOOP)
async def test_a_caller_cancelled_at_any_point_loses_nothing_that_was_accepted(
    layer: ForebayDataLayer, steps: int
) -> None:
    thread_id = await a_thread(layer)
    await layer.flush()
    before = layer._engine.counts.accepted["steps"]
    calls: list[Callable[[], Coroutine[Any, Any, Any]]] = [
        lambda: layer.create_step(a_step(thread_id)),
        lambda: layer.get_thread(thread_id),
        layer.flush,
        lambda: layer.delete_step(new_id()),
        lambda: layer.upsert_feedback(Feedback(forId=new_id(), threadId=thread_id, value=1)),
    ]
    started = [asyncio.create_task(call()) for call in calls for _ in range(5)]
    for _ in range(steps):
        await asyncio.sleep(0)
    for task in started:
        task.cancel()
    await asyncio.wait(started)
    assert all(task.cancelled() or task.exception() is None for task in started)
    await assert_serves(layer)
    accepted = layer._engine.counts.accepted["steps"] - before
    deletes = accepted - len((await stored_thread(layer, thread_id))["steps"])
    assert 0 <= deletes <= 5
    assert accepted == 10, "a place is taken at the call"


async def test_a_caller_cancelled_at_the_door_of_a_full_queue_leaves_it(
    emptied_url: str, make_layer: MakeLayer
) -> None:
    layer = make_layer(emptied_url, settings=Settings(durability="memory", queue_max_bytes=1024))
    await layer.get_user("ada")
    first, second, third = (a_step(new_id()) for _ in range(3))
    async with locked(emptied_url):
        await layer.create_step(first)
        waiting = asyncio.create_task(layer.create_step(second))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        with pytest.raises(QueueFull):
            await _with_little_patience(layer, third)
    await assert_serves(layer)
    assert await layer.get_step(first["id"])
    assert await layer.get_step(second["id"]) is None
    assert layer._engine.counts.refused == {"cancelled": 1, "queue_full": 1}


async def _with_little_patience(layer: ForebayDataLayer, step: Any) -> None:
    layer._engine.intake.settings = layer.settings.model_copy(update={"queue_timeout": 0.01})
    try:
        await layer.create_step(step)
    finally:
        layer._engine.intake.settings = layer.settings


async def test_a_writer_that_is_cancelled_in_a_batch_loses_nothing(
    emptied_postgres_url: str, make_layer: MakeLayer
) -> None:
    """A statement that takes too long is cancelled and repeated; the connection is a new one."""
    # The test waits for it once; a slow machine's other statements must be done within it.
    layer = make_layer(emptied_postgres_url, settings=Settings(statement_timeout=3))
    await layer.flush()
    step = a_step(new_id())
    async with locked(emptied_postgres_url):
        await layer.create_step(step)
        await until(lambda: bool(layer._engine.counts.retries))
    await layer.flush()
    assert (await stored_step(layer, step["id"]))["id"] == step["id"]
    assert layer._engine.counts.written["steps"] == 1
    await assert_serves(layer)


async def test_an_abandoned_layer_keeps_no_connection_of_a_closed_one(tmp_path: Path) -> None:
    layer = ForebayDataLayer(f"sqlite:///{tmp_path / 'new.db'}")
    await a_thread(layer)
    await layer.close()
    (tmp_path / "new.db").unlink()
    assert not list(tmp_path.glob("new.db-*")), "the last connection to close removes the write-ahead log"
