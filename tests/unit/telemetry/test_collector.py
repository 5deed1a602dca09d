"""The metrics: what they are called, that they add up, and that no label tells on anybody."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from forebay.errors import SettingsError
from forebay.model.changes import step
from forebay.model.schema import TABLES
from forebay.pipeline.queue import Batch, Inbox
from forebay.telemetry.catalogue import INSTRUMENTS, Kind
from forebay.telemetry.collector import JournalView, Metrics
from forebay.telemetry.counters import Counts

_SECRET = "nobody may see this"
_REFERENCE = (Path(__file__).parents[3] / "docs" / "reference" / "metrics.md").read_text()
_PARSED_AS = {Kind.INFO: "gauge"}  # the older text format has no type of its own for it


def _inbox(counts: Counts) -> Inbox:
    return Inbox(max_bytes=10_000, batch_max_rows=10, batch_max_bytes=10_000, linger=0.0, counts=counts)


def test_changes_are_accounted_for_in_the_metrics() -> None:
    counts = Counts()
    inbox, metrics = _inbox(counts), Metrics()
    metrics.observe(counts, inbox, lambda: True, lambda: 7.5)
    for key in ("a", "b", "a"):
        inbox.offer(step({"id": key, "threadId": "t", "output": _SECRET}), 5.0)
    found = _read(metrics.registry)
    assert found["forebay_changes_accepted_total"] == 3
    assert found["forebay_changes_coalesced_total"] == 1
    assert (found["forebay_queue_changes"], found["forebay_queue_oldest_age_seconds"]) == (2, 2.5)
    assert (found["forebay_queue_bytes"], found["forebay_queue_capacity_bytes"]) == (inbox.size, 10_000)
    assert counts.pending == 2

    batch = inbox.poll(8.0)
    assert isinstance(batch, Batch)
    counts.written["steps"] += 1
    counts.dead_lettered["steps", "22P02"] += 1
    inbox.done(batch)
    found = _read(metrics.registry)
    assert found["forebay_changes_accepted_total"] == sum(
        found.get(f"forebay_{name}_total", 0)
        for name in (
            "changes_coalesced",
            "rows_written",
            "changes_dead_lettered",
            "changes_dropped",
            "changes_handed_over",
        )
    )
    assert (found["forebay_queue_changes"], found["forebay_queue_oldest_age_seconds"]) == (0, 0)


class _Lanes:
    """What is parked."""

    open: ClassVar[Mapping[str, object]] = {"t": None}
    changes = 2
    size = 100


def _watched() -> tuple[Metrics, Counts]:
    counts, metrics = Counts(), Metrics()
    journal = JournalView(size=lambda: 5, capacity=10, spilled=lambda: 2)
    metrics.observe(counts, _inbox(counts), lambda: False, lambda: 0.0, journal, _Lanes())
    counts.accepted["steps"] += 1
    counts.dropped["deleted_thread"] += 1
    counts.dead_lettered["steps", "22P02"] += 1
    metrics.batch_written(rows=3, size=100, seconds=0.004, age=0.02)
    with metrics.reading("get_thread"):
        pass
    return metrics, counts


def test_labels_are_those_of_the_list_and_name_no_one() -> None:
    metrics, _ = _watched()
    text = generate_latest(metrics.registry).decode()
    labels = {
        label for family in text_string_to_metric_families(text) for s in family.samples for label in s.labels
    }
    assert labels == {label for instrument in INSTRUMENTS for label in instrument.labels} | {"le"}
    assert 'forebay_changes_dead_lettered_total{reason="22P02",table="steps"} 1.0' in text
    assert "forebay_ready 0.0" in text
    assert "forebay_journal_spilled_changes 2.0" in text


def test_what_is_exposed_is_the_list() -> None:
    metrics, _ = _watched()
    families = {
        family.name: (family.type, family.documentation, bool(family.samples))
        for family in text_string_to_metric_families(generate_latest(metrics.registry).decode())
    }
    assert families == {
        (instrument.exposed if instrument.kind is Kind.INFO else instrument.name): (
            _PARSED_AS.get(instrument.kind, instrument.kind),
            instrument.help,
            True,
        )
        for instrument in INSTRUMENTS
    }


def test_the_references_table_is_the_list() -> None:
    rows = re.findall(r"^\| `forebay_.*\|$", _REFERENCE, re.MULTILINE)
    assert rows == [instrument.row for instrument in INSTRUMENTS]


def test_a_series_is_there_before_its_first_event() -> None:
    counts, metrics = Counts(), Metrics()
    metrics.observe(counts, _inbox(counts), lambda: True, lambda: 0.0)
    text = generate_latest(metrics.registry).decode()
    for table in TABLES:
        assert f'forebay_changes_accepted_total{{table="{table}"}} 0.0' in text
    assert 'forebay_changes_dropped_total{reason="journal"} 0.0' in text
    assert 'forebay_flush_duration_seconds_count{outcome="failed"} 0.0' in text


def test_a_histogram_counts_what_is_not_above_its_bounds() -> None:
    metrics = Metrics()
    for value in (0.0005, 0.000501, 11.0):
        metrics.settle_duration.observe(value)
    found = dict(metrics.settle_duration.cumulative)
    assert (found["0.0005"], found["0.001"], found["10.0"], found["+Inf"]) == (1, 2, 2, 3)
    assert metrics.settle_duration.sum == pytest.approx(11.001001)


def test_each_row_is_as_old_as_its_batch() -> None:
    metrics, _ = _watched()
    found = _read(metrics.registry)
    assert found["forebay_write_latency_seconds_count"] == 3
    assert found["forebay_write_latency_seconds_sum"] == pytest.approx(0.06)
    assert found["forebay_batch_bytes_sum"] == 100


def test_an_upload_is_stored_or_failed_and_over() -> None:
    metrics = Metrics()
    with metrics.uploading():
        assert _read(metrics.registry)["forebay_uploads_in_progress"] == 1
    with pytest.raises(OSError, match="full"), metrics.uploading():
        raise OSError("full")
    text = generate_latest(metrics.registry).decode()
    assert 'forebay_upload_duration_seconds_count{outcome="stored"} 1.0' in text
    assert 'forebay_upload_duration_seconds_count{outcome="failed"} 1.0' in text
    assert "forebay_uploads_in_progress 0.0" in text


def test_two_layers_have_a_registry_each_unless_one_is_passed() -> None:
    assert Metrics().registry is not Metrics().registry
    registry = CollectorRegistry()
    assert Metrics(registry).registry is registry


def test_a_registry_holds_one_layers_metrics() -> None:
    registry = Metrics().registry
    with pytest.raises(SettingsError, match="one of its own"):
        Metrics(registry)


def _read(registry: CollectorRegistry) -> dict[str, float]:
    found: dict[str, float] = {}
    for family in registry.collect():
        for sample in family.samples:
            assert _SECRET not in str(sample)
            found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found
