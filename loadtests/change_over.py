"""`forebay import` from the official layer's tables: rows a second, memory, and how long the last pass takes.

Each pass is a process of its own. Between the first and the next, every hundredth chat is changed in the source.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import asyncpg
import click
from rich.console import Console
from rich.table import Table
from tests.support.postgres import PostgresServer

from forebay.bench.layers import make_tables
from forebay.bench.seed import Group, fill

_RESULTS = Path(__file__).parent / "results" / "change_over.json"
_STEPS_A_THREAD = 20
_CHANGE = """UPDATE "Step" SET output = output || '!' WHERE "threadId" IN (
    SELECT id FROM "Thread" WHERE hashtext(id) % 100 = 0)"""


@dataclass(frozen=True)
class Measured:
    """One pass. Times in seconds, memory in MiB; `cpu` is the importing process's own."""

    target: str
    chats: int
    rows: int
    seconds: float
    cpu: float
    peak: float


def _pass(source: str, target: str) -> tuple[dict[str, Any], float, float, float]:
    """What a pass has told, its time, its CPU and its peak memory."""
    began = time.monotonic()
    reader, writer = os.pipe()
    command = [sys.executable, "-m", "forebay", "import", source, "--json"]
    process = os.posix_spawn(
        sys.executable,
        command,
        {**os.environ, "FOREBAY_AUTO_MIGRATE": "true", "FOREBAY_DATABASE_URL": target},
        file_actions=[(os.POSIX_SPAWN_DUP2, writer, 1), (os.POSIX_SPAWN_CLOSE, reader)],
    )
    os.close(writer)
    with os.fdopen(reader) as output:
        told = output.read()
    _, status, used = os.wait4(process, 0)
    if status:
        raise click.ClickException(f"the import failed: {told}")
    found: dict[str, Any] = json.loads(told)
    return found, time.monotonic() - began, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


async def _change(source: str) -> None:
    connection = await asyncpg.connect(source)
    try:
        await connection.execute(_CHANGE)
    finally:
        await connection.close()


def _measure(source: str, targets: dict[str, str]) -> list[Measured]:
    measured = []
    for number in range(3):
        for name, target in targets.items():
            told, seconds, cpu, peak = _pass(source, target)
            rows = sum(told["rows"].values())
            measured.append(Measured(f"{name}, pass {number + 1}", told["threads"], rows, seconds, cpu, peak))
        if number == 0:
            asyncio.run(_change(source))
    return measured


@click.command()
@click.option("--steps", default=1_000_000, show_default=True, help="Steps in the source, 20 a chat.")
@click.option("--save", is_flag=True, help=f"Keep the results in {_RESULTS.name}.")
def main(steps: int, save: bool) -> None:
    """Import a source of the official layer into PostgreSQL and SQLite: all, what changed, and nothing."""
    load = os.getloadavg()[0]
    with PostgresServer() as server, tempfile.TemporaryDirectory() as folder:
        source = server.create_database()
        asyncio.run(make_tables("chainlit", source))
        asyncio.run(fill("chainlit", source, [Group("all", steps // _STEPS_A_THREAD, _STEPS_A_THREAD, 500)]))
        targets = {"PostgreSQL": server.create_database(), "SQLite": f"sqlite:///{folder}/chat.db"}
        measured = _measure(source, targets)
    report = {
        "command": f"python -m loadtests.change_over --steps {steps}",
        "python": platform.python_version(),
        "steps": steps,
        # Beside others' work only the CPU's seconds say something.
        "load": [load, os.getloadavg()[0]],
        "nice": os.nice(0),
        "passes": [asdict(one) for one in measured],
    }
    if save:
        _RESULTS.write_text(json.dumps(report, indent=2) + "\n")
    table = Table("target", "chats", "rows", "s", "CPU s", "rows a CPU second", "peak MiB")
    for one in measured:
        numbers = (one.seconds, one.cpu, one.rows / one.cpu, one.peak)
        table.add_row(
            one.target, f"{one.chats:,}", f"{one.rows:,}", *(f"{number:,.1f}" for number in numbers)
        )
    Console().print(table)


if __name__ == "__main__":
    main()
