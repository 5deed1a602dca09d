"""Places taken at the call, and what a chat writes before its first message; and what Chainlit itself puts off."""

from __future__ import annotations

import asyncio
import gc
import inspect
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, cast

import pytest
from chainlit.context import init_http_context
from chainlit.data.base import BaseDataLayer
from chainlit.data.utils import queue_until_user_message
from chainlit.session import WebsocketSession
from hypothesis import given
from hypothesis import strategies as st

from forebay import ForebayDataLayer
from forebay.errors import ForebayError, LayerClosed, QueueFull, RowError
from forebay.layer.held_back import HeldBack, Room
from forebay.layer.queued import Door, placed
from forebay.model import changes
from forebay.model.changes import Upsert, fold
from forebay.model.ids import as_uuid
from forebay.primitives.awaitables import NOTHING, Deferred
from forebay.telemetry.counters import Counts
from tests.support import sessions

in_session = partial(sessions.in_session, thread_id="t")  # the thread of each step here


class _Here:
    """The loop that writes is the one that runs."""

    def is_away(self) -> bool:
        return False

    def bring(self, act: Callable[[], Awaitable[Any]], size: int = 0) -> Awaitable[Any]:
        raise AssertionError


class _Taken:
    """What a door has let in, in order."""

    def __init__(self, max_bytes: int = 2**20) -> None:
        self.order: list[Any] = []
        self.refused: list[ForebayError] = []
        self.door = Door(self._submit, self.refused.append, max_bytes, Counts(), _Here(), as_uuid)

    def _submit(self, change: Upsert) -> Awaitable[None]:
        self.order.append((change.key, change.row.get("output")))
        return NOTHING

    def write(self, key: str, output: str | None = None) -> Awaitable[None]:
        return self.door.write(_step(key, output))

    def delete(self, key: str) -> Awaitable[None]:
        def enter() -> Awaitable[None]:
            self.order.append(key)
            return NOTHING

        return self.door.enter(enter)


def _step(key: str, output: str | None = None) -> Upsert:
    return changes.step({"id": key, "threadId": "t", "output": output})


# ---- what Chainlit does, which the door does in its place


def test_chainlit_puts_off_these_methods_and_forebay_the_same() -> None:
    names = {name for name in vars(BaseDataLayer) if hasattr(getattr(BaseDataLayer, name), "__wrapped__")}
    assert names == {"create_step", "update_step", "delete_step", "create_element", "delete_element"}
    for name in names:
        assert "_door." in _source(getattr(ForebayDataLayer, name))


def _source(method: Callable[..., Any]) -> str:
    return inspect.getsource(inspect.unwrap(method))


@pytest.mark.parametrize("spoken", [False, True])
async def test_chainlit_puts_off_what_a_websocket_session_writes_before_its_first_message(
    *, spoken: bool
) -> None:
    called: list[str] = []

    @queue_until_user_message()  # type: ignore[untyped-decorator]
    async def write(layer: Any, text: str) -> None:
        called.append(text)

    taken = _Taken()
    with in_session(spoken=spoken) as session:
        await cast("Any", write)(None, "text")
        await taken.write("a")
        assert (called, taken.order) == ((["text"], [("a", None)]) if spoken else ([], []))
        assert len(session.thread_queues) == (0 if spoken else 2)
        await session.flush_method_queue()
    assert (called, taken.order) == (["text"], [("a", None)])


async def test_neither_puts_off_what_a_request_writes() -> None:
    init_http_context()
    taken = _Taken()
    await taken.write("a")
    assert taken.order == [("a", None)]


async def test_chainlit_keeps_what_it_puts_off_as_calls_by_name() -> None:
    @queue_until_user_message()  # type: ignore[untyped-decorator]
    async def write(layer: Any, text: str, *, named: int) -> None:
        """Nothing."""

    with in_session() as session:
        await cast("Any", write)("layer", "text", named=1)
        (queue,) = session.thread_queues.values()
    assert list(queue) == [(cast("Any", write).__wrapped__, "layer", ("text",), {"named": 1})]
    assert isinstance(queue, deque)


def test_chainlit_says_in_one_attribute_whether_a_session_has_spoken() -> None:
    import chainlit.emitter
    import chainlit.server
    import chainlit.socket

    sources = [
        _source(cast("Any", module)) for module in (chainlit.emitter, chainlit.server, chainlit.socket)
    ]
    assert sum(source.count("has_first_interaction = True") for source in sources) == 5
    assert "flush_method_queue" in _source(chainlit.emitter.ChainlitEmitter.flush_thread_queues)


# ---- the place


async def test_a_place_is_taken_at_the_call() -> None:
    order: list[str] = []

    @placed
    def write(text: str) -> Awaitable[None]:
        order.append(text)
        return NOTHING

    later, sooner = write("first"), write("second")
    await sooner
    await later
    assert order == ["first", "second"]


async def test_what_a_call_raises_who_waits_gets() -> None:
    @placed
    def write() -> Awaitable[None]:
        raise RowError("no")

    waiting = write()
    with pytest.raises(RowError, match="no"):
        await waiting


def test_without_a_loop_the_one_that_waits_takes_it() -> None:
    loops: list[asyncio.AbstractEventLoop] = []

    @placed
    def write() -> Awaitable[None]:
        loops.append(asyncio.get_running_loop())
        return NOTHING

    asyncio.run(write())
    assert len(loops) == 1


async def test_a_caller_that_is_cancelled_before_its_task_begins_has_its_place() -> None:
    taken = _Taken()

    @placed
    def write() -> Awaitable[None]:
        return taken.write("a")

    task = asyncio.create_task(write())
    task.cancel()
    await asyncio.wait([task])
    assert taken.order == [("a", None)]


