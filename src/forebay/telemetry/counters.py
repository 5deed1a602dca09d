"""What has become of every change, as plain integers that the hot path may touch and the metrics read.

At every instant `accepted = written + coalesced + dead_lettered + dropped + handed_over + pending`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class Counts:
    """Changes by table, except where the name of the field says otherwise."""

    accepted: Counter[str] = field(default_factory=Counter)
    coalesced: Counter[str] = field(default_factory=Counter)
    written: Counter[str] = field(default_factory=Counter)
    dead_lettered: Counter[tuple[str, str]] = field(default_factory=Counter)  # by table and reason
    dropped: Counter[str] = field(default_factory=Counter)  # accepted and then not written, by reason
    refused: Counter[str] = field(default_factory=Counter)  # never accepted, by reason
    retries: Counter[str] = field(default_factory=Counter)  # attempts at a batch, by reason
    unknown_keys: Counter[str] = field(default_factory=Counter)  # values that no column was for, by table
    handed_over: int = 0  # changes that another process has written
    upload_failures: int = 0  # elements written without their content
    upload_retries: int = 0
    uploads_pending: int = 0
    blob_delete_failures: int = 0  # objects that stay in the storage without a row
    replica_reads: Counter[str] = field(default_factory=Counter)  # by outcome
    searches_refused: Counter[str] = field(default_factory=Counter)  # by whose limit
    checkpoint_alarms: Counter[str] = field(default_factory=Counter)  # by what was found
    parkings: Counter[str] = field(default_factory=Counter)  # of threads that are held up, by reason
    paused: bool = False  # the writer waits, since nearly every row is refused
    replayed: int = 0  # changes that a process before this one left in its journal
    journals_parked: int = 0  # of other processes, that can't be dealt with at present
    journals_left_alone: int = 0  # of ended processes, that are another database's
    letters: int = 0  # dead letters that lie there, of whichever process, when that was looked at last
    letters_size: int = 0  # and the bytes that they take up
    letters_waiting: int = 0  # refused rows that can't be kept as dead letters at present
    spilled: int = 0  # changes that lay in the journal alone for a while

    @property
    def pending(self) -> int:
        """Changes that are accepted and not yet accounted for otherwise."""
        settled = (self.coalesced, self.written, self.dead_lettered, self.dropped)
        return self.accepted.total() - sum(counter.total() for counter in settled) - self.handed_over
