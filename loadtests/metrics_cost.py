"""What the metrics cost a write, in microseconds of CPU: forebay's own counting, and prometheus_client's beside it.

A write pays for two looks at the clock, one histogram and its share of what is counted once a batch. The best of
several rounds counts, since whatever else the machine does only adds to it.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import click
from prometheus_client import CollectorRegistry
from prometheus_client import Histogram as TheirHistogram
from rich.console import Console
from rich.table import Table

from forebay.telemetry.catalogue import INSTRUMENTS
from forebay.telemetry.collector import Metrics
from forebay.telemetry.counters import Counts

_RESULTS = Path(__file__).parent / "results" / "metrics_cost.json"
_BUCKETS = {instrument.name: instrument.buckets for instrument in INSTRUMENTS}
_ROWS_A_BATCH = 20


def _nothing(writes: int) -> None:
    for _ in range(writes):
        pass


def _ours(writes: int) -> None:
    metrics, counts, clock = Metrics(), Counts(), time.monotonic
    for number in range(writes):
        started = clock()
        counts.accepted["steps"] += 1
        metrics.enqueue_duration.observe(clock() - started)
        counts.written["steps"] += 1
        if number % _ROWS_A_BATCH == 0:
            metrics.batch_written(_ROWS_A_BATCH, 4096, 0.002, 0.01)
            metrics.journal_commit_duration.observe(0.0005)


def _theirs(writes: int) -> None:
    registry, clock = CollectorRegistry(), time.monotonic
    histogram = TheirHistogram(
        "enqueue", "-", buckets=_BUCKETS["forebay_enqueue_duration_seconds"], registry=registry
    )
    for _ in range(writes):
        started = clock()
        histogram.observe(clock() - started)


def _best(run: Callable[[int], None], writes: int, rounds: int) -> float:
    """Microseconds a write, without the loop's own."""

    def once(what: Callable[[int], None]) -> float:
        started = time.process_time()
        what(writes)
        return time.process_time() - started

    return (min(once(run) for _ in range(rounds)) - min(once(_nothing) for _ in range(rounds))) / writes * 1e6


@click.command()
@click.option("--writes", default=200_000, show_default=True, help="Writes a round.")
@click.option("--rounds", default=7, show_default=True, help="Rounds, of which the best counts.")
@click.option("--save", is_flag=True, help="Keep the result beside the others.")
def main(writes: int, rounds: int, save: bool) -> None:
    """Measure it."""
    found = {
        "forebay, everything that a write pays for": _best(_ours, writes, rounds),
        "prometheus_client, one histogram alone": _best(_theirs, writes, rounds),
    }
    table = Table("counting", "µs a write")
    for name, cost in found.items():
        table.add_row(name, f"{cost:.2f}")
    Console().print(table)
    if save:
        about = {"python": platform.python_version(), "writes": writes, "rounds": rounds}
        result = {**about, "us_a_write": {name: round(cost, 2) for name, cost in found.items()}}
        _RESULTS.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
