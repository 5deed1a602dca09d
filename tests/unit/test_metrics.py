"""The metrics: what they are called, that they add up, and that no label tells on anybody."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from forebay.changes import step
from forebay.counts import Counts
from forebay.inbox import Batch, Inbox
from forebay.metrics import Metrics

_SECRET = "nobody may see this"


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
        found[f"forebay_{name}_total"]
        for name in ("changes_coalesced", "rows_written", "changes_dead_lettered")
    )
    assert (found["forebay_queue_changes"], found["forebay_queue_oldest_age_seconds"]) == (0, 0)


def test_labels_are_tables_and_reasons() -> None:
    counts, metrics = Counts(), Metrics()
    metrics.observe(counts, _inbox(counts), lambda: False, lambda: 0.0)
    counts.accepted["steps"] += 1
    counts.dropped["deleted_thread"] += 1
    counts.dead_lettered["steps", "22P02"] += 1
    text = generate_latest(metrics.registry).decode()
    labels = {
        label for family in text_string_to_metric_families(text) for s in family.samples for label in s.labels
    }
    assert labels <= {"table", "reason", "le"}
    assert 'forebay_changes_dead_lettered_total{reason="22P02",table="steps"} 1.0' in text
    assert "forebay_ready 0.0" in text


def test_two_layers_have_a_registry_each_unless_one_is_passed() -> None:
    assert Metrics().registry is not Metrics().registry
    registry = CollectorRegistry()
    assert Metrics(registry).registry is registry


def _read(registry: CollectorRegistry) -> dict[str, float]:
    found: dict[str, float] = {}
    for family in registry.collect():
        for sample in family.samples:
            assert _SECRET not in str(sample)
            found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found
