"""An outage under load: it costs disk and not memory, and what was acknowledged is there when it is over."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from asyncio.subprocess import Process
from pathlib import Path

from tests.faults.load import LONG, Audit
from tests.faults.outage_worker import step_id
from tests.support.postgres import PostgresServer

_RATE = 2000  # writes a second, where the machine can do so many
_SIZE = 4000 if LONG else 10_000  # bytes of a step's output
# What is journaled while the database is away, however long that takes; kept in memory it would be more than this.
_BACKLOG = (460 if LONG else 96) * 2**20
_QUEUE_MAX_BYTES = 8 * 2**20
# The queue, and when it is over the batches of 4 MiB that are read back: as rows, as a document, as what is sent.
_MEMORY_MAX = 48 * 2**20


def _journaled(folder: Path) -> int:
    """How many bytes lie in the journals."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # a segment goes when the database has it
            total += path.stat().st_size
    return total


async def _until_journaled(worker: Process, folder: Path, size: int) -> None:
    async with asyncio.timeout(600):
        while _journaled(folder) < size:
            assert worker.returncode is None, "the writers have ended"
            await asyncio.sleep(0.1)


async def test_an_outage_under_load(crashable_server: PostgresServer, tmp_path: Path) -> None:
    url, folder = crashable_server.create_database(), tmp_path / "journals"
    arguments = (url, str(folder), str(_RATE), str(_SIZE), str(_QUEUE_MAX_BYTES))
    worker = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.faults.outage_worker", *arguments),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        await _until_journaled(worker, folder, 1)  # it imports, migrates, and begins to write
        await asyncio.to_thread(crashable_server.crash)
        await _until_journaled(worker, folder, _journaled(folder) + _BACKLOG)
        await asyncio.to_thread(crashable_server.start)
        said, _ = await asyncio.wait_for(worker.communicate(b""), 600)
    finally:
        if worker.returncode is None:
            worker.kill()
            await worker.wait()
    assert worker.returncode == 0
    told = json.loads(said.splitlines()[-1])
    sys.stdout.write(
        f"{told['accepted'] / told['wrote_for']:.0f} writes/s, {told['spilled']} of them in the journal alone;"
        f" memory of at most {told['most_memory'] / 2**20:.1f} MiB;"
        f" {told['backlog']} changes caught up in {told['caught_up_in']:.2f} s (CPU {told['caught_up_cpu']:.2f} s):"
        f" {told['backlog'] / told['caught_up_in']:.0f} changes/s\n"
    )
    assert told["spilled"] > 0
    assert told["most_memory"] < _MEMORY_MAX
    assert told["dropped"] == told["pending"] == 0
    assert told["accepted"] == told["created"] + told["changed"]
    assert told["balanced"]
    acknowledged = {step_id(number): int(number < told["changed"]) for number in range(told["created"])}
    assert await Audit(url).stored() == acknowledged
    assert list(folder.iterdir()) == []
