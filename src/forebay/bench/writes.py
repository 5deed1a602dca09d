"""One measurement of writes, in this process: through a layer, or bare."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from array import array
from collections.abc import AsyncIterator
from pathlib import Path

import sqlalchemy as sa
from chainlit.data.base import BaseDataLayer

from forebay.bench import floors, layers
from forebay.bench.gauges import (
    DAEMON,
    Memory,
    connect,
    connections,
    cpu_of,
    lag_sampled,
    milliseconds,
    quantile,
)
from forebay.bench.plan import Load, Subject
from forebay.bench.workload import Session, Written, converse, keep_pace
from forebay.data_layer import ForebayDataLayer

Result = dict[str, float | None]
_DAEMON_TIMEOUT = 30.0  # seconds
_CLOSING_SPELL = 0.2  # seconds that connections which nobody needs have to go


async def measure(subject: Subject, url: str, load: Load, folder: Path) -> Result:
    """Write a load, and read back whether it is in the database."""
    if subject.is_floor:
        return await _measure_floor(subject, url, load)
    layer = await layers.open_layer(subject, url, folder)
    async with _daemon(subject, url, folder) as daemon:
        result, written = await _measure_layer(layer, subject, load, daemon)
        result["connections_idle"] = await _idle_connections(url)
        await layers.close_layer(layer)
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
    memory, daemon_cpu = Memory(), cpu_of(daemon) if daemon else None
    started, cpu = time.perf_counter(), time.process_time()
    with lag_sampled(lags):
        if load.rate is not None:
            await keep_pace(sessions, load.rate, load.seconds)
        else:
            await converse(sessions)
        if isinstance(layer, ForebayDataLayer):
            await layer.flush()
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    writes = len(written.calls)
    return {
        "writes_per_second": writes / seconds,
        "cpu_us_per_write": cpu / writes * 1e6,
        "call_p50_ms": milliseconds(quantile(written.calls, 0.5)),
        "call_p99_ms": milliseconds(quantile(written.calls, 0.99)),
        "lag_p99_ms": milliseconds(quantile(lags, 0.99)),
        "peak_mib": memory.growth(),
        "daemon_cpu_us_per_write": _daemon_cpu(daemon, daemon_cpu, writes),
        "writes": float(writes),
        "seconds": seconds,
        **_batch_rows(layer),
    }, written


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
        stored = await layers.stored_outputs(subject.kind, connection)
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
