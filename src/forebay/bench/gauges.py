"""What is read off a process and its database while it works: memory, CPU, the loop's lag, connections."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import sys
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import asyncpg

# Connections that are not the measured process's, by their application_name.
DAEMON, OURS = "forebay drain", "forebay bench"
_LAG_EVERY = 0.005  # seconds
_CONNECTIONS = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND pid <> pg_backend_pid()"
    " AND backend_type = 'client backend' AND application_name <> ALL ($2::text[])"
)
_STATUS = Path("/proc/self/status")
_COUNTED_AFTER = 1.2  # seconds: sessions hand in what they have counted once a second at most
_COST = (
    "SELECT pg_current_wal_insert_lsn() - '0/0', sum(n_tup_ins), sum(n_tup_upd), sum(n_tup_hot_upd)"
    " FROM pg_stat_user_tables"
)


async def connections(connection: asyncpg.Connection, database: str) -> int:
    """Who is connected to a database, the benchmark and the daemon left out."""
    return int(await connection.fetchval(_CONNECTIONS, database, [DAEMON, OURS]))


async def connect(url: str) -> asyncpg.Connection:
    """A connection of the benchmark's own, which is not counted."""
    return await asyncpg.connect(url, server_settings={"application_name": OURS})


class Memory:
    """By how many MiB the process grows, at its peak."""

    def __init__(self) -> None:
        with contextlib.suppress(OSError):  # Linux: the peak begins anew
            Path("/proc/self/clear_refs").write_text("5")
        self._before = _status("VmRSS") or _peak()

    def growth(self) -> float:
        """MiB at the peak, beyond what it was at first."""
        return max(0.0, (_status("VmHWM") or _peak()) - self._before)


@dataclass(frozen=True)
class DatabaseCost:
    """What a database has done so far: bytes of its server's log, versions of rows made, how many of them HOT."""

    wal: float
    inserted: float
    updated: float
    hot: float

    @classmethod
    async def of(cls, url: str) -> Self:
        """Now, with all that other sessions have counted."""
        await asyncio.sleep(_COUNTED_AFTER)
        connection = await connect(url)
        try:
            row = await connection.fetchrow(_COST)
            assert row is not None
            return cls(*map(float, row))
        finally:
            await connection.close()

    def since(self, before: DatabaseCost, turns: int) -> dict[str, float | None]:
        """What each of so many turns has cost."""
        updated = self.updated - before.updated
        return {
            "wal_bytes_per_turn": (self.wal - before.wal) / turns,
            "row_versions_per_turn": (self.inserted - before.inserted + updated) / turns,
            "hot_percent": (self.hot - before.hot) / updated * 100 if updated else None,
        }


def _status(name: str) -> float | None:
    if not _STATUS.exists():
        return None
    line = next((line for line in _STATUS.read_text().splitlines() if line.startswith(f"{name}:")), None)
    return float(line.split()[1]) / 1024 if line else None


def _peak() -> float:
    # macOS counts bytes there, others KiB.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def cpu_of(pid: int) -> float | None:
    """The CPU seconds of another process so far; None where the system does not say."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def lag_sampled(into: array[float]) -> Iterator[None]:
    """By how many seconds the loop's timers come late."""

    async def sample() -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _LAG_EVERY
            await asyncio.sleep(_LAG_EVERY)
            into.append(loop.time() - due)

    task = asyncio.create_task(sample())
    try:
        yield
    finally:
        task.cancel()


def quantile(values: Iterable[float], share: float) -> float | None:
    """The value that `share` of them do not exceed; None of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


def milliseconds(seconds: float | None) -> float | None:
    """Seconds in milliseconds; None stays."""
    return None if seconds is None else seconds * 1000
