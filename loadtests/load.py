"""`make load`: PostgreSQL, the Chainlit app on a layer, Locust's people, and then the audit of what they saw."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from tests.support.chainlit_server import ChainlitServer, free_port

from forebay.bench.layers import make_tables
from forebay.bench.postgres import PostgresServer
from loadtests.audit import faults, load_stored, load_turns

ROOT = Path(__file__).parents[1]
_APP = Path(__file__).parent / "app.py"
_ROWS = ("connect", "first_token", "turn", "history", "resume", "feedback", "upload")
_GRACE = 120  # seconds for what has begun to end


def _run_locust(url: str, users: int, duration: int, out: Path, seen: Path) -> None:
    """Returns when it is over; that some requests failed is told by the audit and by its table."""
    command = [
        sys.executable, "-m", "locust", "-f", str(Path(__file__).parent / "locustfile.py"), "--headless", "--host", url,
        "--users", str(users), "--spawn-rate", str(max(1, users / 10)), "--run-time", f"{duration}s",
        "--stop-timeout", "30", "--csv", str(out / "locust"), "--html", str(out / "locust.html"),
        "--only-summary", "--exit-code-on-error", "0",
    ]  # fmt: skip
    env = os.environ | {"LOAD_SEEN": str(seen)}
    with (out / "locust.log").open("w") as log:
        done = subprocess.run(
            command, env=env, stdout=log, stderr=subprocess.STDOUT, timeout=duration + _GRACE, check=False
        )
    if done.returncode:
        raise click.ClickException(f"locust failed, see {out / 'locust.log'}")


def _rows(out: Path) -> dict[str, dict[str, float]]:
    with (out / "locust_stats.csv").open() as file:
        lines = {line["Name"]: line for line in csv.DictReader(file)}
    columns = {
        "count": "Request Count",
        "failed": "Failure Count",
        "p50_ms": "50%",
        "p95_ms": "95%",
        "p99_ms": "99%",
    }
    columns["per_second"] = "Requests/s"
    return {
        name: {key: float(lines[name][column]) for key, column in columns.items()}
        for name in _ROWS
        if name in lines
    }


def _scrape(port: int) -> str | None:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
            return str(response.read().decode())
    except OSError:
        return None


def run(layer: str, users: int, duration: int, out: Path) -> dict[str, Any]:
    """One run; its summary, which is in `out` too."""
    out.mkdir(parents=True, exist_ok=True)
    seen, port = out / "seen.jsonl", free_port()
    seen.write_text("")
    kind: Any = layer
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="forebay-load-")))
        url = stack.enter_context(PostgresServer(durable=True)).create_database()
        asyncio.run(make_tables(kind, url))
        env = {"LAYER": layer, "LOAD_DATABASE_URL": url, "FOREBAY_JOURNAL_DIR": str(folder / "journals")}
        env |= {"FOREBAY_METRICS_ADDRESS": f"127.0.0.1:{port}", "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"}
        server = stack.enter_context(ChainlitServer(_APP, folder, env))
        _run_locust(server.url, users, duration, out, seen)
        metrics = _scrape(port) if layer == "forebay" else None
        if metrics is not None:
            (out / "metrics.txt").write_text(metrics)
        try:
            server.stop()
        except subprocess.TimeoutExpired:  # some layers' close may not end
            server.kill()
        (out / "server.log").write_text(server.log)
        turns = load_turns(seen)
        found = faults(turns, asyncio.run(load_stored(url, layer)))
    summary = {
        "layer": layer, "users": users, "duration": duration, "turns_audited": len(turns), "faults": found,
        "rows": _rows(out),
    }  # fmt: skip
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    return summary


def _show(summary: dict[str, Any], console: Console) -> None:
    table = Table("row", "count", "failed", "a second", "p50, ms", "p95, ms", "p99, ms")
    for name, row in summary["rows"].items():
        figures = (row[key] for key in ("count", "failed", "per_second", "p50_ms", "p95_ms", "p99_ms"))
        table.add_row(name, *(f"{figure:,.1f}" if figure % 1 else f"{figure:,.0f}" for figure in figures))
    console.print(table)
    told = (
        ", ".join(f"{count} {name}" for name, count in summary["faults"].items())
        or "nothing lost, nothing altered"
    )
    console.print(f"Audit of {summary['turns_audited']} turns that people saw answered: {told}")


@click.command()
@click.option(
    "--layer", default="forebay", show_default=True, type=click.Choice(["forebay", "sqlalchemy", "chainlit"])
)
@click.option("--users", default=50, show_default=True, help="People at once; they come over ten seconds.")
@click.option("--duration", default=60, show_default=True, help="Seconds.")
@click.option(
    "--out",
    default=Path("build/load"),
    show_default=True,
    type=click.Path(path_type=Path),
    help="Its results.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def main(layer: str, users: int, duration: int, out: Path, as_json: bool) -> None:
    """Let Locust's people chat with a real Chainlit server, then audit the database.

    Every message that a person saw answered must be there, whole, in order, in its thread, with its tool outputs, its
    feedback and its file. Exits with 1 when something is not, or when nobody was answered.
    """
    summary = run(layer, users, duration, out / f"{layer}-{users}")
    if as_json:
        click.echo(json.dumps(summary))
    else:
        _show(summary, Console())
        click.echo(f"CSV, HTML, metrics and logs: {out / f'{layer}-{users}'}")
    if summary["faults"] or not summary["turns_audited"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
