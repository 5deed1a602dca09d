"""People at the real Chainlit server, on every data layer and on none: turns a second, the server's CPU, what is lost.

Server, people and database share the machine, so read the ratios. Layers alternate over the rounds.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from tests.support.chainlit_client import ChainlitClient
from tests.support.chainlit_server import ChainlitServer

from forebay.bench.layers import make_tables
from forebay.bench.postgres import PostgresServer
from loadtests.audit import Turn, faults, load_stored, load_turns

ROOT = Path(__file__).parents[1]
_RESULTS = ROOT / "loadtests" / "results" / "people.json"
_APP = Path(__file__).parent / "app.py"
_TIMEOUT = 600.0
LAYERS = ("none", "forebay", "forebay, external", "sqlalchemy", "chainlit")
_NAMES = {
    "none": "no data layer",
    "forebay": "forebay, journal",
    "sqlalchemy": "SQLAlchemyDataLayer",
    "chainlit": "ChainlitDataLayer",
}


class _Person(ChainlitClient):
    """Notes when the answer began to show."""

    began: float | None = None

    async def _see(self, step: dict[str, Any]) -> None:
        if step["type"] == "assistant_message" and self.began is None:
            self.began = time.perf_counter()
        await super()._see(step)


async def _chat(
    url: str, number: int, turns: int, think: float, all_here: asyncio.Barrier, result: dict[str, list[Any]]
) -> None:
    async with _Person(url, login=f"person{number}") as person:
        await all_here.wait()
        for turn in range(turns):
            before, person.began = set(person.steps), None
            started = time.perf_counter()
            answer = await person.say(f"question {number}.{turn}")
            result["turn"].append(time.perf_counter() - started)
            result["first"].append((person.began or time.perf_counter()) - started)
            new = {key: step for key, step in person.steps.items() if key not in before}
            shown = {
                key: step["output"]
                for key, step in new.items()
                if step["type"] in ("tool", "assistant_message")
            }
            result["seen"].append(Turn(answer["threadId"], answer["id"], shown).to_line())
            await asyncio.sleep(think)


async def _be_people(url: str, people: int, turns: int, think: float, seen: Path) -> dict[str, Any]:
    result: dict[str, list[Any]] = {"turn": [], "first": [], "seen": []}
    all_here = asyncio.Barrier(people + 1)
    async with asyncio.TaskGroup() as chats:
        for number in range(people):
            chats.create_task(_chat(url, number, turns, think, all_here, result))
        await all_here.wait()
        started = time.perf_counter()
    elapsed = time.perf_counter() - started
    seen.write_text("".join(f"{line}\n" for line in result["seen"]))
    quantiles = {name: statistics.quantiles(result[name], n=20) for name in ("turn", "first")}
    return {
        "turns_per_second": people * turns / elapsed,
        "turn_p50_ms": quantiles["turn"][9] * 1e3,
        "turn_p95_ms": quantiles["turn"][18] * 1e3,
        "first_p50_ms": quantiles["first"][9] * 1e3,
    }


def _cpu(pid: int) -> float:
    """Seconds of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def _drain(folder: str, url: str, env: dict[str, str]) -> Iterator[None]:
    """The daemon that writes for a server with `writer=external`."""
    command = (sys.executable, "-m", "forebay.cli", "drain", folder, "--watch")
    with subprocess.Popen(
        command, env=os.environ | env | {"FOREBAY_DATABASE_URL": url}, stderr=subprocess.DEVNULL
    ) as daemon:
        try:
            yield
        finally:
            daemon.terminate()


def _measure(layer: str, url: str, people: int, turns: int, think: float) -> dict[str, Any]:
    kind: Any = layer.split(",")[0]
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="forebay-people-"))
        if kind != "none":
            asyncio.run(make_tables(kind, url))
        env = {"LAYER": kind, "LOAD_DATABASE_URL": url, "FOREBAY_JOURNAL_DIR": f"{folder}/journals"}
        env |= {"FOREBAY_METRICS_ADDRESS": "off", "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"}
        if layer == "forebay, external":
            env["FOREBAY_WRITER"] = "external"
            Path(folder, "journals").mkdir(mode=0o700)
            stack.enter_context(_drain(f"{folder}/journals", url, env))
        server = stack.enter_context(ChainlitServer(_APP, Path(folder), env))
        assert server._process is not None
        seen = Path(folder, "seen.jsonl")
        before = _cpu(server._process.pid)
        options = ("--people", str(people), "--turns", str(turns), "--think", str(think))
        be_people = (
            sys.executable,
            "-m",
            "loadtests.people",
            "--url",
            server.url,
            "--seen",
            str(seen),
            *options,
        )
        done = subprocess.run(
            be_people,
            cwd=ROOT,
            env=os.environ | env,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            check=False,
        )
        if done.returncode:
            raise click.ClickException(f"{layer}: {done.stderr[:3000]}\n{server.log[-2000:]}")
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        time.sleep(1.0)  # what the server still does for them belongs to them
        result["cpu_ms_per_turn"] = (_cpu(server._process.pid) - before) / (people * turns) * 1e3
        try:
            server.stop()
        except subprocess.TimeoutExpired:  # some layers' close may not end
            result["did_not_stop"] = True
            server.kill()
        if layer == "forebay, external":
            time.sleep(2.0)  # for the daemon
        result["faults"] = {}
        if kind != "none":
            result["faults"] = faults(load_turns(seen), asyncio.run(load_stored(url, kind)))
    return result


