"""Calls from any thread and any event loop: taken in their place, durable, and nobody's first use owns the layer."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from chainlit.context import init_http_context
from chainlit.element import File
from chainlit.step import StepDict
from chainlit.types import Feedback, Pagination, ThreadFilter
from chainlit.user import User

from forebay import ForebayDataLayer, LayerClosed, Settings, WrongLoop
from forebay.settings import Durability
from tests.integration.conftest import MakeLayer
from tests.integration.contract import (
    a_step,
    a_thread,
    a_user,
    accounted_for,
    how_many,
    locked,
    new_id,
    stored_elements,
    stored_step,
    stored_thread,
    until,
)
from tests.support.patience import PATIENCE
from tests.support.storage import MemoryStorage

DURABILITIES = ("journal", "memory", "commit")

Work = Callable[[], Coroutine[Any, Any, Any]]


def run_in_thread(work: Work) -> Any:
    """What it returns, run by `asyncio.run` in a thread that ends with it, while no loop runs here."""
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(asyncio.run(in_context(work)))
        except BaseException as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(PATIENCE)
    (result,) = results
    if isinstance(result, BaseException):
        raise result
    return result


async def in_context(work: Work) -> Any:
    init_http_context()
    return await work()


async def elsewhere(work: Work) -> Any:
    """The same, while the loop here goes on."""
    return await asyncio.to_thread(run_in_thread, work)


@contextmanager
def a_loop_that_lives() -> Iterator[Callable[[Work], Any]]:
    """Another thread's loop, which runs what it is given until the end of the context."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield lambda work: asyncio.run_coroutine_threadsafe(in_context(work), loop).result(PATIENCE)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


# ---- beside the layer's loop


@pytest.mark.parametrize("durability", DURABILITIES)
async def test_writes_of_a_thread_are_taken_in_their_place(
    make_layer: MakeLayer, emptied_url: str, durability: Durability
) -> None:
    layer = make_layer(emptied_url, settings=Settings(durability=durability))
    thread_id = await a_thread(layer)
    step = a_step(thread_id, output="here, first")
    await layer.create_step(step)

    async def write() -> None:
        await layer.update_step(a_step(thread_id, id=step["id"], output="there"))
        await layer.create_step(a_step(thread_id, id=step["id"], output="there, last"))

    await elsewhere(write)
    assert (await stored_step(layer, step["id"]))["output"] == "there, last"
    await layer.update_step(a_step(thread_id, id=step["id"], output="here again"))
    assert (await stored_step(layer, step["id"]))["output"] == "here again"
    assert layer._engine.counts.refused.total() == 0


@pytest.mark.parametrize("durability", DURABILITIES)
async def test_what_nobody_waits_for_is_stored_though_its_loop_has_ended(
    make_layer: MakeLayer, emptied_url: str, durability: Durability
) -> None:
    layer = make_layer(emptied_url, settings=Settings(durability=durability))
    thread_id = await a_thread(layer)

    async def write() -> None:
        for _ in range(10):
            step: Any = a_step(thread_id, output="as it is now")
            asyncio.get_running_loop().create_task(layer.create_step(step))
            step["output"] = "changed since"

    for _ in range(3):
        await elsewhere(write)
    thread = await stored_thread(layer, thread_id)
    assert [step["output"] for step in thread["steps"]] == ["as it is now"] * 30
    assert accounted_for(layer)


@pytest.mark.parametrize("durability", DURABILITIES)
async def test_what_a_thread_writes_while_home_is_busy_keeps_its_order(
    make_layer: MakeLayer, emptied_url: str, durability: str
) -> None:
    """Several calls have come before home takes the first: each has its place, as a tool's step that ends."""
    layer = make_layer(emptied_url, settings=Settings(durability=durability))  # type: ignore[arg-type]
    thread_id = await a_thread(layer)
    step = a_step(thread_id, output="0")

    async def write() -> None:
        changed: list[Any] = [{**step, "output": str(number)} for number in range(1, 6)]
        calls = [layer.create_step(step), *map(layer.update_step, changed)]
        for call in (*calls, layer.update_thread(thread_id, name="last")):
            asyncio.get_running_loop().create_task(call)

    for work in (write, write):
        thread = threading.Thread(target=run_in_thread, args=(work,))
        thread.start()
        thread.join()  # home stands still meanwhile
    stored = await stored_thread(layer, thread_id)
    assert [each["output"] for each in stored["steps"]] == ["5"]
    assert stored["name"] == "last"


