"""Any caller cancelled at any of its awaits, and the whole loop: nothing leaks, the layer still serves."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from chainlit.context import ChainlitContext
from chainlit.element import Text
from chainlit.types import Feedback, Pagination, ThreadFilter
from sqlalchemy.pool import QueuePool
from typing_extensions import override

from forebay import ForebayDataLayer, Settings
from forebay.pipeline import pipeline
from forebay.settings import Durability
from tests.faults.kill import work_until
from tests.integration.contract import a_step, a_thread, a_user, accounted_for, new_id, until
from tests.support.cancelling import When, cancelled_at, waiting_futures
from tests.support.patience import patience
from tests.support.storage import MemoryStorage

Call = Callable[[ForebayDataLayer], Coroutine[Any, Any, Any]]
MakeLayer = Callable[..., ForebayDataLayer]

_MOST_AWAITS = 200


class SlowStorage(MemoryStorage):
    """A storage client that awaits something in each call, as a real one does."""

    @override
    async def upload_file(self, *arguments: Any, **named: Any) -> dict[str, Any]:
        await asyncio.sleep(0)
        return await super().upload_file(*arguments, **named)

    @override
    async def delete_file(self, object_key: str) -> bool:
        await asyncio.sleep(0)
        return await super().delete_file(object_key)

    @override
    async def get_read_url(self, object_key: str) -> str:
        await asyncio.sleep(0)
        return await super().get_read_url(object_key)


@pytest.fixture
async def make_layer(
    chainlit_context: ChainlitContext, migrated_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[MakeLayer]:
    """Makes layers on one database, and closes those that are still open."""
    monkeypatch.setattr(pipeline, "_QUIET_SPELL", 0.001)
    made: list[ForebayDataLayer] = []

    def make(durability: Durability = "journal") -> ForebayDataLayer:
        settings = Settings(
            durability=durability, journal_dir=tmp_path / "journals", pool_size=3, linger=0.001
        )
        made.append(ForebayDataLayer(migrated_url, storage_provider=SlowStorage(), settings=settings))
        return made[-1]

    yield make
    for layer in made:
        await layer.close()


def _element(thread_id: str) -> Text:
    return Text(name="note", content="text", for_id=new_id(), thread_id=thread_id)


async def _create_element(layer: ForebayDataLayer) -> None:
    await layer.create_element(_element(new_id()))


async def _delete_thread(layer: ForebayDataLayer) -> None:
    """One that is still queued, with an element whose content goes too."""
    thread_id = new_id()
    writing = [layer.update_thread(thread_id), layer.create_element(_element(thread_id))]
    await asyncio.gather(*writing, layer.create_step(a_step(thread_id)))
    await layer.delete_thread(thread_id)


async def _get_thread(layer: ForebayDataLayer) -> None:
    """One that is still queued."""
    thread_id = new_id()
    await layer.create_step(a_step(thread_id))
    assert await layer.get_thread(thread_id) is not None


async def _list_threads(layer: ForebayDataLayer) -> None:
    user = await a_user(layer, new_id())
    await layer.update_thread(new_id(), user_id=user.id)
    found = await layer.list_threads(Pagination(first=5), ThreadFilter(userId=user.id))
    assert len(found.data) == 1


async def _flush(layer: ForebayDataLayer) -> None:
    await layer.create_step(a_step(new_id()))
    await layer.flush()


_CALLS: dict[str, Call] = {
    "create_step": lambda layer: layer.create_step(a_step(new_id())),
    "update_thread": lambda layer: layer.update_thread(new_id(), name="n", metadata={"a": 1}),
    "upsert_feedback": lambda layer: layer.upsert_feedback(
        Feedback(forId=new_id(), threadId=new_id(), value=1)
    ),
    "create_element": _create_element,
    "delete_thread": _delete_thread,
    "get_thread": _get_thread,
    "list_threads": _list_threads,
    "flush": _flush,
    "create_user": a_user,
}


_LASTING = ["forebay-garbage", "forebay-uploads", "forebay-writer"]  # the layer's own tasks


def _tasks() -> set[asyncio.Task[Any]]:
    return {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}


async def _assert_sound(layer: ForebayDataLayer) -> None:
    """It reads and writes, what it took is accounted for, and nothing that a cancelled call used is left over."""
    async with patience():
        thread_id = await a_thread(layer, name="still here")
        found = await asyncio.gather(*(layer.get_thread(thread_id) for _ in range(layer.settings.pool_size)))
        assert [thread["name"] for thread in found if thread] == ["still here"] * len(found)
        await layer.flush()
        # A thread of the driver's may have the last word about a connection.
        await until(lambda: sorted(task.get_name() for task in _tasks()) == _LASTING)
        await layer.flush()  # what a call that was cancelled has left to a task
    assert accounted_for(layer)
    assert layer._engine.counts.pending == 0
    pool = layer.engine.pool
    assert isinstance(pool, QueuePool)
    assert pool.checkedout() <= 2, "the writer's, and the one that is kept at hand"


async def _at_every_await(layer: ForebayDataLayer, call: Call, when: When) -> None:
    for number in range(1, _MOST_AWAITS):
        was_cancelled = await cancelled_at(number, when, call(layer))
        await _assert_sound(layer)
        if not was_cancelled:
            assert number > 1, "it waited for nothing"
            return
    pytest.fail("it never ended")


@pytest.mark.parametrize("when", ["waiting", "waking"])
@pytest.mark.parametrize("name", _CALLS)
async def test_a_call_is_cancelled_at_any_await(make_layer: MakeLayer, name: str, when: When) -> None:
    layer = make_layer()
    await layer.get_user("nobody")
    await _assert_sound(layer)
    before = waiting_futures()
    await _at_every_await(layer, _CALLS[name], when)
    assert waiting_futures() <= before, "a waiter is left over"


@pytest.mark.parametrize("when", ["waiting", "waking"])
@pytest.mark.parametrize("durability", ["memory", "commit"])
async def test_a_write_is_cancelled_at_any_await_without_a_journal(
    make_layer: MakeLayer, durability: Durability, when: When
) -> None:
    layer = make_layer(durability)
    await layer.get_user("nobody")
    await _assert_sound(layer)
    before = waiting_futures()
    await _at_every_await(layer, _flush, when)
    assert waiting_futures() <= before, "a waiter is left over"


@pytest.mark.parametrize("when", ["waiting", "waking"])
async def test_the_first_call_is_cancelled_at_any_await(make_layer: MakeLayer, when: When) -> None:
    """It starts the worker, opens the first connections and waits for what was left in other journals."""
    before = waiting_futures()
    for number in range(1, _MOST_AWAITS):
        layer = make_layer()
        was_cancelled = await cancelled_at(number, when, _get_thread(layer))
        await _assert_sound(layer)
        await layer.close()
        del layer
        if not was_cancelled:
            break
    assert waiting_futures() <= before, "a waiter is left over"


# What it leaves open is collected as garbage in a later test, unless it is at once.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("when", ["waiting", "waking"])
async def test_a_close_is_cancelled_at_any_await(make_layer: MakeLayer, tmp_path: Path, when: When) -> None:
    """The next close finishes what it began."""
    for number in range(1, _MOST_AWAITS):
        layer, step = make_layer(), a_step(new_id())
        await layer.create_step(step)
        was_cancelled = await cancelled_at(number, when, layer.close())
        async with patience():
            await layer.close()
        assert _tasks() == set()
        pool = layer.engine.pool
        assert isinstance(pool, QueuePool)
        assert (pool.checkedout(), pool.checkedin()) == (0, 0)
        after = make_layer()
        assert await after.get_step(step["id"]) is not None
        await after.close()
        assert list((tmp_path / "journals").glob("*.journal")) == []
        if not was_cancelled:
            return


async def test_a_call_cancelled_while_its_connection_opens_leaves_none(make_layer: MakeLayer) -> None:
    """More calls than connections, each cancelled somewhere else on its way."""
    layer = make_layer()
    await _assert_sound(layer)
    for _ in range(5):
        calls = [
            asyncio.create_task(cancelled_at(number, when, _get_thread(layer)))
            for number in range(1, 20)
            for when in ("waiting", "waking")
        ]
        await asyncio.gather(*calls)
    await _assert_sound(layer)


async def test_an_interrupted_loop_loses_nothing_that_was_acknowledged(
    make_layer: MakeLayer, migrated_url: str, tmp_path: Path
) -> None:
    """Ctrl-C ends `asyncio.run` while 20 tasks write."""
    # Ends promptly: `work_until` waits for the process no longer than a container's runtime does.
    acknowledged, code = work_until(signal.SIGINT, migrated_url, tmp_path / "journals", seconds=0.3)
    assert code != 0
    assert acknowledged
    layer = make_layer()
    found = await layer.execute_sql("SELECT CAST(id AS TEXT) AS id, output FROM steps", {})
    assert isinstance(found, list)
    stored = {row["id"]: int(row["output"]) for row in found}
    lost = {key: version for key, version in acknowledged.items() if stored.get(key, -1) < version}
    assert lost == {}
    await layer.close()
    assert list((tmp_path / "journals").glob("*.journal")) == []