def _medians(runs: list[dict[str, Any]]) -> dict[str, float]:
    keys = [key for key, value in runs[0].items() if isinstance(value, int | float)]
    medians = {key: statistics.median(run[key] for run in runs) for key in keys}
    for kind in ("answers", "outputs"):
        lost = (
            run["faults"].get(f"{kind} missing", 0) + run["faults"].get(f"{kind} stale", 0) for run in runs
        )
        medians[f"{kind}_lost"] = max(lost)
    return medians


def table(report: dict[str, Any]) -> list[list[str]]:
    """A header, and a line for each layer."""
    medians, base = report["medians"], report["medians"].get("none")
    lines = [
        [
            "data layer",
            "turns/s",
            "of none",
            "CPU a turn, ms",
            "over none",
            "turn p50 / p95, ms",
            "answers lost",
            "outputs lost",
        ]
    ]
    for layer, values in medians.items():
        share = f"{values['turns_per_second'] / base['turns_per_second']:.0%}" if base else "-"
        extra = f"{values['cpu_ms_per_turn'] / base['cpu_ms_per_turn'] - 1:+.0%}" if base else "-"
        lost = (
            ["-", "-"]
            if layer == "none"
            else [f"{values[f'{kind}_lost']:,.0f}" for kind in ("answers", "outputs")]
        )
        lines.append([
            _NAMES.get(layer, layer), f"{values['turns_per_second']:.0f}", share, f"{values['cpu_ms_per_turn']:.2f}",
            extra,
            f"{values['turn_p50_ms']:.0f} / {values['turn_p95_ms']:.0f}", *lost,
        ])  # fmt: skip
    return lines


def markdown(report: dict[str, Any]) -> str:
    """The table for the README."""
    header, *lines = table(report)
    rule = ["---", *["---:"] * (len(header) - 1)]
    asked = f"{report['people']} people, {report['turns']} turns each, medians of {report['rounds']} rounds"
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *lines)) + f"\n\n{asked}."


@click.command()
@click.option("--people", default=50, show_default=True, help="People at once, each in a chat of their own.")
@click.option("--turns", default=10, show_default=True, help="Turns of each chat.")
@click.option(
    "--think", default=0.0, show_default=True, help="Seconds between an answer and the next question."
)
@click.option("--rounds", default=3, show_default=True, help="Measurements of each layer; the median counts.")
@click.option(
    "--layer", "layers", multiple=True, type=click.Choice(LAYERS), help="Only these; may be repeated."
)
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
@click.option("--markdown", "as_markdown", is_flag=True, help="Print the table as Markdown.")
@click.option("--save", is_flag=True, help=f"Keep the results in {_RESULTS.name}.")
@click.option("--url", hidden=True, help="Be the people at this server.")
@click.option("--seen", type=click.Path(path_type=Path), hidden=True)
def main(
    people: int, turns: int, think: float, rounds: int, layers: tuple[str, ...], as_json: bool,
    as_markdown: bool, save: bool, url: str | None, seen: Path | None,
) -> None:  # fmt: skip
    """Let people chat with a real Chainlit server on each data layer, and look at what is stored afterwards.

    Exits with 1 when something that forebay's people saw is not in the database.
    """
    if url is not None and seen is not None:
        click.echo(json.dumps(asyncio.run(_be_people(url, people, turns, think, seen))))
        return
    chosen = layers or LAYERS
    runs: dict[str, list[dict[str, Any]]] = {layer: [] for layer in chosen}
    with PostgresServer(durable=True) as server, Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("chatting", total=rounds * len(chosen))
        for _ in range(rounds):
            for layer in chosen:
                runs[layer].append(_measure(layer, server.create_database(), people, turns, think))
                progress.advance(bar)
    report = {
        "command": f"python -m loadtests.people --people {people} --turns {turns} --think {think} --rounds {rounds}",
        "python": platform.python_version(), "people": people, "turns": turns, "rounds": rounds,
        "medians": {layer: _medians(measured) for layer, measured in runs.items()}, "runs": runs,
    }  # fmt: skip
    if save:
        _RESULTS.write_text(json.dumps(report, indent=2) + "\n")
    if as_json:
        click.echo(json.dumps(report))
    elif as_markdown:
        click.echo(markdown(report))
    else:
        header, *lines = table(report)
        shown = Table(*header)
        for line in lines:
            shown.add_row(*line)
        Console().print(shown)
    if any(
        run["faults"] for layer, measured in runs.items() if layer.startswith("forebay") for run in measured
    ):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
