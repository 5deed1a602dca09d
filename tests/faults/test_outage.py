"""An outage under load: it costs disk and not memory, and what was acknowledged is there when it is over."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import subprocess
import sys
from pathlib import Path

from tests.faults.load import LONG, Audit
from tests.faults.outage_worker import step_id
from tests.support.postgres import PostgresServer

_OUTAGE = 60.0 if LONG else 5.0  # seconds
_BEFORE = 2.0
_RATE = 2000  # writes a second
_SIZE = 4000 if LONG else 10_000  # bytes of a step's output
_QUEUE_MAX_BYTES = 8 * 1024 * 1024
# The queue, and when it is over the batches of 4 MiB that are read back: as rows, as a document, as what is sent.
# Kept in memory, the writes would be more: 95 MiB in the short form, 460 in the long one.
_GROWTH_MAX = 64  # MiB


def _memory(pid: int) -> int:
    """A process's resident memory in bytes."""
    found = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


class _Memory:
    """The most that a process has needed since it was last asked, in bytes."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._most = 0

    async def watch(self) -> None:
        """Until cancelled, or the process is gone."""
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, AssertionError):
            while True:
                self._most = max(self._most, _memory(self._pid))
                await asyncio.sleep(0.05)

    def most(self) -> int:
        most, self._most = self._most, 0
        return most


async def test_an_outage_under_load(crashable_server: PostgresServer, tmp_path: Path) -> None:
    url, folder = crashable_server.create_database(), tmp_path / "journals"
    arguments = (url, str(folder), str(_RATE), str(_SIZE), str(_QUEUE_MAX_BYTES))
    worker = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.faults.outage_worker", *arguments),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    memory = _Memory(worker.pid)
    watching = asyncio.create_task(memory.watch())
    try:
        while not list(folder.glob("*.journal")):  # noqa: ASYNC110 - it imports, migrates, and begins to write
            await asyncio.sleep(0.1)
        before = _memory(worker.pid)
        await asyncio.sleep(_BEFORE)
        await asyncio.to_thread(crashable_server.crash)
        await asyncio.sleep(_OUTAGE)
        await asyncio.to_thread(crashable_server.start)
        in_outage = memory.most()
        said, _ = await asyncio.wait_for(worker.communicate(b""), 60 + 2 * _OUTAGE)
    finally:
        watching.cancel()
        if worker.returncode is None:
            worker.kill()
            await worker.wait()
    assert worker.returncode == 0
    told = json.loads(said.splitlines()[-1])
    growth = [(most - before) / 2**20 for most in (in_outage, memory.most())]  # MiB
    sys.stdout.write(
        f"{told['accepted'] / told['wrote_for']:.0f} writes/s, {told['spilled']} of them in the journal alone;"
        f" memory {before >> 20} MiB, {growth[0]:+.1f} MiB in an outage of {_OUTAGE:g} s, {growth[1]:+.1f} MiB after;"
        f" {told['backlog']} changes caught up in {told['caught_up_in']:.2f} s (CPU {told['caught_up_cpu']:.2f} s):"
        f" {told['backlog'] / told['caught_up_in']:.0f} changes/s\n"
    )
    assert told["spilled"] > 0
    assert max(growth) < _GROWTH_MAX
    assert told["dropped"] == told["pending"] == 0
    assert told["accepted"] == told["created"] + told["changed"]
    assert told["balanced"]
    acknowledged = {step_id(number): int(number < told["changed"]) for number in range(told["created"])}
    assert await Audit(url).stored() == acknowledged
    assert list(folder.iterdir()) == []
