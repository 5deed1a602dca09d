"""The instruments, on a registry that is passed in. No label holds an id, a user or any content.

The hot path counts in plain integers; a collector turns them into metrics when somebody asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from forebay.counts import Counts

_FLUSH_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_ROWS_BUCKETS = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 10_000)


class Queue(Protocol):
    """What the metrics read off the inbox."""

    size: int
    max_bytes: int

    @property
    def pending(self) -> int:
        """Rows that are queued or being written."""

    def oldest(self) -> float | None:
        """When the oldest of them came, on the engine's clock."""


class Metrics:
    """One data layer's instruments. `registry` defaults to one of its own."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry if registry is not None else CollectorRegistry()
        self.flush_duration = Histogram(
            "forebay_flush_duration_seconds",
            "How long the database took to commit a batch.",
            buckets=_FLUSH_BUCKETS,
            registry=self.registry,
        )
        self.batch_rows = Histogram(
            "forebay_batch_rows", "Rows in a batch.", buckets=_ROWS_BUCKETS, registry=self.registry
        )
        self.settle_duration = Histogram(
            "forebay_settle_duration_seconds",
            "How long a read waited for writes that were still queued.",
            buckets=_FLUSH_BUCKETS,
            registry=self.registry,
        )

    def observe(
        self, counts: Counts, queue: Queue, ready: Callable[[], bool], clock: Callable[[], float]
    ) -> None:
        """Report these counts and this queue from now on."""
        self.registry.register(_EngineCollector(counts, queue, ready, clock))


class _EngineCollector(Collector):
    def __init__(
        self, counts: Counts, queue: Queue, ready: Callable[[], bool], clock: Callable[[], float]
    ) -> None:
        self._counts = counts
        self._queue = queue
        self._ready = ready
        self._clock = clock

    def collect(self) -> Iterator[Metric]:
        yield from self._counters()
        yield from self._gauges()

    def _counters(self) -> Iterator[Metric]:
        counts = self._counts
        for name, text, label, counter in (
            ("changes_accepted", "Changes that were queued.", "table", counts.accepted),
            (
                "changes_coalesced",
                "Changes that became part of another one of the same row.",
                "table",
                counts.coalesced,
            ),
            ("rows_written", "Rows that the database has committed.", "table", counts.written),
            ("changes_dropped", "Changes that were queued and then left out.", "reason", counts.dropped),
            (
                "changes_refused",
                "Changes that were not queued; the caller got an error.",
                "reason",
                counts.refused,
            ),
            ("flush_retries", "Attempts at a batch that failed and were repeated.", "reason", counts.retries),
            (
                "unknown_values",
                "Values that no column was for, kept beside them.",
                "table",
                counts.unknown_keys,
            ),
        ):
            family = CounterMetricFamily(f"forebay_{name}", text, labels=[label])
            for value, count in sorted(counter.items()):
                family.add_metric([value], count)
            yield family
        refused = CounterMetricFamily(
            "forebay_changes_dead_lettered", "Rows that the database refused.", labels=["table", "reason"]
        )
        for labels, count in sorted(counts.dead_lettered.items()):
            refused.add_metric(labels, count)
        yield refused
        for name, text, number in (
            ("upload_failures", "Elements that were written without their content.", counts.upload_failures),
            ("upload_retries", "Uploads that failed and were repeated.", counts.upload_retries),
            (
                "blob_delete_failures",
                "Objects that could not be deleted from the storage.",
                counts.blob_delete_failures,
            ),
        ):
            yield CounterMetricFamily(f"forebay_{name}", text, number)

    def _gauges(self) -> Iterator[Metric]:
        queue = self._queue
        oldest = queue.oldest()
        age = 0.0 if oldest is None else max(0.0, self._clock() - oldest)
        for name, text, value in (
            ("queue_changes", "Rows that are queued or being written.", queue.pending),
            ("queue_bytes", "Bytes that are queued or being written.", queue.size),
            ("queue_capacity_bytes", "Bytes that the queue may hold.", queue.max_bytes),
            ("queue_oldest_age_seconds", "How long the oldest of them has waited.", age),
            ("uploads_pending", "Elements whose content is on its way.", self._counts.uploads_pending),
            ("ready", "1 while the database takes writes.", float(self._ready())),
        ):
            yield GaugeMetricFamily(f"forebay_{name}", text, value)
