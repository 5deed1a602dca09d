"""Every metric: its name, kind, help, labels and buckets, said once. The reference's table is this list."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """A metric's type, in Prometheus's words."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"
    INFO = "info"


@dataclass(frozen=True)
class Instrument:
    """One metric. `name` is without `_total` and `_info`; `buckets` are upper bounds, in the name's unit."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def exposed(self) -> str:
        """The name that queries use; a histogram's has `_bucket`, `_sum` or `_count` behind it."""
        return self.name + {Kind.COUNTER: "_total", Kind.INFO: "_info"}.get(self.kind, "")

    @property
    def row(self) -> str:
        """The metric's row in the table of docs/reference/metrics.md."""
        labels = ", ".join(f"`{label}`" for label in self.labels)
        return f"| `{self.exposed}` | {self.kind} | {labels} | {self.help} |"


# In seconds. Queueing takes microseconds, unless the queue is full; the others begin at the disk's speed.
_FAST = (2e-6, 5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2.5e-4, 0.001, 0.01, 0.1, 1.0, 10.0)
_USUAL = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
# How long a write is on its way: an outage makes it minutes.
_WAY = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0)
_SYNC = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2.5)
_UPLOAD = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_ROWS = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 10_000)
_BYTES = (1024, 4096, 16_384, 65_536, 262_144, 1_048_576, 4_194_304, 16_777_216)

_C, _G, _H = Kind.COUNTER, Kind.GAUGE, Kind.HISTOGRAM

