"""The metrics, on a registry that is passed in. No label holds an id, a user or any content.

The hot path counts in plain integers; they become metrics when somebody asks. One of prometheus_client's
histograms alone costs a write more than all of that: `python -m loadtests.metrics_cost` measures both.
"""

from __future__ import annotations

import platform
import time
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Protocol

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString
from typing_extensions import override

from forebay.errors import SettingsError
from forebay.model.schema import TABLES
from forebay.telemetry.catalogue import INSTRUMENTS, Instrument, Kind
from forebay.telemetry.counters import Counts

# A rate is right from the first event on only if the series was there before it.
_TABLES = tuple(TABLES)
_DROPPED = (
    "deleted",
    "deleted_thread",
    "deleted_user",
    "other_thread",
    "unknown_step",
    "journal",
    "no_dead_letter",
)
_REFUSED = (
    "ChangeTooLarge",
    "InvalidId",
    "JournalError",
    "RowError",
    "cancelled",
    "person_full",
    "queue_full",
    "thread_held_up",
)
_RETRIES = ("TransientError",)
_FLUSHED = ("committed", "failed")
_REPLICA_READS = ("behind", "failed", "replica")
_CHECKPOINT_ALARMS = ("gone_back", "not_kept", "not_ours")
_PARKED_FOR = ("lock", "time", "answer")
_SEARCH_LIMITS = ("person", "all", "time")
_UPLOADED = ("stored", "failed")


class Queue(Protocol):
    """What the metrics read off the inbox."""

    size: int
    max_bytes: int

    @property
    def pending(self) -> int:
        """Rows that are queued or being written."""

    def oldest(self) -> float | None:
        """When the oldest of them came, on the engine's clock."""


class Parked(Protocol):
    """What the metrics read off the lanes."""

    @property
    def open(self) -> Mapping[str, object]:
        """What is held up, by thread."""

    @property
    def changes(self) -> int:
        """How many changes are parked."""

    @property
    def size(self) -> int:
        """How many bytes that are."""


@dataclass(frozen=True)
class JournalView:
    """What the metrics read off a journal: bytes, the most bytes, and changes that are nowhere else."""

    size: Callable[[], int]
    capacity: int
    spilled: Callable[[], int]