async def test_the_order_of_two_threads_that_take_turns_is_the_order_of_their_calls(
    layer: ForebayDataLayer,
) -> None:
    thread_id, step_id = await a_thread(layer), new_id()

    def said(output: str) -> StepDict:
        return a_step(thread_id, id=step_id, output=output)

    async def write(output: str) -> None:
        asyncio.get_running_loop().create_task(layer.update_step(said(output)))

    for turn in range(20):
        # The loop here stands still meanwhile, and writes before it can take what came from there.
        run_in_thread(lambda turn=turn: write(f"there {turn}"))  # type: ignore[misc]
        here = layer.update_step(said(f"here {turn}"))
        run_in_thread(lambda turn=turn: write(f"there again {turn}"))  # type: ignore[misc]
        await here
        assert (await stored_step(layer, step_id))["output"] == f"there again {turn}"


async def test_with_the_journal_an_awaited_write_is_on_the_disk(
    make_layer: MakeLayer, emptied_url: str, tmp_path: Path
) -> None:
    layer = make_layer(emptied_url, settings=Settings(linger=0.5))
    step = a_step(await a_thread(layer), output="on the disk")
    on_disk: list[bool] = []

    async def write() -> None:
        await layer.create_step(step)
        journal = layer._engine.journal
        assert journal is not None
        on_disk.append(any(step["id"].encode() in file.read_bytes() for file in journal.path.glob("*")))

    await elsewhere(write)
    assert on_disk == [True]


async def test_every_read_answers_in_any_loop(layer: ForebayDataLayer, storage: MemoryStorage) -> None:
    user = await a_user(layer)
    thread_id = await a_thread(layer, user_id=user.id)
    step = a_step(thread_id, output="said", metadata={"favorite": True})
    element = File(name="a.txt", content=b"content", thread_id=thread_id, for_id=step["id"])

    async def use() -> None:
        await layer.create_step(step)
        await layer.create_element(element)
        feedback_id = await layer.upsert_feedback(Feedback(forId=step["id"], value=1))
        assert (await stored_thread(layer, thread_id))["steps"][0]["output"] == "said"
        assert len(await stored_elements(layer, thread_id)) == 1
        assert await layer.get_element(thread_id, element.id) is not None
        assert await layer.get_thread_author(thread_id) == "ada"
        page = await layer.list_threads(Pagination(first=5), ThreadFilter(userId=user.id))
        assert [thread["id"] for thread in page.data] == [thread_id]
        assert len(await layer.get_favorite_steps(user.id)) == 1
        assert len(await layer.get_all_user_threads(user.id) or ()) == 1
        assert (await layer.create_user(User(identifier="ada"))) is not None
        assert (await layer.get_user("ada")) is not None
        await layer.set_step_favorite(step, favorite=False)
        assert await layer.get_favorite_steps(user.id) == []
        await layer.flush()
        assert await layer.execute_sql("SELECT count(*) AS n FROM steps", {}) == [{"n": 1}]
        assert await layer.delete_feedback(feedback_id)
        await layer.delete_element(element.id, thread_id)
        await layer.delete_step(step["id"])
        await layer.delete_thread(thread_id)
        assert await layer.get_thread(thread_id) is None

    await elsewhere(use)
    assert storage.files == {}


async def test_an_error_is_its_callers(layer: ForebayDataLayer) -> None:
    async def list_nobodys() -> None:
        await layer.list_threads(Pagination(first=5), ThreadFilter())

    with pytest.raises(ValueError, match="userId"):
        await elsewhere(list_nobodys)


async def test_many_loops_at_once_lose_nothing(layer: ForebayDataLayer) -> None:
    thread_id = await a_thread(layer)

    async def write() -> None:
        for _ in range(20):
            await layer.create_step(a_step(thread_id))

    writers = [elsewhere(write) for _ in range(8)]
    await asyncio.gather(*writers, write())
    assert await how_many(layer, "steps") == 180


# ---- whose the layer is


@pytest.mark.parametrize("durability", DURABILITIES)
def test_who_uses_it_first_does_not_own_it(migrated_url: str, durability: Durability) -> None:
    layer = ForebayDataLayer(migrated_url, settings=Settings(durability=durability))
    thread_id = new_id()

    async def write() -> None:
        await layer.create_step(a_step(thread_id))

    async def main() -> None:
        await in_context(write)
        await elsewhere(write)
        assert await how_many(layer, "steps") == 4
        await layer.close()
        with pytest.raises(LayerClosed):
            await write()
        assert accounted_for(layer)

    with a_loop_that_lives() as run:
        run(write)
        run_in_thread(write)
        asyncio.run(main())
    assert "forebay-home" not in {thread.name for thread in threading.enumerate()}


def test_what_a_thread_has_begun_goes_on_when_it_has_ended(migrated_url: str) -> None:
    layer = ForebayDataLayer(migrated_url)
    thread_id = new_id()

    async def write() -> None:
        for _ in range(10):
            asyncio.get_running_loop().create_task(layer.create_step(a_step(thread_id)))

    async def close() -> int:
        count = await how_many(layer, "steps")
        await layer.close()
        return count

    run_in_thread(write)
    assert run_in_thread(close) == 10