INSTRUMENTS = (
    Instrument("forebay_changes_accepted", _C, "Changes that were queued.", ("table",)),
    Instrument(
        "forebay_changes_coalesced",
        _C,
        "Changes that became part of another one of the same row.",
        ("table",),
    ),
    Instrument("forebay_rows_written", _C, "Rows that the database has committed.", ("table",)),
    Instrument(
        "forebay_changes_dead_lettered",
        _C,
        "Rows that the database refused, kept as dead letters.",
        ("table", "reason"),
    ),
    Instrument(
        "forebay_dead_letters",
        _G,
        "Dead letters in the journals' folder, of all processes on it, until they are retried or discarded.",
    ),
    Instrument("forebay_dead_letters_bytes", _G, "Bytes of their file."),
    Instrument(
        "forebay_dead_letters_waiting",
        _G,
        "Rows that the database refused and that can't be kept as dead letters at present; they wait on the disk.",
    ),
    Instrument("forebay_changes_dropped", _C, "Changes that were queued and then left out.", ("reason",)),
    Instrument(
        "forebay_changes_handed_over", _C, "Changes that `forebay drain` has written for this process."
    ),
    Instrument(
        "forebay_changes_refused", _C, "Changes that were not queued; the caller got an error.", ("reason",)
    ),
    Instrument("forebay_unknown_values", _C, "Values that no column was for, kept beside them.", ("table",)),
    Instrument("forebay_queue_changes", _G, "Rows that are queued or being written."),
    Instrument("forebay_queue_bytes", _G, "Bytes that are queued or being written."),
    Instrument("forebay_queue_capacity_bytes", _G, "Bytes that the queue may hold."),
    Instrument(
        "forebay_queue_oldest_age_seconds",
        _G,
        "How long the oldest change that is not yet written has waited.",
    ),
    Instrument("forebay_batch_rows", _H, "Rows in a batch.", buckets=_ROWS),
    Instrument("forebay_batch_bytes", _H, "Bytes in a batch.", buckets=_BYTES),
    Instrument(
        "forebay_flush_duration_seconds",
        _H,
        "How long an attempt at a batch took: `committed`, or `failed` and to be repeated.",
        ("outcome",),
        _USUAL,
    ),
    Instrument(
        "forebay_writer_paused",
        _G,
        "1 while the writer waits before its next attempt, since nearly every row is refused.",
    ),
    Instrument("forebay_flush_retries", _C, "Attempts that failed and were repeated.", ("reason",)),
    Instrument(
        "forebay_enqueue_duration_seconds",
        _H,
        "How long it took to queue a change, and to wait for room in a full queue.",
        buckets=_FAST,
    ),
    Instrument(
        "forebay_write_latency_seconds",
        _H,
        "From a change's acceptance to its commit; each row counts as old as its batch's oldest.",
        buckets=_WAY,
    ),
    Instrument("forebay_journal_bytes", _G, "Bytes in the journal."),
    Instrument("forebay_journal_capacity_bytes", _G, "Bytes that the journal may hold."),
    Instrument(
        "forebay_journal_commit_duration_seconds", _H, "How long the disk took for a group.", buckets=_SYNC
    ),
    Instrument("forebay_journal_spilled_changes", _G, "Changes that are in the journal alone at present."),
    Instrument(
        "forebay_journal_replayed_changes", _C, "Changes that were read from journals of ended processes."
    ),
    Instrument("forebay_parked_threads", _G, "Threads that the database holds up; the others are written."),
    Instrument("forebay_parked_changes", _G, "Changes of such threads, which wait by themselves."),
    Instrument("forebay_parked_bytes", _G, "Bytes of these changes."),
    Instrument(
        "forebay_parkings",
        _C,
        "How often a thread was held up: by a row's `lock`, by a change that takes too much `time`, or by another "
        "`answer` than yes or no.",
        ("reason",),
    ),
    Instrument(
        "forebay_journals_parked",
        _G,
        "Journals of ended processes that can't be read, or removed, at present; the log names each.",
    ),
    Instrument(
        "forebay_journals_left_alone",
        _G,
        "Journals that are another database's, and that nobody writes out here; the log names each, and what to type.",
    ),
    Instrument(
        "forebay_checkpoint_alarms",
        _C,
        "How often the database was not where it was left: it had `gone_back`, as after a failover, and was given "
        "again what the journal has; some of that was `not_kept`; or the checkpoint is `not_ours`.",
        ("found",),
    ),
    Instrument(
        "forebay_read_duration_seconds",
        _H,
        "How long a read took, with its waiting for writes before it.",
        ("operation",),
        _USUAL,
    ),
    Instrument(
        "forebay_settle_duration_seconds",
        _H,
        "How long a read waited for writes that were still queued, where there were any.",
        buckets=_USUAL,
    ),
    Instrument(
        "forebay_replica_reads",
        _C,
        "Reads with `FOREBAY_READ_URL`: answered by the `replica`, or by the primary while that was `behind` what "
        "this process wrote, or had `failed`.",
        ("outcome",),
    ),
    Instrument(
        "forebay_searches_refused",
        _C,
        "Searches that got an error: too many at once, of one `person` or of `all`, or one that took too much `time`.",
        ("limit",),
    ),
    Instrument("forebay_uploads_in_progress", _G, "Elements' contents that are being stored."),
    Instrument(
        "forebay_upload_duration_seconds",
        _H,
        "How long storing an element's content took: `stored` or `failed`.",
        ("outcome",),
        _UPLOAD,
    ),
    Instrument("forebay_uploads_pending", _G, "Elements whose content is on its way."),
    Instrument("forebay_upload_retries", _C, "Uploads that failed and were repeated."),
    Instrument("forebay_upload_failures", _C, "Elements that were written without their content."),
    Instrument("forebay_blob_delete_failures", _C, "Objects that could not be deleted from the storage."),
    Instrument(
        "forebay_event_loop_lag_seconds",
        _H,
        "By how much a timer of the event loop came late.",
        buckets=_USUAL,
    ),
    Instrument("forebay_ready", _G, "1 while the process should get traffic, as /readyz says."),
    Instrument(
        "forebay_build", Kind.INFO, "Versions of what runs, always 1.", ("version", "chainlit", "python")
    ),
)