class Buckets:
    """A histogram without labels, in plain integers. One thread observes, any may read."""

    __slots__ = ("_bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value, so many times."""
        self.counts[bisect_left(self._bounds, value)] += times
        self.sum += value * times

    @property
    def cumulative(self) -> list[tuple[str, float]]:
        """Each upper bound as Prometheus writes it, and how many values are not above it."""
        total, found = 0, []
        for bound, count in zip((*self._bounds, float("inf")), self.counts, strict=True):
            total += count
            found.append((floatToGoString(bound), float(total)))
        return found


class Labelled:
    """A histogram with one label."""

    def __init__(self, bounds: tuple[float, ...], known: tuple[str, ...] = ()) -> None:
        self.children: defaultdict[str, Buckets] = defaultdict(lambda: Buckets(bounds))
        for value in known:
            self.children[value]

    def observe(self, value: float, label: str) -> None:
        """Count a value under a label."""
        self.children[label].observe(value)


class _Flushes(Labelled):
    @override
    def observe(self, value: float, label: str = "committed") -> None:
        super().observe(value, label)


_Labels = tuple[str, ...]
_Source = Callable[[], Mapping[_Labels, float]]
_BOUNDS = {instrument.name: instrument.buckets for instrument in INSTRUMENTS}


class Metrics(Collector):
    """One data layer's metrics. `registry` defaults to one of its own, and holds one layer's at most."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry if registry is not None else CollectorRegistry()
        self.enqueue_duration = Buckets(_BOUNDS["forebay_enqueue_duration_seconds"])
        self.write_latency = Buckets(_BOUNDS["forebay_write_latency_seconds"])
        self.batch_rows = Buckets(_BOUNDS["forebay_batch_rows"])
        self.batch_bytes = Buckets(_BOUNDS["forebay_batch_bytes"])
        self.journal_commit_duration = Buckets(_BOUNDS["forebay_journal_commit_duration_seconds"])
        self.settle_duration = Buckets(_BOUNDS["forebay_settle_duration_seconds"])
        self.event_loop_lag = Buckets(_BOUNDS["forebay_event_loop_lag_seconds"])
        self.flush_duration = _Flushes(_BOUNDS["forebay_flush_duration_seconds"], _FLUSHED)
        self.read_duration = Labelled(_BOUNDS["forebay_read_duration_seconds"])
        self.upload_duration = Labelled(_BOUNDS["forebay_upload_duration_seconds"], _UPLOADED)
        self.uploads_in_progress = 0
        self._histograms: dict[str, Buckets | Labelled] = {
            "forebay_enqueue_duration_seconds": self.enqueue_duration,
            "forebay_write_latency_seconds": self.write_latency,
            "forebay_batch_rows": self.batch_rows,
            "forebay_batch_bytes": self.batch_bytes,
            "forebay_journal_commit_duration_seconds": self.journal_commit_duration,
            "forebay_settle_duration_seconds": self.settle_duration,
            "forebay_event_loop_lag_seconds": self.event_loop_lag,
            "forebay_flush_duration_seconds": self.flush_duration,
            "forebay_read_duration_seconds": self.read_duration,
            "forebay_upload_duration_seconds": self.upload_duration,
        }
        self._sources: dict[str, _Source] = {
            "forebay_uploads_in_progress": lambda: {(): self.uploads_in_progress},
        }
        try:
            self.registry.register(self)
        except ValueError:
            raise SettingsError(
                "this registry has the metrics of another layer already; pass each layer one of its own"
            ) from None

    def observe(
        self,
        counts: Counts,
        queue: Queue,
        ready: Callable[[], bool],
        clock: Callable[[], float],
        journal: JournalView | None = None,
        lanes: Parked | None = None,
    ) -> None:
        """Report these counts, this queue, this journal and these lanes from now on."""
        self._sources |= _counters(counts) | _gauges(queue, ready, clock)
        if journal is not None:
            self._sources |= _journal(journal)
        if lanes is not None:
            self._sources |= _parked(lanes)

    # ---- what is told

    def batch_written(self, rows: int, size: int, seconds: float, age: float) -> None:
        """An attempt succeeded: `size` in bytes, `seconds` that it took, `age` of the batch's oldest change."""
        self.flush_duration.observe(seconds, "committed")
        self.batch_rows.observe(rows)
        self.batch_bytes.observe(size)
        self.write_latency.observe(age, rows)

    @contextmanager
    def reading(self, operation: str) -> Iterator[None]:
        """Around a read: how long it takes, also where it fails."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.read_duration.observe(time.perf_counter() - started, operation)

    @contextmanager
    def uploading(self) -> Iterator[None]:
        """Around the storing of an element's content; an exception that leaves it makes it `failed`."""
        started = time.perf_counter()
        self.uploads_in_progress += 1
        outcome = "failed"
        try:
            yield
            outcome = "stored"
        finally:
            self.uploads_in_progress -= 1
            self.upload_duration.observe(time.perf_counter() - started, outcome)

    # ---- what is asked

    def describe(self) -> Iterator[Metric]:
        """The metrics without their values, by which the registry finds out that it has them already."""
        return (_family(instrument) for instrument in INSTRUMENTS)

    @override
    def collect(self) -> Iterator[Metric]:
        """The metrics as they are now."""
        return (self._collect(instrument) for instrument in INSTRUMENTS)

    def _collect(self, instrument: Instrument) -> Metric:
        family = _family(instrument)
        if isinstance(family, HistogramMetricFamily):
            histogram = self._histograms[instrument.name]
            if isinstance(histogram, Buckets):
                family.add_metric((), histogram.cumulative, histogram.sum)
            else:
                for label, child in sorted(histogram.children.items()):
                    family.add_metric((label,), child.cumulative, child.sum)
        elif isinstance(family, InfoMetricFamily):
            family.add_metric((), _build())
        elif isinstance(family, CounterMetricFamily | GaugeMetricFamily) and instrument.name in self._sources:
            for labels, value in sorted(self._sources[instrument.name]().items()):
                family.add_metric(labels, value)
        return family


def _family(instrument: Instrument) -> Metric:
    name, text, labels = instrument.name, instrument.help, instrument.labels
    match instrument.kind:
        case Kind.COUNTER:
            return CounterMetricFamily(name, text, labels=labels)
        case Kind.GAUGE:
            return GaugeMetricFamily(name, text, labels=labels)
        case Kind.HISTOGRAM:
            return HistogramMetricFamily(name, text, labels=labels)
        case Kind.INFO:
            return InfoMetricFamily(name, text)


def _build() -> dict[str, str]:
    return {
        "version": version("forebay"),
        "chainlit": version("chainlit"),
        "python": platform.python_version(),
    }


def _counters(counts: Counts) -> dict[str, _Source]:
    def by(counter: Counter[str], known: tuple[str, ...]) -> _Source:
        return lambda: {(key,): counter[key] for key in {*known, *counter}}

    return {
        "forebay_changes_accepted": by(counts.accepted, _TABLES),
        "forebay_changes_coalesced": by(counts.coalesced, _TABLES),
        "forebay_rows_written": by(counts.written, _TABLES),
        "forebay_changes_dead_lettered": lambda: dict(counts.dead_lettered.items()),
        "forebay_changes_dropped": by(counts.dropped, _DROPPED),
        "forebay_changes_handed_over": lambda: {(): counts.handed_over},
        "forebay_changes_refused": by(counts.refused, _REFUSED),
        "forebay_unknown_values": by(counts.unknown_keys, _TABLES),
        "forebay_flush_retries": by(counts.retries, _RETRIES),
        "forebay_parkings": by(counts.parkings, _PARKED_FOR),
        "forebay_writer_paused": lambda: {(): float(counts.paused)},
        "forebay_replica_reads": lambda: {(key,): counts.replica_reads[key] for key in _REPLICA_READS},
        "forebay_searches_refused": by(counts.searches_refused, _SEARCH_LIMITS),
        "forebay_checkpoint_alarms": lambda: {
            (found,): counts.checkpoint_alarms[found] for found in _CHECKPOINT_ALARMS
        },
        "forebay_journal_replayed_changes": lambda: {(): counts.replayed},
        "forebay_journals_parked": lambda: {(): counts.journals_parked},
        "forebay_journals_left_alone": lambda: {(): counts.journals_left_alone},
        "forebay_dead_letters": lambda: {(): counts.letters},
        "forebay_dead_letters_bytes": lambda: {(): counts.letters_size},
        "forebay_dead_letters_waiting": lambda: {(): counts.letters_waiting},
        "forebay_uploads_pending": lambda: {(): counts.uploads_pending},
        "forebay_upload_retries": lambda: {(): counts.upload_retries},
        "forebay_upload_failures": lambda: {(): counts.upload_failures},
        "forebay_blob_delete_failures": lambda: {(): counts.blob_delete_failures},
    }


def _gauges(queue: Queue, ready: Callable[[], bool], clock: Callable[[], float]) -> dict[str, _Source]:
    def age() -> float:
        oldest = queue.oldest()
        return 0.0 if oldest is None else max(0.0, clock() - oldest)

    return {
        "forebay_queue_changes": lambda: {(): queue.pending},
        "forebay_queue_bytes": lambda: {(): queue.size},
        "forebay_queue_capacity_bytes": lambda: {(): queue.max_bytes},
        "forebay_queue_oldest_age_seconds": lambda: {(): age()},
        "forebay_ready": lambda: {(): float(ready())},
    }


def _parked(lanes: Parked) -> dict[str, _Source]:
    return {
        "forebay_parked_threads": lambda: {(): len(lanes.open)},
        "forebay_parked_changes": lambda: {(): lanes.changes},
        "forebay_parked_bytes": lambda: {(): lanes.size},
    }


def _journal(journal: JournalView) -> dict[str, _Source]:
    return {
        "forebay_journal_bytes": lambda: {(): journal.size()},
        "forebay_journal_capacity_bytes": lambda: {(): journal.capacity},
        "forebay_journal_spilled_changes": lambda: {(): journal.spilled()},
    }
