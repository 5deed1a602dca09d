"""Where writes enter: a write's place is fixed when its method is called, and what a chat writes too early is held.

Chainlit starts its writes as tasks (`create_task(layer.create_step(…))`), and what a session writes before its first
message it puts off until then, so that a chat that nobody spoke in is not stored. What it has put off it writes
method by method, each awaited, while the application goes on and writes directly. Here both are one order: a change
is frozen and gets its moment at the call, and what was held back enters before anything that its session writes later.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial, wraps
from typing import Any, ParamSpec, Protocol, TypeVar

from chainlit.session import WebsocketSession

from forebay.errors import ForebayError, QueueFull
from forebay.layer.held_back import Enter, HeldBack, Room
from forebay.layer.sessions import Spell, chat_at_hand, is_elsewhere
from forebay.model.changes import OVERHEAD_BYTES, Upsert
from forebay.primitives.awaitables import NOTHING, failed
from forebay.telemetry.counters import Counts

logger = logging.getLogger("forebay")

_P = ParamSpec("_P")
_T = TypeVar("_T")


def placed(method: Callable[_P, Awaitable[_T]]) -> Callable[_P, Coroutine[object, object, _T]]:
    """A method that takes its place when it is called, and returns what is to be waited for.

    What it raises, its caller gets when it waits. Where no event loop runs, as in `asyncio.run(layer.method())`, the
    loop that waits is the first that can take it.
    """

    @wraps(method)
    def call(*arguments: _P.args, **named: _P.kwargs) -> Coroutine[object, object, _T]:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return _later(method, *arguments, **named)
        try:
            return _wait(method(*arguments, **named))
        except Exception as error:
            return _wait(failed(error))

    return call


async def _wait(waiting: Awaitable[_T]) -> _T:
    return await waiting


async def _later(method: Callable[_P, Awaitable[_T]], *arguments: _P.args, **named: _P.kwargs) -> _T:
    return await method(*arguments, **named)


class Home(Protocol):
    """The event loop that writes."""

    def is_away(self) -> bool:
        """Whether another loop runs here."""

    def bring(self, act: Callable[[], Awaitable[Any]], size: int = OVERHEAD_BYTES) -> Awaitable[Any]:
        """Have it done there, in its place among the calls; its result is to be waited for here."""


class Door:
    """Lets one layer's writes in: `submit` takes a change's place at once, at `home`.

    What a chat writes into a thread that is not its own is dropped, counted and logged. What sessions hold back takes
    at most `max_bytes`; what is more is refused, which `refuse` counts and logs. `spell`: how the database spells ids.
    """

    def __init__(
        self,
        submit: Callable[[Upsert], Awaitable[None]],
        refuse: Callable[[ForebayError], None],
        max_bytes: int,
        counts: Counts,
        home: Home,
        spell: Spell,
    ) -> None:
        self.home = home
        self._spell = spell
        self._counts = counts
        self.room = Room(max_bytes)
        self._submit = submit
        self._refuse = refuse
        self._key = f"forebay {next(_numbers)}"  # among what Chainlit has put off in a session
        self._letting_in: set[asyncio.Task[None]] = set()

    def write(self, change: Upsert) -> Awaitable[None]:
        """Queue a row, now or with its session's first message; what to wait for. Raises what `submit` raises."""
        if self.home.is_away():
            return self.home.bring(partial(self.write, change), change.size)
        session = chat_at_hand()
        if session is not None:
            if is_elsewhere(session, change.thread_id, self._spell):
                return self.drop(change.table)
            if not session.has_first_interaction:
                return self._hold(session, change, change.size)
            if session.thread_queues:
                self._open(session)
        return self._submit(change)

    def enter(self, enter: Enter, size: int = OVERHEAD_BYTES) -> Awaitable[None]:
        """As `write`, for what is more than a row: `enter` takes its place at once. `size`: its bytes in memory."""
        if self.home.is_away():
            return self.home.bring(partial(self.enter, enter, size), size)
        session = chat_at_hand()
        if session is not None and not session.has_first_interaction:
            return self._hold(session, enter, size)
        return self.pass_through(enter)

    def pass_through(self, enter: Callable[[], Awaitable[_T]], size: int = OVERHEAD_BYTES) -> Awaitable[_T]:
        """For what Chainlit never puts off: behind what its session has held back, once that has spoken."""
        if self.home.is_away():
            return self.home.bring(partial(self.pass_through, enter), size)
        session = chat_at_hand()
        if session is not None and session.has_first_interaction and session.thread_queues:
            self._open(session)
        return enter()

    def drop(self, table: str) -> Awaitable[None]:
        """Leave a change out that a chat makes in another's thread."""
        self._counts.accepted[table] += 1
        self._counts.dropped["other_thread"] += 1
        logger.warning("change dropped table=%s reason=a chat writes into its own thread only", table)
        return NOTHING

    def _hold(self, session: WebsocketSession, write: Upsert | Enter, size: int) -> Awaitable[None]:
        waiting = session.thread_queues.setdefault(self._key, deque())
        if not waiting:
            # Chainlit calls this at the session's first message, unless something is written before.
            waiting.append((_flush, self, (HeldBack(self.room),), {}))
        held: HeldBack = waiting[0][2][0]
        try:
            held.add(write, size)
        except QueueFull as error:
            self._refuse(error)
            raise
        return NOTHING

    def _open(self, session: WebsocketSession) -> None:
        # Emptied, not removed: Chainlit may be going through them.
        waiting = session.thread_queues.get(self._key)
        if waiting:
            self.let_in(waiting.popleft()[2][0])

    def let_in(self, held: HeldBack) -> Awaitable[None]:
        """Give all that was held its place; to be awaited until it is as durable as the settings say."""
        task = asyncio.get_running_loop().create_task(_all_of(held.let_in(self._submit)))
        self._letting_in.add(task)
        task.add_done_callback(self._letting_in.discard)
        return task


async def _flush(door: Door, held: HeldBack) -> None:
    let_in = partial(door.let_in, held)
    await (door.home.bring(let_in) if door.home.is_away() else let_in())


async def _all_of(waiting: list[Awaitable[None]]) -> None:
    for result in await asyncio.gather(*waiting, return_exceptions=True):
        if isinstance(result, Exception):
            logger.error(
                "not written, of what came before the first message reason=%s", type(result).__name__
            )


_numbers = itertools.count(1)
