"""Futures that are settled by somebody else than who made them, and whose waiter may have gone."""

from __future__ import annotations

import asyncio
from typing import Any


def settle(ticket: asyncio.Future[None], error: Exception | None) -> None:
    """Done, or failed with the error; not where its waiter was cancelled."""
    if error is not None:
        fail(ticket, error)
    elif not ticket.done():
        ticket.set_result(None)


def fail(future: asyncio.Future[Any], error: Exception) -> None:
    """Failed with the error, unless it is done or was cancelled."""
    if not future.done():
        future.set_exception(error)


def quiet_future(loop: asyncio.AbstractEventLoop) -> asyncio.Future[Any]:
    """A future whose error is not reported when its caller has gone: the writer reports it already."""
    future = loop.create_future()
    future.add_done_callback(lambda done: None if done.cancelled() else done.exception())
    return future
