"""Measurements of reads through a layer, in this process, one kind after the other."""

from __future__ import annotations

import itertools
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from chainlit.data.base import BaseDataLayer
from chainlit.types import Pagination, ThreadFilter

from forebay.bench import layers, seed
from forebay.bench.gauges import milliseconds, quantile
from forebay.bench.plan import PAGE, Reading, Subject

_Call = Callable[[], Awaitable[Any]]
_WARM_UP_SHARE = 0.25  # of the budget: a first call that takes longer is counted, not repeated


class NothingRead(Exception):
    """A layer has read less than there is."""


async def measure(
    subject: Subject,
    url: str,
    readings: Sequence[Reading],
    folder: Path,
    repeats: int,
    budget: float,
    limit: float,
) -> AsyncIterator[dict[str, Any]]:
    """Read each kind; a result each. A call that takes longer than `limit` seconds ends the process.

    That is a signal's doing: Python that computes can't be cancelled, and some layers compute for minutes.
    """
    layer = await layers.open_layer(subject, url, folder)
    for reading in readings:
        times = await _times(_call(layer, reading), repeats, budget, limit)
        yield {
            "reading": reading.name,
            "p50_ms": milliseconds(quantile(times, 0.5)),
            "p99_ms": milliseconds(quantile(times, 0.99)),
            "reads": float(len(times)),
        }
    await layers.close_layer(layer)


async def _times(call: _Call, repeats: int, budget: float, limit: float) -> list[float]:
    times: list[float] = []
    ends = time.perf_counter() + budget
    try:
        first = await _timed(call, limit)
        if first > budget * _WARM_UP_SHARE:
            times.append(first)
        while not times or (len(times) < repeats and time.perf_counter() < ends):
            times.append(await _timed(call, limit))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return times


async def _timed(call: _Call, limit: float) -> float:
    signal.setitimer(signal.ITIMER_REAL, limit)
    started = time.perf_counter()
    await call()
    return time.perf_counter() - started


def _call(layer: BaseDataLayer, reading: Reading) -> _Call:
    if reading.operation == "get_thread":
        return _get_thread(layer, reading.size)
    cursor = seed.tenth_page_cursor(reading.size) if reading.operation == "tenth page" else None
    pagination = Pagination(first=PAGE, cursor=cursor)
    search = seed.NEEDLE if reading.operation == "search" else None
    filters = ThreadFilter(userId=seed.user_id(reading.size), search=search, feedback=None)

    async def list_threads() -> None:
        page = await layer.list_threads(pagination, filters)
        if not page.data:
            raise NothingRead(f"{type(layer).__name__}: {reading.name}")

    return list_threads


def _get_thread(layer: BaseDataLayer, steps: int) -> _Call:
    thread_ids = itertools.cycle(seed.thread_ids(steps))

    async def get_thread() -> None:
        thread = await layer.get_thread(next(thread_ids))
        if thread is None or len(thread["steps"]) != steps:
            raise NothingRead(f"{type(layer).__name__}: a thread of {steps} steps")

    return get_thread
