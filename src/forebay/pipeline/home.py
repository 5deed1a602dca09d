"""The event loop that a pipeline lives in: found, or made, at the first use, and anew where it has ended.

It is the loop that runs then in the main thread, or that `start` is called in. A loop in another thread may end at any
time; where such a one comes first, or comes when the home has ended, the home is a thread of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from threading import get_ident
from typing import Any

from typing_extensions import override

from forebay.errors import LayerClosed, LayerForked, QueueFull, WrongLoop
from forebay.model.changes import OVERHEAD_BYTES
from forebay.pipeline.crossing import Arrivals, Call
from forebay.pipeline.refusals import Refusals
from forebay.primitives.awaitables import Deferred
from forebay.primitives.futures import fail
from forebay.primitives.own_loop import OwnLoop

_LOOK_AROUND = 1.0  # seconds between two looks of who waits for another loop: is it there?


class Home:
    """Where all calls are done: those made in other loops are brought here, in their order.

    `begin` is called in it when it becomes the home, with whether there was another one before. At most `max_bytes`
    wait to be taken, and for `patience` seconds who waits for a loop that stands still.
    """

    def __init__(
        self,
        begin: Callable[[asyncio.AbstractEventLoop, bool], None],
        refusals: Refusals,
        clock: Callable[[], float],
        *,
        max_bytes: int,
        patience: float,
    ) -> None:
        self.closed = False
        self.is_forked = False
        self._begin = begin
        self._refusals = refusals
        self._clock = clock
        self._patience = patience
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None  # the loop's
        self._thread_id = 0
        self._own_loop: OwnLoop | None = None
        self._moving = threading.RLock()
        self._arrivals = Arrivals(max_bytes)
        self._brought: set[asyncio.Task[Any]] = set()
        self._is_taking = False

    @override
    def __repr__(self) -> str:
        return f"<Home {'closed' if self.closed else 'open' if self.has_begun else 'not begun'}>"

    @property
    def has_begun(self) -> bool:
        """Whether there is one, or was."""
        return self._loop is not None

    @property
    def _is_gone(self) -> bool:
        """Whether there is no loop that takes calls, now or later."""
        loop, thread = self._loop, self._thread
        if loop is None or thread is None or loop.is_closed():
            return True
        # One that stands, while its thread runs another or has ended, can't go on.
        return not loop.is_running() and (thread is threading.current_thread() or not thread.is_alive())

    # ---- from inside

    def ensure(self) -> asyncio.AbstractEventLoop:
        """The loop that runs, which is the home or becomes it. Raises LayerClosed, LayerForked or WrongLoop."""
        loop = self._loop
        if loop is not None and loop.is_running() and self._thread_id == get_ident() and not self.closed:
            return loop
        loop = asyncio.get_running_loop()
        if loop is not self._loop or self.closed:
            self._start(loop)
        return loop

    def start(self) -> None:
        """Start in the running loop, unless it runs in another one."""
        with self._moving:
            if self._is_gone:
                self.ensure()

    # ---- from outside

    def is_away(self) -> bool:
        """Whether another loop than this one is the home: then all calls but this one are to be brought there.

        Starts where there is no home. At home it takes what others have brought before.
        """
        loop = self._loop
        # A thread runs one loop at a time. Before Python 3.12, asking for it asks the system for the process's id.
        if (
            loop is not None
            and self._thread_id == get_ident()
            and loop.is_running()
            and not self._arrivals.waiting
        ):
            return False
        return self._look()

    def _look(self) -> bool:
        running = asyncio.get_running_loop()
        if self.is_forked:
            return False
        with self._moving:
            if self._is_gone and not self.closed:
                if threading.current_thread() is threading.main_thread():
                    self._start(running)
                else:
                    self._start_apart()
        if running is not self._loop:
            return not self._is_gone
        self._take_arrivals()
        return False

    def bring(self, act: Callable[[], Awaitable[Any]], size: int = OVERHEAD_BYTES) -> Awaitable[Any]:
        """Have the home do `act`, in the order of these calls; to be awaited for its result, or its error.

        It is done whether somebody waits or not, and whatever becomes of the caller's loop. `size`: its bytes in
        memory. Raises QueueFull when too much waits; who waits gets WrongLoop when the home does not take it.
        """
        call = Call(act, size)
        try:
            self._arrivals.add(call)
        except QueueFull as error:
            self._refusals.note(error)
            raise
        self._knock()
        return Deferred(partial(self._answer_to, call))

    def _knock(self) -> None:
        loop = self._loop
        with contextlib.suppress(RuntimeError):  # it has ended since: whoever comes next finds another
            if loop is not None:
                loop.call_soon_threadsafe(self._take_arrivals)

    def _take_arrivals(self) -> None:
        loop = asyncio.get_running_loop()
        # Not where this was its home, nor while one is taking its place: what came after it would come before it.
        if loop is not self._loop or self._is_taking:
            return
        self._is_taking = True
        try:
            while (call := self._arrivals.next()) is not None:
                task = call.begin(loop)
                if task is not None:
                    self._brought.add(task)
                    task.add_done_callback(self._brought.discard)
        finally:
            self._is_taking = False

    async def _answer_to(self, call: Call) -> Any:
        began = self._clock()
        while not call.answer.done():
            await asyncio.wait([call.answer], timeout=_LOOK_AROUND)
            if not call.answer.done():
                self._look_after(call, self._clock() - began)
        return call.answer.result()

    def _look_after(self, call: Call, waited: float) -> None:
        """Who was to take a call may have ended, or may stand still. Raises WrongLoop."""
        self.is_away()  # finds another
        if call.was_left:
            raise WrongLoop("the data layer's event loop has ended before the call was done")
        if waited >= self._patience and self._arrivals.withdraw(call):
            error = WrongLoop("the data layer's event loop stands still and takes no calls of other threads")
            self._refusals.note(error)
            raise error

    async def leave(self) -> None:
        """End the home of its own, if it has one; to be called elsewhere, when it is closed."""
        if self._own_loop is not None:
            await self._own_loop.end()
            self._take_nothing_more()

    def _take_nothing_more(self) -> None:
        while (call := self._arrivals.next()) is not None:
            call.tell(fail, LayerClosed("the data layer is closed; create a new one"))

    # ---- its beginnings

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        if self.closed:
            raise LayerClosed("the data layer is closed; create a new one")
        if self.is_forked:
            raise LayerForked(
                "this process was forked off the one that the data layer runs in; create a new one"
            )
        if not self._is_gone:
            raise WrongLoop("the data layer runs in another event loop")
        begin = self._moves_to(loop, threading.current_thread())
        begin()

    def _start_apart(self) -> None:
        """In a thread of its own, since the caller's loop may end at any time."""
        self._own_loop = OwnLoop("forebay-home")
        begin = self._moves_to(self._own_loop.loop, self._own_loop.thread)
        self._own_loop.loop.call_soon(begin)
        self._own_loop.loop.call_soon(self._take_arrivals)
        self._own_loop.start()

    def _moves_to(self, loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> Callable[[], None]:
        """Make it the home; what is to be done in it first."""
        before, self._loop = self._loop, loop
        self._thread, self._thread_id = thread, thread.ident or 0
        return partial(self._move_in, loop, before is not None)

    def _move_in(self, loop: asyncio.AbstractEventLoop, moved: bool) -> None:
        self._thread_id = get_ident()
        self._begin(loop, moved)

    def forked(self) -> None:
        """In a forked child: what it was at home in is the parent's."""
        self._loop, self.is_forked = None, True
