"""Cancelling a call at each of its awaits in turn."""

from __future__ import annotations

import asyncio
import gc
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Literal

from tests.support.patience import PATIENCE

When = Literal["waiting", "waking"]


async def cancelled_at(number: int, when: When, call: Coroutine[Any, Any, Any]) -> bool:
    """Run a call in a task, and cancel it the `number`th time that it waits; whether it waited so often.

    `waiting`: what it waits for has not come; `waking`: it has, in the same turn of the loop. The call must
    have ended then, cancelled or with its result, which a call may have had already.
    """
    cancelled = False

    def suspended(count: int, future: Any) -> None:
        nonlocal cancelled
        if count == number:
            cancelled = True
            if when == "waiting" or future is None:  # a bare yield
                loop.call_soon(task.cancel)
            else:
                future.add_done_callback(lambda _: task.cancel())  # before the task's own callback

    loop = asyncio.get_running_loop()
    task = asyncio.create_task(_run(call, suspended))
    done, _ = await asyncio.wait([task], timeout=PATIENCE)
    assert done, f"a call that was cancelled at await {number} goes on: {task}"
    if not task.cancelled():
        task.result()
    return cancelled


async def _run(call: Coroutine[Any, Any, Any], suspended: Callable[[int, Any], None]) -> Any:
    return await _watched(call, suspended)


@types.coroutine
def _watched(
    call: Coroutine[Any, Any, Any], suspended: Callable[[int, Any], None]
) -> Generator[Any, Any, Any]:
    """Drives the call as a task does, and tells of each time that it hands something up to wait for."""
    resume: Callable[[Any], Any] = call.send
    value: Any = None
    count = 0
    while True:
        try:
            future = resume(value)
        except StopIteration as end:
            return end.value
        count += 1
        suspended(count, future)
        try:
            value, resume = (yield future), call.send
        except BaseException as error:
            value, resume = error, call.throw


def waiting_futures() -> int:
    """How many futures of this process are not done: what somebody waits for, or has forgotten."""
    gc.collect()
    return sum(
        isinstance(thing, asyncio.Future) and not isinstance(thing, asyncio.Task) and not thing.done()
        for thing in gc.get_objects()
    )
