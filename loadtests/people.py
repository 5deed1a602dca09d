"""People who chat through the real Chainlit server, on each data layer: turns a second, CPU, and what was lost.

A turn is a question, two tool steps, and an answer that is sent and at once updated. Each measurement has a server
and a database of its own, and the layers alternate over the rounds. CPU is that of the server's process, from the
first question until it has nothing more to do. When the server has stopped, the database is compared with
what the people saw.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from forebay.bench.postgres import PostgresServer
from loadtests import seen
from loadtests.site import LAYERS, NAMES, ROOT, Layer, Site

RESULTS = Path(__file__).parent / "results" / "people.json"
_PATIENCE = 300.0  # seconds for one measurement
_COLUMNS = (
    *("layer", "turns/s", "against none", "CPU a turn, ms", "extra CPU"),
    *(
        "turn p50 / p95, ms",
        "first token p50 / p95, ms",
        "answers lost or stale",
        "tool outputs lost or stale",
    ),
)


class CrowdFailed(click.ClickException):
    """The people could not chat."""


def measure(layer: Layer, database_url: str, people: int, turns: int, think: float) -> dict[str, float]:
    """One measurement, on an empty database. Raises CrowdFailed."""
    with (
        tempfile.TemporaryDirectory(prefix="forebay-people-") as folder,
        Site(layer, database_url, Path(folder)) as site,
        _Crowd(site, people, turns, think) as crowd,
    ):
        before = site.cpu()
        result = crowd.next()
        after = site.settled_cpu()
        crowd.next(last=True)
        site.stop()
        chats = seen.parse(result["chats"])
        found = site.audit(chats)
    number = people * turns
    shown = [turn for chat in chats for turn in chat.turns]
    measured = {
        "turns_per_second": number / result["seconds"],
        "cpu_seconds": after.server - before.server,
        "cpu_ms_per_turn": (after.server - before.server) / number * 1e3,
        "daemon_cpu_ms_per_turn": (after.daemon - before.daemon) / number * 1e3,
        **_quantiles("turn", [turn.took for turn in shown]),
        **_quantiles("first_token", [turn.first_token for turn in shown]),
    }
    if found is not None:
        measured |= {
            "answers": found.expected["answer"],
            "answers_lost": found.count("answer", "missing", "stale"),
            "outputs": found.expected["tool output"],
            "outputs_lost": found.count("tool output", "missing", "stale"),
            "misplaced": sum(one.fault == "misplaced" for one in found.findings),
        }
    return measured


class _Crowd:
    """The people's process. A context manager, at whose start all are connected and at whose end it is gone."""

    def __init__(self, site: Site, people: int, turns: int, think: float) -> None:
        self._options = ["--people", str(people), "--turns", str(turns), "--think", str(think)]
        self._site = site

    def __enter__(self) -> _Crowd:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "loadtests.crowd", self._site.server.url, *self._options],
            env=self._site.server.env,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._alarm = threading.Timer(_PATIENCE, self._process.kill)
        self._alarm.start()
        try:
            self._line()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._alarm.cancel()
        self._process.kill()
        self._process.communicate()

    def next(self, last: bool = False) -> Any:
        """Let them go on; what they then say."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        if not last:
            return json.loads(self._line())
        return self._process.wait(_PATIENCE)

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise CrowdFailed(
                f"the people could not chat; the server's log ends:\n{self._site.server.log[-2000:]}"
            )
        return line


def _quantiles(name: str, seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {f"{name}_p{part}_ms": ordered[len(ordered) * part // 100] * 1e3 for part in (50, 95)}


def medians(runs: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """The medians over the rounds, and what each layer costs beyond none, round by round."""
    result = {
        layer: {key: statistics.median(one[key] for one in measured) for key in measured[0]}
        for layer, measured in runs.items()
    }
    for layer, measured in runs.items() if "none" in runs else ():
        pairs = list(zip(measured, runs["none"], strict=True))
        result[layer]["extra_cpu_percent"] = statistics.median(
            (one["cpu_seconds"] / none["cpu_seconds"] - 1) * 100 for one, none in pairs
        )
        result[layer]["turns_percent"] = statistics.median(
            one["turns_per_second"] / none["turns_per_second"] * 100 for one, none in pairs
        )
    return result


def rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """The table's rows."""
    return [(NAMES[layer], *_cells(values)) for layer, values in report["medians"].items()]


