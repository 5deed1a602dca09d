"""Writes of many sessions at once, through forebay and through both of Chainlit's SQL layers, in one run.

Each session writes what a turn with two tool steps writes: nine times, each as a task of its own, as Chainlit
does. Every measurement is a process of its own on a database of its own; layers alternate over the rounds.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import click
from chainlit.context import init_http_context
from chainlit.data.base import BaseDataLayer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from tests.support.postgres import PostgresServer

from forebay import ForebayDataLayer
from forebay.settings import Durability
from loadtests.layers import LAYERS, STEPS_QUERY, create

_RESULTS = Path(__file__).parent / "results" / "compare.json"
_WRITES_A_TURN = 9
_MEASURED = {
    "forebay, journal": ("--layer", "forebay", "--durability", "journal"),
    "forebay, memory": ("--layer", "forebay", "--durability", "memory"),
    **{name: ("--layer", name) for name in LAYERS if name != "forebay"},
}


def _now() -> str:
    return datetime.now(UTC).replace(tzinfo=None).isoformat() + "Z"


def _message(kind: str, thread_id: str, output: str, parent_id: str | None = None) -> dict[str, Any]:
    """The keys of `Message.to_dict()`."""
    moment = _now()
    return {
        "id": str(uuid.uuid4()), "threadId": thread_id, "parentId": parent_id, "createdAt": moment,
        "command": None, "modes": None, "start": moment, "end": moment, "output": output, "name": "Assistant",
        "type": kind, "language": None, "streaming": False, "isError": False, "waitForAnswer": False,
        "metadata": {}, "tags": None,
    }  # fmt: skip


def _step(kind: str, name: str, thread_id: str, parent_id: str | None) -> dict[str, Any]:
    """The keys of `Step.to_dict()`, less those that the documented tables lack."""
    moment = _now()
    return {
        "name": name, "type": kind, "id": str(uuid.uuid4()), "threadId": thread_id, "parentId": parent_id,
        "streaming": False, "metadata": {}, "tags": None, "input": "", "isError": False, "output": "",
        "createdAt": moment, "start": moment, "end": None, "language": None, "defaultOpen": False,
        "autoCollapse": False, "showInput": "json", "generation": None,
    }  # fmt: skip


class _Session:
    """One person's chat. `last` holds each step's last output."""

    def __init__(self, layer: BaseDataLayer, last: dict[str, str]) -> None:
        self._layer = layer
        self._last = last
        self._thread_id = str(uuid.uuid4())
        self._tasks: list[asyncio.Task[Any]] = []

    async def chat(self, turns: int) -> None:
        await self._layer.update_thread(self._thread_id, name="A chat")
        for number in range(turns):
            await self._turn(number)
            # A person reads the answer before the next question; the layer's tasks are over by then.
            await asyncio.gather(*self._tasks)
            self._tasks.clear()

    async def _turn(self, number: int) -> None:
        thread = self._thread_id
        await self._start(self._layer.create_step, _message("user_message", thread, f"Question {number}?"))
        run = _step("run", "on_message", thread, None)
        await self._start(self._layer.create_step, run)
        for name in ("search", "read"):
            tool = _step("tool", name, thread, run["id"])
            await self._start(self._layer.create_step, tool)
            tool = {**tool, "output": f"Result of {name} {number}: " + "found it. " * 20, "end": _now()}
            await self._start(self._layer.update_step, tool)
        answer = _message("assistant_message", thread, "The answer begins", run["id"])
        await self._start(self._layer.create_step, answer)
        answer = {**answer, "output": "The answer begins and ends. " + "More of it. " * 40}
        await self._start(self._layer.update_step, answer)
        await self._start(self._layer.update_step, {**run, "output": f"done {number}", "end": _now()})

    async def _start(self, write: Callable[[Any], Awaitable[Any]], values: dict[str, Any]) -> None:
        self._last[values["id"]] = values["output"]
        self._tasks.append(asyncio.ensure_future(write(dict(values))))
        await asyncio.sleep(0)  # Chainlit emits to the websocket here


async def _measure(
    name: str, url: str, sessions: int, turns: int, durability: Durability
) -> dict[str, float]:
    logging.disable(logging.CRITICAL)
    init_http_context()
    layer = await create(name, url, durability)
    last: dict[str, str] = {}
    started, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(_Session(layer, last).chat(turns) for _ in range(sessions)))
    if isinstance(layer, ForebayDataLayer):
        await layer.flush()
    elapsed, cpu = time.perf_counter() - started, time.process_time() - cpu
    if name == "chainlit":
        await layer.pool.close()  # type: ignore[attr-defined]  # its close() leaves connections open
    else:
        await layer.close()
    writes = sessions * turns * _WRITES_A_TURN
    stored = await _stored(name, url)
    return {
        "writes_per_second": writes / elapsed,
        "cpu_us_per_write": cpu / writes * 1e6,
        "missing_steps": float(sum(key not in stored for key in last)),
        "stale_steps": float(sum(key in stored and stored[key] != output for key, output in last.items())),
        "steps": float(len(last)),
    }


async def _stored(name: str, url: str) -> dict[str, str]:
    connection = await asyncpg.connect(url)
    rows = await connection.fetch(STEPS_QUERY[name])
    await connection.close()
    return {row[0]: row[1] for row in rows}


def _measure_apart(url: str, options: list[str]) -> dict[str, float]:
    command = [sys.executable, "-m", "loadtests.compare", "--url", url, *options]
    with tempfile.TemporaryDirectory() as folder:
        env = os.environ | {"FOREBAY_JOURNAL_DIR": folder, "FOREBAY_METRICS_ADDRESS": "127.0.0.1:0"}
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=env)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


@click.command()
@click.option("--sessions", default=200, show_default=True, help="Chats at once.")
@click.option("--turns", default=5, show_default=True, help="Turns of each chat; nine writes a turn.")
@click.option("--rounds", default=3, show_default=True, help="Measurements of each layer; the median counts.")
@click.option("--durability", type=click.Choice(["memory", "journal", "commit"]), hidden=True)
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
@click.option("--save", is_flag=True, help=f"Keep the results in {_RESULTS.name}.")
@click.option("--layer", type=click.Choice(LAYERS), hidden=True)
@click.option("--url", hidden=True)
def main(
    sessions: int,
    turns: int,
    rounds: int,
    durability: Durability | None,
    as_json: bool,
    save: bool,
    layer: str | None,
    url: str | None,
) -> None:
    """Compare the layers' writes on a PostgreSQL that syncs to disk."""
    if layer is not None and url is not None:
        click.echo(json.dumps(asyncio.run(_measure(layer, url, sessions, turns, durability or "journal"))))
        return
    options = ["--sessions", str(sessions), "--turns", str(turns)]
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in _MEASURED}
    console = Console(stderr=True)
    with PostgresServer(durable=True) as server, Progress(console=console) as progress:
        bar = progress.add_task("measuring", total=rounds * len(_MEASURED))
        for _ in range(rounds):
            for name, chosen in _MEASURED.items():
                runs[name].append(_measure_apart(server.create_database(), [*chosen, *options]))
                progress.advance(bar)
    medians = {name: _medians(measured) for name, measured in runs.items()}
    report = {
        "command": f"python -m loadtests.compare {' '.join(options)} --rounds {rounds}",
        "python": platform.python_version(),
        "medians": medians,
        "rounds": runs,
    }
    if save:
        _RESULTS.write_text(json.dumps(report, indent=2) + "\n")
    if as_json:
        click.echo(json.dumps(report))
    else:
        Console().print(_table(medians))


def _medians(measured: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(one[key] for one in measured) for key in measured[0]}


def _table(medians: dict[str, dict[str, float]]) -> Table:
    table = Table("layer", "writes/s", "CPU a write, us", "stale steps", "missing steps", "of")
    for name, values in medians.items():
        keys = ("writes_per_second", "cpu_us_per_write", "stale_steps", "missing_steps", "steps")
        table.add_row(name, *(f"{values[key]:,.0f}" for key in keys))
    return table


if __name__ == "__main__":
    main()