# Nothing can close a connection whose loop has ended; the garbage collector does, and warns.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # of the driver's thread
@pytest.mark.parametrize("closes", [True, False])
def test_a_loop_of_the_main_thread_that_ended_does_not_own_it(migrated_url: str, *, closes: bool) -> None:
    layer = ForebayDataLayer(migrated_url)
    thread_id = new_id()
    first = asyncio.new_event_loop()
    first.run_until_complete(in_context(lambda: layer.update_thread(thread_id, name="first")))
    if closes:
        first.close()

    async def second() -> None:
        await layer.update_thread(thread_id, tags=["second"])
        thread = await stored_thread(layer, thread_id)
        assert (thread["name"], thread["tags"]) == ("first", ["second"])
        await layer.close()

    asyncio.run(second())
    if not closes:
        first.run_until_complete(asyncio.sleep(0))
        first.close()
    gc.collect()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_threads_go_on_where_the_main_threads_loop_has_ended(migrated_url: str) -> None:
    layer = ForebayDataLayer(migrated_url)
    thread_id = new_id()

    async def write() -> None:
        await layer.create_step(a_step(thread_id))

    async def close() -> int:
        count = await how_many(layer, "steps")
        await layer.close()
        return count

    asyncio.run(in_context(write))
    run_in_thread(write)
    run_in_thread(write)
    assert run_in_thread(close) == 3
    gc.collect()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("durability", ["journal", "memory"])
def test_a_batch_that_was_on_its_way_when_its_loop_ended_is_written_by_the_next(
    migrated_url: str, durability: Durability, caplog: pytest.LogCaptureFixture
) -> None:
    layer = ForebayDataLayer(migrated_url, settings=Settings(durability=durability, linger=0.0))
    thread_id = new_id()

    async def first() -> None:
        init_http_context()
        await layer.flush()
        async with locked(migrated_url):
            await layer.update_thread(thread_id, name="on its way")
            await until(lambda: layer._engine.inbox._in_flight is not None)

    async def second() -> None:
        await layer.update_thread(new_id(), name="behind it")
        assert (await stored_thread(layer, thread_id))["name"] == "on its way"
        await layer.close()
        assert accounted_for(layer)

    asyncio.run(first())
    asyncio.run(second())
    assert "checkpoint" not in caplog.text
    gc.collect()


# ---- while it ends, and where it stands still


async def test_it_closes_while_another_loop_writes(migrated_url: str) -> None:
    layer = ForebayDataLayer(migrated_url, settings=Settings(close_timeout=1.0))
    thread_id = await a_thread(layer)
    taken: list[str] = []
    begun = threading.Event()

    async def write() -> None:
        while True:
            step = a_step(thread_id)
            try:
                await layer.create_step(step)
            except LayerClosed:
                return
            taken.append(step["id"])
            begun.set()

    writing = asyncio.create_task(elsewhere(write))
    await asyncio.to_thread(begun.wait)
    await layer.close()
    await writing
    assert layer._engine.counts.refused["LayerClosed"] == 1
    after = ForebayDataLayer(migrated_url)
    assert await how_many(after, "steps") == len(taken)
    await after.close()


async def test_another_loop_may_close_it(migrated_url: str) -> None:
    layer = ForebayDataLayer(migrated_url)
    await a_thread(layer)
    await elsewhere(layer.close)
    with pytest.raises(LayerClosed):
        await a_thread(layer)
    await layer.close()
    assert accounted_for(layer)


def test_a_home_that_stands_still_is_told_and_counted(migrated_sqlite_url: str) -> None:
    layer = ForebayDataLayer(migrated_sqlite_url, settings=Settings(queue_timeout=0.0))

    async def write() -> None:
        await layer.create_step(a_step(new_id()))

    async def main() -> None:
        await layer.flush()
        with pytest.raises(WrongLoop):
            run_in_thread(write)  # this loop stands still meanwhile
        assert layer._engine.counts.refused["WrongLoop"] == 1
        assert await how_many(layer, "steps") == 0
        await layer.close()

    asyncio.run(main())


async def test_what_waits_for_a_home_that_stands_still_is_bounded(
    make_layer: MakeLayer, emptied_url: str
) -> None:
    layer = make_layer(emptied_url, settings=Settings(queue_max_bytes=64 * 1024))
    thread_id = await a_thread(layer)

    async def write() -> None:
        for _ in range(100):
            asyncio.get_running_loop().create_task(layer.create_step(a_step(thread_id, output="x" * 10_000)))

    run_in_thread(write)  # this loop stands still meanwhile
    refused = layer._engine.counts.refused["QueueFull"]
    assert 90 < refused < 100
    assert await how_many(layer, "steps") == 100 - refused