# ---- held back


async def test_what_was_held_back_enters_before_what_is_written_directly() -> None:
    taken = _Taken()
    with in_session() as session:
        await taken.write("a", "shown first")
        await taken.write("b")
        await taken.delete("b")
        await taken.write("c")
        assert taken.order == []
        session.has_first_interaction = True
        await taken.write("a", "shown last")
        assert taken.order == [("a", "shown first"), ("b", None), "b", ("c", None), ("a", "shown last")]
        await session.flush_method_queue()
    assert len(taken.order) == 5


@pytest.mark.parametrize("then", ["delete", "release"])
async def test_it_enters_before_anything_else_of_its_session(then: str) -> None:
    taken = _Taken()
    with in_session() as session:
        await taken.write("a")
        taken.door.pass_through(lambda: NOTHING)
        assert taken.order == [], "the chat has not begun"
        session.has_first_interaction = True
        if then == "delete":
            await taken.delete("a")
        else:
            taken.door.pass_through(lambda: NOTHING)
    assert taken.order == [("a", None), "a"][: 2 if then == "delete" else 1]


async def test_a_write_of_another_session_lets_nothing_in() -> None:
    taken = _Taken()
    with in_session():
        await taken.write("a")
        with in_session(spoken=True):
            await taken.write("b")
    assert taken.order == [("b", None)]


async def test_two_layers_hold_back_each_its_own() -> None:
    one, other = _Taken(), _Taken()
    with in_session() as session:
        await one.write("a")
        await other.write("b")
        session.has_first_interaction = True
        await other.write("c")
        assert (one.order, other.order) == ([], [("b", None), ("c", None)])
        await session.flush_method_queue()
    assert one.order == [("a", None)]


async def test_chainlits_flush_waits_until_it_is_durable() -> None:
    durable = asyncio.get_running_loop().create_future()
    door = Door(lambda _change: durable, lambda _error: None, 2**20, Counts(), _Here(), as_uuid)
    with in_session() as session:
        await door.write(_step("a"))
        flushing = asyncio.create_task(session.flush_method_queue())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not flushing.done()
        durable.set_result(None)
        await flushing


async def test_what_fails_when_it_enters_is_logged_and_costs_the_others_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    order: list[str] = []

    def submit(change: Upsert) -> Awaitable[None]:
        if change.key == "b":
            raise LayerClosed("closed")
        order.append(change.key)
        return NOTHING

    door = Door(submit, lambda _error: None, 2**20, Counts(), _Here(), as_uuid)
    with in_session() as session:
        for key in "abc":
            await door.write(_step(key))
        await session.flush_method_queue()
    assert order == ["a", "c"]
    assert "reason=LayerClosed" in caplog.text


async def test_it_ends_with_its_session() -> None:
    taken = _Taken()

    def chat() -> None:
        with in_session():
            taken.write("a", "x" * 1000)
            assert taken.door.room.taken > 1000

    chat()
    gc.collect()
    assert taken.door.room.taken == 0
    assert taken.order == []


async def test_what_a_session_may_hold_back_is_bounded() -> None:
    taken = _Taken(max_bytes=40_000)
    with in_session():
        await taken.write("a", "x" * 9_000)
        with pytest.raises(QueueFull):
            await taken.write("b", "x" * 1000)
    assert len(taken.refused) == 1


async def test_what_all_sessions_may_hold_back_is_bounded() -> None:
    taken = _Taken(max_bytes=40_000)
    sessions: list[WebsocketSession] = []
    with pytest.raises(QueueFull):  # noqa: PT012 - which of them is refused depends on the overhead
        for _ in range(10):
            with in_session() as session:
                sessions.append(session)
                await taken.write("a", "x" * 100)
                await taken.write("b", "x" * 5_000)
    assert taken.door.room.taken <= 40_000


async def test_a_row_that_is_written_again_and_again_is_held_once() -> None:
    taken = _Taken(max_bytes=40_000)
    with in_session() as session:
        for number in range(1000):
            await taken.write("a", f"{number} % done")
        assert taken.door.room.taken < 2000
        await session.flush_method_queue()
    assert taken.order == [("a", "999 % done")]


_WRITES = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([None, "", "x", "y"]) | st.just("gone")))


@given(_WRITES)
def test_what_is_let_in_does_what_was_written(writes: list[tuple[str, str | None]]) -> None:
    def apply(rows: dict[str, Upsert], write: Upsert | str) -> None:
        if isinstance(write, str):
            rows.pop(write, None)
        else:
            rows[write.key] = fold(rows[write.key], write) if write.key in rows else write

    expected: dict[str, Upsert] = {}
    found: dict[str, Upsert] = {}
    room = Room(2**30)
    held = HeldBack(room)

    def submit(change: Upsert) -> Awaitable[None]:
        apply(found, change)
        return NOTHING

    for key, output in writes:
        if output == "gone":
            apply(expected, key)
            held.add(lambda key=key: apply(found, key) or NOTHING, 600)  # type: ignore[func-returns-value, misc]
        else:
            change = _step(key, output)
            apply(expected, change)
            held.add(change, change.size)
    held.let_in(submit)
    assert found == expected
    assert room.taken == 0


async def test_an_awaitable_nobody_waits_for_is_not_made() -> None:
    made: list[int] = []

    async def make() -> None:
        made.append(1)

    waiting: Deferred[None] = Deferred(make)
    del waiting
    assert made == []
