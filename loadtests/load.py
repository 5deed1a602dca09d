"""`make load`: the app on a data layer, Locust's people in front of it, and an audit of the database afterwards.

PostgreSQL, the app and Locust each are a process of their own, on the loopback only, and gone at the end. Into the
folder of results go Locust's CSV and HTML, what the people saw, forebay's metrics, the app's log, and the summary.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from forebay.bench.postgres import PostgresServer
from loadtests import seen
from loadtests.audit import Audit
from loadtests.site import KEEP_NOTHING, LAYERS, NAMES, ROOT, Layer, Site

_OUTPUT = ROOT / "build" / "load"
RESULTS = Path(__file__).parent / "results" / "load.json"
_LOCUSTFILE = Path(__file__).with_name("locustfile.py")
_STOP_TIMEOUT = 40  # seconds that Locust gives people to finish what they do
_GRACE = 60.0
_AGAIN = "May be repeated."
_COLUMNS = ("row", "requests", "failures", "a second", "p50, ms", "p95, ms", "p99, ms")


class LoadFailed(click.ClickException):
    """The load could not be run."""


def run(layer: Layer, users: int, duration: int, think: float, output: Path) -> dict[str, Any]:
    """One load; its summary, which is also in `output`. Raises LoadFailed."""
    output.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="forebay-load-") as folder,
        PostgresServer(durable=True) as postgres,
        Site(layer, postgres.create_database(), Path(folder)) as site,
    ):
        try:
            before, started = site.cpu(), time.monotonic()
            _people(site, users, duration, think, output)
            after, took = site.settled_cpu(), time.monotonic() - started
            if layer == "forebay":
                (output / "metrics.txt").write_text(_metrics(site.metrics_url))
            site.stop()
            chats = seen.load(output / "seen.json")
            found = site.audit(chats)
        finally:
            (output / "app.log").write_text(site.server.log)
    turns = sum(len(chat.turns) for chat in chats)
    summary = {
        "layer": layer,
        "users": users,
        "duration": duration,
        "think": think,
        "turns": turns,
        "server_cpu_percent": (after.server - before.server) / took * 100,
        "server_cpu_ms_per_turn": (after.server - before.server) / max(turns, 1) * 1e3,
        "rows": _rows(output / "locust_stats.csv"),
        "audit": found.summary() if found else None,
        "passed": _passed(found, turns),
    }
    (output / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    return summary


def _passed(found: Audit | None, turns: int) -> bool:
    return turns > 0 and (found is None or found.passed)


def _people(site: Site, users: int, duration: int, think: float, output: Path) -> None:
    """Run Locust to its end. People come in over a third of the time."""
    rate = max(1.0, users / (duration / 3))
    command = [sys.executable, "-m", "locust", "--locustfile", str(_LOCUSTFILE), "--headless"]
    command += ["--host", site.server.url, "--users", str(users), "--spawn-rate", f"{rate:g}"]
    command += [
        "--run-time",
        f"{duration}s",
        "--stop-timeout",
        str(_STOP_TIMEOUT),
        "--exit-code-on-error",
        "0",
    ]
    command += ["--csv", str(output / "locust"), "--html", str(output / "locust.html"), "--csv-full-history"]
    command += ["--only-summary"]
    history = "off" if site.layer in KEEP_NOTHING else "on"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("LOCUST_")},
        "PYTHONPATH": str(ROOT),
        "LOAD_SEEN": str(output / "seen.json"),
        "LOAD_THINK": f"{think:g}",
        "LOAD_HISTORY": history,
    }
    (output / "seen.json").unlink(missing_ok=True)
    with (output / "locust.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            env=environment,
            cwd=output,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C comes here first, and is passed on
        )
        try:
            process.wait(duration + _STOP_TIMEOUT + _GRACE)
        except subprocess.TimeoutExpired:
            raise LoadFailed("Locust does not end") from None
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    if process.returncode != 0 or not (output / "seen.json").exists():
        said = (output / "locust.log").read_text(errors="replace")[-2000:]
        raise LoadFailed(f"Locust has failed ({process.returncode}):\n{said}")


def _metrics(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as response:  # noqa: S310  # a server of ours
        text: str = response.read().decode()
        return text


def _rows(path: Path) -> dict[str, dict[str, float]]:
    """Locust's rows of ours, from its CSV."""
    with path.open(newline="") as file:
        found = [row for row in csv.DictReader(file) if row["Type"] == "chat"]
    return {
        row["Name"]: {
            "requests": int(row["Request Count"]),
            "failures": int(row["Failure Count"]),
            "per_second": float(row["Requests/s"]),
            **{f"p{part}_ms": float(row[f"{part}%"]) for part in (50, 95, 99)},
        }
        for row in found
    }


