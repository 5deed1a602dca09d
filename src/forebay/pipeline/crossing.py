"""Calls that come from other event loops than the one that writes.

Synchronous code reaches Chainlit by `asyncio.run` in a thread. Such a loop may end as soon as its caller has gone on,
or before: what it calls is taken in the order of the calls, and goes on without it.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from typing_extensions import override

from forebay.errors import QueueFull, WrongLoop
from forebay.primitives.futures import fail, quiet_future, settle_with


class Call:
    """One call, made in its caller's loop, with the context that it was made in."""

    __slots__ = ("_act", "_caller", "_context", "_home", "answer", "size")

    def __init__(self, act: Callable[[], Awaitable[Any]], size: int) -> None:
        self.size = size
        self._act = act
        self._context = contextvars.copy_context()
        self._caller = asyncio.get_running_loop()
        self._home: asyncio.AbstractEventLoop | None = None
        self.answer: asyncio.Future[Any] = quiet_future(self._caller)

    def begin(self, home: asyncio.AbstractEventLoop) -> asyncio.Task[Any] | None:
        """Take its place, in the loop that writes, which runs now; the task that goes on with it, if one does."""
        self._home = home
        try:
            waiting = self._context.run(self._act)
        except Exception as error:
            self.tell(fail, error)
            return None
        task = home.create_task(_result_of(waiting), context=self._context)
        task.add_done_callback(self._tell_of)
        return task

    @property
    def was_left(self) -> bool:
        """Whether the loop that took it has ended without a word."""
        return self._home is not None and self._home.is_closed() and not self.answer.done()

    def tell(self, settle: Callable[[asyncio.Future[Any], Any], None], outcome: Any) -> None:
        """Settle the caller's future, if its loop is still there."""
        with contextlib.suppress(RuntimeError):
            self._caller.call_soon_threadsafe(settle, self.answer, outcome)

    def _tell_of(self, task: asyncio.Task[Any]) -> None:
        if task.cancelled():
            self.tell(fail, WrongLoop("the data layer's event loop has ended before the call was done"))
        elif (error := task.exception()) is not None:
            self.tell(fail, error)
        else:
            self.tell(settle_with, task.result())


class Arrivals:
    """Calls in their order, until the loop that writes takes them. At most `max_bytes` wait."""

    def __init__(self, max_bytes: int) -> None:
        self.waiting: deque[Call] = deque()
        self._max_bytes = max_bytes
        self._size = 0
        self._lock = threading.Lock()

    @override
    def __repr__(self) -> str:
        return f"<Arrivals {len(self.waiting)} waiting, {self._size} bytes>"

    def add(self, call: Call) -> None:
        """From any thread. Raises QueueFull at the limit; what comes alone is taken, however large."""
        with self._lock:
            if self.waiting and self._size + call.size > self._max_bytes:
                raise QueueFull("too much waits that came from other threads; the event loop is blocked")
            self.waiting.append(call)
            self._size += call.size

    def next(self) -> Call | None:
        """The one that has waited longest."""
        with self._lock:
            if not self.waiting:
                return None
            call = self.waiting.popleft()
            self._size -= call.size
            return call

    def withdraw(self, call: Call) -> bool:
        """Take it back. False where it was taken already."""
        with self._lock:
            if call not in self.waiting:
                return False
            self.waiting.remove(call)
            self._size -= call.size
            return True


async def _result_of(waiting: Awaitable[Any]) -> Any:
    return await waiting
