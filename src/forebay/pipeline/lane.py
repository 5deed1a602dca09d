"""One thread that the database holds up: its changes from the one on that was held up, and who waits for them."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from typing import Any, Protocol

from typing_extensions import override

from forebay.errors import DatabaseError, ThreadHeldUp
from forebay.journal.orphan import Record
from forebay.model.changes import Change
from forebay.pipeline import replay
from forebay.pipeline.queue import Op
from forebay.pipeline.waiters import Waiters


class Log(replay.Log, Protocol):
    """Where a lane's changes lie. Its calls block, and raise JournalError."""

    def append(self, first_seq: int, added: Sequence[Change]) -> None:
        """Add changes, numbered from `first_seq` on; they are as durable as they get when this returns."""


class MemoryLog:
    """Where nothing is journaled: a lane's changes in memory alone."""

    def __init__(self) -> None:
        self.id = uuid.uuid4().hex
        self._records: list[Record] = []

    def append(self, first_seq: int, added: Sequence[Change]) -> None:
        """See `Log`."""
        self._records += enumerate(added, first_seq)

    def read(self, after_seq: int, max_bytes: int) -> list[Record]:
        """See `Log`."""
        records: list[Record] = []
        size = 0
        for seq, change in self._records:
            if seq > after_seq and (not records or size < max_bytes):
                records.append((seq, change))
                size += change.size
        return records


class Lane:
    """One thread's changes, from the one on that was held up. `changes` and `size`, in bytes: those not yet written.

    `key` is the thread, or stands for it while nobody can say which it is; `thread_id` is it as soon as a change does.
    """

    def __init__(self, key: str, thread_id: str | None, log: Log) -> None:
        self.key = key
        self.thread_id = thread_id
        self.log = log
        self.size = 0
        self.failure: DatabaseError | None = None
        self.last_seq = 0
        self.tickets: dict[int, tuple[Any, ...]] = {}  # who waits for a change, by its number
        self.task: asyncio.Task[None] | None = None
        self._passed_seq = 0
        self._sizes: dict[int, int] = {}
        self.rebind()

    @override
    def __repr__(self) -> str:
        return f"<Lane {self.changes} changes, {self.size} bytes>"

    @property
    def changes(self) -> int:
        """How many have still to be written."""
        return self.last_seq - self._passed_seq

    def rebind(self) -> None:
        """Go on in another event loop; nobody waits in the one before."""
        self._readers, self._flushes = Waiters(), Waiters()
        self._appending = asyncio.Lock()

    async def append(self, ops: Sequence[Op]) -> None:
        """Put changes at its end. Raises JournalError; then they are not in it."""
        async with self._appending:
            first_seq = self.last_seq + 1
            self.last_seq += len(ops)  # before it is on the disk, or the lane could end meanwhile
            try:
                added = [op.change for op in ops]
                if isinstance(self.log, MemoryLog):
                    self.log.append(first_seq, added)
                else:
                    await asyncio.to_thread(self.log.append, first_seq, added)
            except BaseException:
                self.last_seq -= len(ops)
                raise
        for seq, op in enumerate(ops, first_seq):
            self.size += op.change.size
            self._sizes[seq] = op.change.size
            if op.tickets:
                self.tickets[seq] = op.tickets

    async def appended(self) -> None:
        """Return when nothing is being put at its end."""
        async with self._appending:
            pass

    def passed(self, seq: int) -> int:
        """Everything up to here is written, or given up; how many bytes that were."""
        size = sum(self._sizes.pop(each, 0) for each in range(self._passed_seq + 1, seq + 1))
        for each in range(self._passed_seq + 1, seq + 1):
            self.tickets.pop(each, None)
        self._passed_seq = seq
        self.size -= size
        self._readers.reached(seq)
        self._flushes.reached(seq)
        return size

    def written(self, loop: asyncio.AbstractEventLoop) -> asyncio.Future[None]:
        """A future that is done when all that is in it now is written."""
        return self._flushes.add(self.last_seq, loop)

    def note(self, failure: DatabaseError | None) -> None:
        """Why it can't be written at present, for which its readers fail, and nobody else's; or None: it can."""
        self.failure = failure
        if failure is not None:
            self._readers.fail(_held_up(failure))

    async def settle(self) -> None:
        """Return when all that is in it now is written. Raises ThreadHeldUp when it is not at the next try."""
        if self.failure is not None:
            raise _held_up(self.failure)
        if self.changes:
            await self._readers.add(self.last_seq, asyncio.get_running_loop())

    def end(self, error: Exception) -> list[Any]:
        """It is not written by this process any more: readers are told; who else waits."""
        self._readers.fail(error)
        self._flushes.fail(error)
        return [ticket for tickets in self.tickets.values() for ticket in tickets]


def _held_up(error: DatabaseError) -> ThreadHeldUp:
    return ThreadHeldUp(
        f"what was written to this thread before can't be read yet, others can: {error}",
        sqlstate=error.sqlstate,
    )
