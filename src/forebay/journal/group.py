"""A group: the changes that one sync puts on the disk."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from forebay.errors import JournalError
from forebay.model import changes
from forebay.model.changes import Change

_ENCODED_AT_ONCE = 32


@dataclass(slots=True, eq=False)
class Run:
    """Changes whose numbers follow one another, encoded. `fault`: why it is not on the disk."""

    first_seq: int
    last_seq: int
    lines: list[bytes] = field(default_factory=list)
    checksum: int = 0
    fault: JournalError | None = None

    @property
    def size(self) -> int:
        """In bytes, as it stands in the file."""
        return sum(map(len, self.lines))


@dataclass(slots=True, eq=False)
class Group:
    """Changes that are committed together, and the futures of those who wait for it, None for who has gone.

    They are encoded a few at a time while the processor still has them at hand: the thread would fetch each of
    them from memory, holding the interpreter meanwhile. One that can't be encoded is `unfit`, alone.
    """

    last_seq: int = 0
    seqs: list[int] = field(default_factory=list)
    waiters: list[asyncio.Future[None] | None] = field(default_factory=list)
    estimate: int = 0
    runs: list[Run] = field(default_factory=list)
    unfit: dict[int, JournalError] = field(default_factory=dict)
    is_finished: bool = False  # it is on the disk, or each run that is not says why
    told: int = 0  # how many of those who wait know already
    _changes: list[Change] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.seqs)

    def add(self, seq: int, change: Change, done: asyncio.Future[None]) -> int:
        """How many there are then."""
        if seq != self.last_seq + 1:  # those between are not for this disk
            self.encode()
        self.last_seq = seq
        self.seqs.append(seq)
        self.waiters.append(done)
        self.estimate += change.size
        self._changes.append(change)
        if len(self._changes) == _ENCODED_AT_ONCE:
            self.encode()
        return len(self.seqs)

    def encode(self) -> None:
        """Turn what is not encoded yet into a line."""
        waiting, self._changes = self._changes, []
        if not waiting:
            return
        first_seq = self.last_seq - len(waiting) + 1
        try:
            self._extend(first_seq, self.last_seq, changes.encode(waiting))
        except Exception:  # whatever it is, it is one change's
            for seq, change in enumerate(waiting, first_seq):
                self._encode_one(seq, change)

    def _encode_one(self, seq: int, change: Change) -> None:
        try:
            line = changes.encode([change])
        except Exception as failed:
            self.unfit[seq] = JournalError(f"the change can't be journaled ({type(failed).__name__})")
        else:
            self._extend(seq, seq, line)

    def _extend(self, first_seq: int, last_seq: int, line: bytes) -> None:
        if not self.runs or self.runs[-1].last_seq != first_seq - 1:
            self.runs.append(Run(first_seq, last_seq))
        run = self.runs[-1]
        run.last_seq = last_seq
        run.lines.append(line)
        run.checksum = zlib.crc32(line, run.checksum)

    def written(self, seq: int) -> None:
        """The database has everything up to there: who waits for that waits no more."""
        self.encode()  # what is unfit for this disk is so for the database too
        while self.told < len(self.seqs) and self.seqs[self.told] <= seq:
            if self.seqs[self.told] not in self.unfit:
                tell(self.waiters[self.told])
            self.told += 1

    def finished(self) -> None:
        """Tell those who wait for what is on the disk."""
        for waiter in self.waiters[self.told :]:
            tell(waiter)

    def take_failed(self) -> Iterator[tuple[int, str, JournalError, asyncio.Future[None] | None]]:
        """What is not on the disk, its row's key, why, and who waits, who is somebody else's to tell from now on.

        What could not be encoded has no key.
        """
        faults = {seq: ("", fault) for seq, fault in self.unfit.items()}
        for run in self.runs:
            if run.fault is not None:
                keys = (change.key for line in run.lines for change in changes.decode(line))
                faults |= {seq: (key, run.fault) for seq, key in enumerate(keys, run.first_seq)}
        for place, seq in enumerate(self.seqs):
            if seq in faults:
                waiter, self.waiters[place] = self.waiters[place], None
                yield seq, *faults[seq], waiter

    def forget_waiters(self) -> None:
        """They have gone, with their event loop."""
        self.waiters = [None] * len(self.seqs)


def tell(waiter: asyncio.Future[None] | None, error: JournalError | None = None) -> None:
    """Done, or failed; not where its caller was cancelled, or has gone."""
    if waiter is None or waiter.done():
        return
    if error is None:
        waiter.set_result(None)
    else:
        waiter.set_exception(error)
        waiter.exception()  # or it would be reported where the caller has gone
