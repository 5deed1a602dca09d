"""One measurement of writes, in this process: through a layer, or bare."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from array import array
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Self

import sqlalchemy as sa
from chainlit.data.base import BaseDataLayer

from forebay.bench import floors, layers
from forebay.bench.gauges import (
    DAEMON,
    DatabaseCost,
    Memory,
    connect,
    connections,
    cpu_of,
    lag_sampled,
    milliseconds,
    quantile,
)
from forebay.bench.plan import Load, Subject
from forebay.bench.reads import NothingRead
from forebay.bench.workload import ROWS_A_TURN, Session, Written, converse, keep_pace
from forebay.layer.data_layer import ForebayDataLayer

Result = dict[str, float | None]
_DAEMON_TIMEOUT = 30.0  # seconds
_READ_STEPS = 50
_READ_EVERY = 0.02  # seconds
_READS, _READ_ON = 50, 1.0  # at most, and for so many seconds
_CLOSING_SPELL = 0.2  # seconds that connections which nobody needs have to go


async def measure(subject: Subject, url: str, load: Load, folder: Path) -> Result:
    """Write a load, and read back whether it is in the database."""
    if subject.is_floor:
        return await _measure_floor(subject, url, load)
    layer = await layers.open_layer(subject, url, folder)
    async with _daemon(subject, url, folder) as daemon:
        before = await DatabaseCost.of(url) if load.pause else None
        result, written = await _measure_layer(layer, subject, load, daemon)
        result["connections_idle"] = await _idle_connections(url)
        await layers.close_layer(layer)
    if before is not None:
        result |= (await DatabaseCost.of(url)).since(before, load.sessions * load.turns)
    return {**result, **await audit(subject, url, written, result["seconds"] or 0.0)}


async def _measure_floor(subject: Subject, url: str, load: Load) -> Result:
    memory = Memory()
    rows, seconds, cpu = await floors.write(subject, url, load)
    return {
        "rows_per_second": rows / seconds,
        "cpu_us_per_row": cpu / rows * 1e6,
        "peak_mib": memory.growth(),
        "steps": float(rows),
        "seconds": seconds,
    }


async def _measure_layer(
    layer: BaseDataLayer, subject: Subject, load: Load, daemon: int | None
) -> tuple[Result, Written]:
    written, lags = Written(), array("d")
    sessions = [Session(layer, load, written) for _ in range(load.sessions)]
    await asyncio.gather(*(session.open() for session in sessions))
    if isinstance(layer, ForebayDataLayer):
        await layer.flush()
    reader = await Reader.of(layer, load)
    memory, daemon_cpu = Memory(), cpu_of(daemon) if daemon else None
    async with reader.reading():
        started, cpu = time.perf_counter(), time.process_time()
        with lag_sampled(lags):
            if load.rate is not None:
                await keep_pace(sessions, load.rate, load.seconds)
            else:
                await converse(sessions, load.seconds)
            if isinstance(layer, ForebayDataLayer):
                await layer.flush()
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    writes = len(written.calls)
    await reader.read_on()
    return {
        "writes_per_second": writes / seconds,
        "cpu_us_per_write": cpu / writes * 1e6,
        "call_p50_ms": milliseconds(quantile(written.calls, 0.5)),
        "call_p99_ms": milliseconds(quantile(written.calls, 0.99)),
        "lag_p99_ms": milliseconds(quantile(lags, 0.99)),
        "peak_mib": memory.growth(),
        "daemon_cpu_us_per_write": _daemon_cpu(daemon, daemon_cpu, writes),
        "writes": float(writes),
        "failed_writes": float(written.failed),
        "seconds": seconds,
        **reader.result,
        **_batch_rows(layer),
    }, written


class Reader:
    """Somebody who opens one thread, again and again. Without a thread: nobody."""

    def __init__(self, layer: BaseDataLayer, thread_id: str | None) -> None:
        self._layer = layer
        self._thread_id = thread_id
        self._during, self._after = array("d"), array("d")

    @classmethod
    async def of(cls, layer: BaseDataLayer, load: Load) -> Self:
        """A reader of a thread of 50 steps, as long as the load's, if the load wants one."""
        if not load.reader:
            return cls(layer, None)
        session = Session(layer, replace(load, turns=_READ_STEPS // ROWS_A_TURN, updates=False), Written())
        await session.open()
        await session.chat()
        reader = cls(layer, session.thread_id)
        await reader._read(array("d"), time.perf_counter())
        return reader

    async def _read(self, times: array[float], started: float) -> None:
        assert self._thread_id is not None
        thread = await self._layer.get_thread(self._thread_id)
        times.append(time.perf_counter() - started)
        if thread is None or len(thread["steps"]) != _READ_STEPS:
            raise NothingRead(f"{type(self._layer).__name__}: a thread of {_READ_STEPS} steps")

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[None]:
        """Read as long as this lasts."""
        over = self._thread_id is None

        async def read() -> None:
            while not over:
                due = time.perf_counter() + _READ_EVERY
                await asyncio.sleep(_READ_EVERY)
                await self._read(self._during, due)  # a loop that comes late to it is part of the waiting

        task = asyncio.create_task(read())
        try:
            yield
        finally:
            over = True
            await task

    async def read_on(self) -> None:
        """Read a few times while nobody writes."""
        ends = time.perf_counter() + _READ_ON
        while self._thread_id is not None and len(self._after) < _READS and time.perf_counter() < ends:
            await self._read(self._after, time.perf_counter())

    @property
    def result(self) -> Result:
        """How long it took, and how often it was read meanwhile."""
        if self._thread_id is None:
            return {}
        return {
            "read_during_ms": milliseconds(quantile(self._during, 0.5)),
            "read_during_p99_ms": milliseconds(quantile(self._during, 0.99)),
            "read_after_ms": milliseconds(quantile(self._after, 0.5)),
            "reads_during": float(len(self._during)),
        }


def _daemon_cpu(daemon: int | None, before: float | None, writes: int) -> float | None:
    after = cpu_of(daemon) if daemon else None
    return (after - before) / writes * 1e6 if after is not None and before is not None else None


def _batch_rows(layer: BaseDataLayer) -> Result:
    if not isinstance(layer, ForebayDataLayer):
        return {}
    batches = layer.registry.get_sample_value("forebay_batch_rows_count")
    rows = layer.registry.get_sample_value("forebay_batch_rows_sum")
    return {"rows_per_batch": rows / batches if rows and batches else None}


async def _idle_connections(url: str) -> float:
    await asyncio.sleep(_CLOSING_SPELL)
    connection = await connect(url)
    try:
        return float(await connections(connection, str(sa.make_url(url).database)))
    finally:
        await connection.close()


async def audit(subject: Subject, url: str, written: Written, seconds: float) -> Result:
    """Which steps are not there, or not as they were at last; and the rows that got there a second."""
    if subject.kind == "none":
        return {}
    connection = await connect(url)
    try:
        stored = await layers.stored_outputs(subject.kind, connection, list(written.last))
    finally:
        await connection.close()
    last = written.last
    return {
        "missing_steps": float(sum(key not in stored for key in last)),
        "stale_steps": float(sum(key in stored and stored[key] != output for key, output in last.items())),
        "steps": float(len(last)),
        "rows_per_second": len(stored) / seconds,
    }


@contextlib.asynccontextmanager
async def _daemon(subject: Subject, url: str, folder: Path) -> AsyncIterator[int | None]:
    """`forebay drain --watch` beside this process, where the writer is external; its process id."""
    if subject.writer != "external":
        yield None
        return
    named = sa.make_url(url).update_query_dict({"application_name": DAEMON})
    environment = {
        **os.environ,
        "FOREBAY_DATABASE_URL": named.render_as_string(hide_password=False),
        "FOREBAY_METRICS_ADDRESS": "off",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "forebay.cli", "drain", str(folder), "--watch"),
        env=environment,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        await _await_daemon(url, process)
        yield process.pid
    finally:
        process.terminate()
        await process.wait()


async def _await_daemon(url: str, process: asyncio.subprocess.Process) -> None:
    """Return when it is connected, and so has started."""
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1 AND datname = current_database()"
    )
    connection = await connect(url)
    try:
        async with asyncio.timeout(_DAEMON_TIMEOUT):
            while not await connection.fetchval(query, DAEMON):
                if process.returncode is not None:
                    raise RuntimeError("`forebay drain --watch` has ended")
                await asyncio.sleep(0.02)
    finally:
        await connection.close()