def show(summary: dict[str, Any], console: Console) -> None:
    """The summary as tables."""
    title = f"{NAMES[summary['layer']]}, {summary['users']} people, {summary['duration']} s"
    table = Table(*_COLUMNS, title=title)
    for name, row in summary["rows"].items():
        numbers = (f"{row[key]:,.0f}" for key in ("requests", "failures"))
        times = (f"{row[f'p{part}_ms']:,.0f}" for part in (50, 95, 99))
        table.add_row(name, *numbers, f"{row['per_second']:,.1f}", *times)
    console.print(table)
    if summary["audit"]:
        table = Table("seen", "expected", "missing", "stale", "misplaced", title="audit of the database")
        for what, counts in summary["audit"]["counts"].items():
            table.add_row(
                what, *(f"{counts[key]:,}" for key in ("expected", "missing", "stale", "misplaced"))
            )
        console.print(table)
    console.print(
        f"{summary['turns']:,} turns; server {summary['server_cpu_percent']:.0f} % of a CPU,"
        f" {summary['server_cpu_ms_per_turn']:.1f} ms a turn; audit {'passed' if summary['passed'] else 'FAILED'}"
    )


def markdown(report: dict[str, Any]) -> str:
    """The table as Markdown: a line for each run."""
    header = ("people", "data layer", "turns/s", "turn p50 / p95, ms", "history p95, ms", "resume p95, ms")
    lines: list[tuple[str, ...]] = [
        (*header, "server, % of a CPU", "requests failed", "lost, stale or misplaced")
    ]
    lines.append(("---:", "---", *("---:",) * 7))
    for one in report["runs"]:
        turn, history, resume = (one["rows"].get(name) for name in ("turn", "history", "resume"))
        lines.append((
            f"{one['users']:,}", NAMES[one["layer"]], f"{turn['per_second']:.0f}",
            f"{turn['p50_ms']:,.0f} / {turn['p95_ms']:,.0f}",
            *(f"{row['p95_ms']:,.0f}" if row else "-" for row in (history, resume)),
            f"{one['server_cpu_percent']:.0f}", f"{sum(row['failures'] for row in one['rows'].values()):,.0f}",
            f"{_faults(one):,} of {_expected(one):,}" if one["audit"] else "-",
        ))  # fmt: skip
    about = f"{report['runs'][0]['duration']} s each, on {report['cpus']} cores: `{report['command']}`."
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{about}"


def _faults(summary: dict[str, Any]) -> int:
    counts = summary["audit"]["counts"].values()
    return sum(count[fault] for count in counts for fault in ("missing", "stale", "misplaced"))


def _expected(summary: dict[str, Any]) -> int:
    return sum(count["expected"] for count in summary["audit"]["counts"].values())


@click.command()
@click.option("--layer", "layers", multiple=True, type=click.Choice(LAYERS), envvar="LAYER", help=_AGAIN)
@click.option("--users", "numbers", multiple=True, type=click.IntRange(1), envvar="USERS", help=_AGAIN)
@click.option(
    "--duration", default=60, show_default=True, type=click.IntRange(5), envvar="DURATION", help="Seconds."
)
@click.option(
    "--think", default=2.0, show_default=True, envvar="THINK", help="Seconds between two things, on average."
)
@click.option(
    "--output", default=_OUTPUT, type=click.Path(path_type=Path), help="The folder for the results."
)
@click.option("--save", is_flag=True, help=f"Keep the summaries in {RESULTS.name}.")
@click.option("--json", "as_json", is_flag=True, help="Print the summaries as JSON.")
def main(
    layers: tuple[Layer, ...], numbers: tuple[int, ...], duration: int, think: float, output: Path, save: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Load the real Chainlit server with Locust's people, and audit the database afterwards.

    People log in, chat, look at their history, come back to a chat, rate answers and send files. The exit code is 1
    where something that somebody saw is not in the database of a layer. In the environment, LAYER, USERS, DURATION
    and THINK say the same as the options; LAYER and USERS take several, with spaces between them.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what was started is ended
    console, runs = Console(stderr=as_json), []
    layers, numbers = layers or ("forebay",), numbers or (50,)
    for users in numbers:
        for layer in layers:
            summary = run(layer, users, duration, think, output.absolute() / f"{layer}-{users}")
            show(summary, console)
            runs.append(summary)
    asked = [f"--layer {layer}" for layer in layers] + [f"--users {users}" for users in numbers]
    command = f"python -m loadtests.load {' '.join(asked)} --duration {duration} --think {think:g}"
    report = {"command": command, "cpus": os.cpu_count(), "runs": runs}
    if save:
        RESULTS.write_text(json.dumps(report, indent=2) + "\n")
    if as_json:
        click.echo(json.dumps(report))
    console.print(f"Everything is in {output}")
    sys.exit(not all(summary["passed"] for summary in runs))


if __name__ == "__main__":
    main()
