"""Threads for calls that block."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import TypeVar

import anyio

_Result = TypeVar("_Result")


async def run(act: Callable[[], _Result], limiter: anyio.CapacityLimiter | None = None) -> _Result:
    """Its result, as from `anyio.to_thread.run_sync`: no cancel scope interrupts what has begun.

    That function looks for the loop's first task at every call, and where Chainlit runs the loop it finds it only
    after all the others: with the tasks of 500 people, for milliseconds.
    """
    room: contextlib.AbstractAsyncContextManager[object] = limiter or contextlib.nullcontext()
    async with room:
        with anyio.CancelScope(shield=True):
            result = await asyncio.to_thread(act)
    return result


async def taken(act: Callable[[], _Result], give_back: Callable[[_Result], object]) -> _Result:
    """What `act` takes hold of in a thread; of whoever is cancelled meanwhile, it is given back when it is there."""
    taking = asyncio.ensure_future(asyncio.to_thread(act))
    try:
        return await asyncio.shield(taking)
    except asyncio.CancelledError:
        taking.add_done_callback(lambda done: _give(done, give_back))
        raise


def _give(done: asyncio.Future[_Result], give_back: Callable[[_Result], object]) -> None:
    if not done.cancelled() and done.exception() is None:
        give_back(done.result())