def _cells(values: dict[str, float]) -> tuple[str, ...]:
    def pair(name: str) -> str:
        return f"{values[f'{name}_p50_ms']:,.0f} / {values[f'{name}_p95_ms']:,.0f}"

    def lost(name: str) -> str:
        return f"{values[f'{name}_lost']:,.0f} of {values[name]:,.0f}" if name in values else "-"

    def percent(name: str, sign: str = "") -> str:
        return f"{values[name]:{sign}.0f} %" if name in values else "-"

    cpu = f"{values['cpu_ms_per_turn']:.2f}"
    if values["daemon_cpu_ms_per_turn"]:
        cpu += f" + {values['daemon_cpu_ms_per_turn']:.2f}"
    return (
        *(
            f"{values['turns_per_second']:,.1f}",
            percent("turns_percent"),
            cpu,
            percent("extra_cpu_percent", "+"),
        ),
        *(pair("turn"), pair("first_token"), lost("answers"), lost("outputs")),
    )


def markdown(report: dict[str, Any]) -> str:
    """The table as Markdown."""
    lines = [_COLUMNS, ("---", *("---:",) * (len(_COLUMNS) - 1)), *rows(report)]
    about = f"Medians of {report['rounds_made']} rounds on {report['cpus']} cores: `{report['command']}`."
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{about}"


def _show(report: dict[str, Any], as_json: bool, as_markdown: bool) -> None:
    if as_json:
        click.echo(json.dumps(report))
    elif as_markdown:
        click.echo(markdown(report))
    else:
        table = Table(*_COLUMNS)
        for row in rows(report):
            table.add_row(*row)
        Console().print(table)


def _run(layers: tuple[Layer, ...], people: int, turns: int, rounds: int, think: float) -> dict[str, Any]:
    runs: dict[str, list[dict[str, float]]] = {layer: [] for layer in layers}
    with PostgresServer(durable=True) as postgres, Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("chatting", total=rounds * len(layers))
        for _ in range(rounds):
            for layer in layers:
                url = postgres.create_database()
                runs[layer].append(measure(layer, url, people, turns, think))
                postgres.drop_database(url)
                progress.advance(bar)
    thinking = f" --think {think:g}" if think else ""
    chosen = "" if layers == LAYERS else "".join(f" --layer {layer}" for layer in layers)
    return {
        "command": f"python -m loadtests.people --people {people} --turns {turns} --rounds {rounds}{thinking}{chosen}",
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "rounds_made": rounds,
        "medians": medians(runs),
        "rounds": runs,
    }


@click.command()
@click.option("--people", default=50, show_default=True, type=click.IntRange(1), help="At once.")
@click.option("--turns", default=10, show_default=True, type=click.IntRange(1), help="Of each.")
@click.option(
    "--rounds", default=3, show_default=True, type=click.IntRange(1), help="Of which the median counts."
)
@click.option("--think", default=0.0, show_default=True, help="Seconds before each question.")
@click.option(
    "--layer", "layers", multiple=True, type=click.Choice(LAYERS), help="Only this; may be repeated."
)
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
@click.option("--markdown", "as_markdown", is_flag=True, help="Print the table of docs/performance.")
@click.option("--save", is_flag=True, help=f"Keep the results in {RESULTS.name}.")
@click.option("--load", is_flag=True, help="Measure nothing: show what was saved.")
def main(
    people: int,
    turns: int,
    rounds: int,
    think: float,
    layers: tuple[Layer, ...],
    as_json: bool,
    as_markdown: bool,
    save: bool,
    load: bool,
) -> None:
    """Let people chat through the real server on each data layer, and compare."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what was started is ended
    report = json.loads(RESULTS.read_text()) if load else _run(layers or LAYERS, people, turns, rounds, think)
    if save:
        RESULTS.write_text(json.dumps(report, indent=2) + "\n")
    _show(report, as_json, as_markdown)


if __name__ == "__main__":
    main()
