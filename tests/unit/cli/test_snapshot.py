"""Reading metrics back: totals, rates between two looks, quantiles."""

from __future__ import annotations

import pytest
from prometheus_client import generate_latest

from forebay.cli.snapshot import Snapshot
from forebay.pipeline.queue import Inbox
from forebay.telemetry.collector import Metrics
from forebay.telemetry.counters import Counts


class _Process:
    def __init__(self) -> None:
        self.counts, self.metrics = Counts(), Metrics()
        inbox = Inbox(max_bytes=1, batch_max_rows=1, batch_max_bytes=1, linger=0, counts=self.counts)
        self.metrics.observe(self.counts, inbox, lambda: True, lambda: 0.0)

    def look(self, at: float) -> Snapshot:
        return Snapshot.parse(generate_latest(self.metrics.registry).decode(), at)


def test_totals_are_over_all_labels() -> None:
    process = _Process()
    process.counts.written.update({"steps": 3, "threads": 4})
    process.counts.refused["queue_full"] = 2
    now = process.look(1.0)
    assert now.total("rows_written_total") == 7
    assert now.total("no_such_thing") is None
    assert now.by_label("changes_refused_total", "reason") == {"queue_full": 2}
    assert now.info("version")


def test_a_rate_is_between_two_looks() -> None:
    process = _Process()
    before = process.look(1.0)
    process.counts.written["steps"] = 30
    now = process.look(4.0)
    assert now.rate("rows_written_total", before) == 10
    assert now.rate("rows_written_total", None) is None
    assert before.rate("rows_written_total", now) is None, "it was started again in between"


def test_a_quantile_is_the_bound_of_its_bucket() -> None:
    process = _Process()
    assert process.look(0.0).quantile("settle_duration_seconds", 0.5) is None
    for value in (0.0004, 0.0004, 0.3, 99.0):
        process.metrics.settle_duration.observe(value)
    now = process.look(1.0)
    shares = {share: now.quantile("settle_duration_seconds", share) for share in (0.5, 0.75, 0.99)}
    assert shares == {0.5: 0.0005, 0.75: 0.5, 0.99: float("inf")}


def test_a_quantile_is_of_what_came_since_the_look_before_if_anything_did() -> None:
    process = _Process()
    process.metrics.settle_duration.observe(2.0)
    before = process.look(1.0)
    assert process.look(2.0).quantile("settle_duration_seconds", 0.5, before) == 2.5
    process.metrics.settle_duration.observe(0.004)
    assert process.look(3.0).quantile("settle_duration_seconds", 0.5, before) == 0.005


@pytest.mark.parametrize("text", ["", "<html></html>", "other_total 1.0\n"])
def test_what_is_not_forebays_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Snapshot.parse(text, 0.0)


def test_a_mean_is_exact_and_of_what_came_since_the_look_before() -> None:
    process = _Process()
    assert process.look(1.0).mean("write_latency_seconds") is None
    process.metrics.write_latency.observe(1.0)
    before = process.look(2.0)
    process.metrics.write_latency.observe(31.0)
    now = process.look(3.0)
    assert now.mean("write_latency_seconds") == 16.0
    assert now.mean("write_latency_seconds", before) == 31.0
    assert now.mean("write_latency_seconds", now) == 16.0, "nothing came since"
