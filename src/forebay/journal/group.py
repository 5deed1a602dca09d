"""A group: the changes that one sync puts on the disk."""

from __future__ import annotations

import asyncio
import zlib
from dataclasses import dataclass, field

from forebay.errors import JournalError
from forebay.model import changes
from forebay.model.changes import Change

_ENCODED_AT_ONCE = 32


@dataclass(slots=True, eq=False)
class Group:
    """Changes that are committed together, and the futures of those who wait for it.

    They are encoded a few at a time while the processor still has them at hand: the thread would fetch each of
    them from memory, holding the interpreter meanwhile.
    """

    first_seq: int = 0
    last_seq: int = 0
    waiters: list[asyncio.Future[None]] = field(default_factory=list)
    estimate: int = 0
    lines: list[bytes] = field(default_factory=list)
    checksum: int = 0
    fault: JournalError | None = None
    is_finished: bool = False  # it is on the disk, or `fault` says why not
    _changes: list[Change] = field(default_factory=list)

    def add(self, seq: int, change: Change, done: asyncio.Future[None]) -> int:
        """How many there are then."""
        if not self.last_seq:
            self.first_seq = seq
        self.last_seq = seq
        self.waiters.append(done)
        self.estimate += change.size
        self._changes.append(change)
        if len(self._changes) == _ENCODED_AT_ONCE:
            self.encode()
        return seq - self.first_seq + 1

    def encode(self) -> None:
        """Turn what is not encoded yet into a line."""
        if not self._changes:
            return
        try:
            line = changes.encode(self._changes)
        except Exception as failed:  # whatever it is, its callers must not wait for ever
            self.fault = JournalError(f"the changes can't be journaled ({type(failed).__name__})")
        else:
            self.lines.append(line)
            self.checksum = zlib.crc32(line, self.checksum)
        self._changes = []
