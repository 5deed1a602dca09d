"""Futures that are settled by somebody else than who made them, and whose waiter may have gone, with its loop."""

from __future__ import annotations

import asyncio
from typing import Any


def settle(ticket: asyncio.Future[None], error: Exception | None) -> None:
    """Done, or failed with the error; not where its waiter was cancelled."""
    if error is not None:
        fail(ticket, error)
    else:
        settle_with(ticket, None)


def fail(future: asyncio.Future[Any], error: Exception) -> None:
    """Failed with the error, unless it is done or was cancelled."""
    if _is_awaited(future):
        future.set_exception(error)


def settle_with(future: asyncio.Future[Any], result: Any) -> None:
    """Done with the result, unless it is done or was cancelled."""
    if _is_awaited(future):
        future.set_result(result)


def _is_awaited(future: asyncio.Future[Any]) -> bool:
    return not future.done() and not future.get_loop().is_closed()


def quiet_future(loop: asyncio.AbstractEventLoop) -> asyncio.Future[Any]:
    """A future whose error is not reported when its caller has gone: the writer reports it already."""
    future = loop.create_future()
    future.add_done_callback(lambda done: None if done.cancelled() else done.exception())
    return future
