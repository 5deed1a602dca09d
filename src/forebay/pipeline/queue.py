"""The queue's decisions: order, folding, bounds, tickets, and when a batch is ready.

Pure and synchronous. It takes the time as an argument and returns what to do; the engine and the writer do
it. Every change has a number (`seq`), batches leave in that order, and one writer commits them one after the
other, so "has my change been written?" is `applied_seq >= seq`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from typing_extensions import override

from forebay.errors import QueueFull
from forebay.model.changes import Change, Delete, Upsert, fold, moment_of
from forebay.primitives.futures import settle
from forebay.telemetry.counters import Counts

_MANY_THREADS = 10_000


@dataclass(slots=True)
class Op:
    """What a batch does to one row: a change, and the futures of who waits for it, `tickets`.

    Hardly anybody waits for a row, and the garbage collector goes through every list there is.
    """

    change: Change
    tickets: tuple[Any, ...] = ()

    def settle(self, error: Exception | None) -> None:
        """It is written, or given up with an error: whoever waits for it is told."""
        for ticket in self.tickets:
            settle(ticket, error)


@dataclass(slots=True)
class Batch:
    """Changes that are written in one transaction, in this order.

    A run of upserts has each row once; a delete ends a run. `oldest` is when its first change came.
    """

    oldest: float
    ops: list[Op] = field(default_factory=list)
    last_seq: int = 0
    size: int = 0
    threads: set[str | None] = field(default_factory=set)
    _run: dict[str, dict[str, Op]] = field(default_factory=dict)  # by table and key

    @override
    def __repr__(self) -> str:
        return f"<Batch {len(self.ops)} rows, {self.size} bytes, up to {self.last_seq}>"

    def add(self, seq: int, change: Change, tickets: tuple[Any, ...], counts: Counts) -> int:
        """Take a change in; returns by how many bytes the batch grew."""
        before = self.size
        op = self._fold(change, counts) if isinstance(change, Upsert) else self._end_run(change)
        if tickets:
            op.tickets += tickets
        self.last_seq = seq
        self.threads.add(change.thread_id)
        return self.size - before

    def _fold(self, change: Upsert, counts: Counts) -> Op:
        rows = self._run.get(change.table)
        if rows is None:
            rows = self._run[change.table] = {}
        op = rows.get(change.key)
        if op is None:
            op = rows[change.key] = self._append(change)
            return op
        assert isinstance(op.change, Upsert)
        merged = fold(op.change, change)
        self.size += merged.size - op.change.size
        op.change = merged
        counts.coalesced[change.table] += 1
        return op

    def _end_run(self, change: Delete) -> Op:
        self._run.clear()
        return self._append(change)

    def _append(self, change: Change) -> Op:
        op = Op(change)
        self.ops.append(op)
        self.size += change.size
        return op

    def halves(self) -> Iterator[Batch]:
        """The batch in two parts, in order, for finding the row that the database refuses."""
        middle = len(self.ops) // 2
        # A checkpoint says that all up to it is in, so only the second half may set it.
        for ops, last_seq in ((self.ops[:middle], 0), (self.ops[middle:], self.last_seq)):
            yield Batch(self.oldest, ops, last_seq, sum(op.change.size for op in ops), self.threads)


def batch_of(
    records: Sequence[tuple[int, Change]],
    now: float,
    counts: Counts,
    tickets: Mapping[int, tuple[Any, ...]] | None = None,
) -> Batch:
    """What was read from a journal, as a batch in the order of their moments; each change is counted as accepted.

    What waited by itself may come from several journals, one after the other, so that only moments tell its order.
    `tickets`: who waits for which, in a lane: its changes this process has accepted, and counted, before.
    """
    batch = Batch(now)
    for seq, change in sorted(records, key=lambda record: moment_of(record[1])):
        if tickets is None:
            counts.accepted[change.table] += 1
        batch.add(seq, change, tickets.get(seq, ()) if tickets is not None else (), counts)
    if records:
        batch.last_seq = records[-1][0]
    return batch


@dataclass(slots=True, eq=False)
class Waiting:
    """A change at the door of a full queue. `seq` is set when it is let in, `spilled` when only elsewhere."""

    change: Change
    tickets: tuple[Any, ...]
    token: Any
    seq: int | None = None
    spilled: bool = False


class Inbox:
    """The queue between Chainlit and the writer.

    `max_bytes` bounds what is queued or being written; as much again may wait at the door. `linger` is in
    seconds, on the clock of the `now` arguments.
    """

    def __init__(
        self, *, max_bytes: int, batch_max_rows: int, batch_max_bytes: int, linger: float, counts: Counts
    ) -> None:
        self.max_bytes = max_bytes
        self.counts = counts
        self.size = 0
        self.waiting_size = 0
        self.accepted_seq = 0
        self.queued_seq = 0
        self.applied_seq = 0
        self.spilled = 0
        self.oldest_elsewhere: float | None = None  # of those that another process writes
        self._batch_max_rows = batch_max_rows
        self._batch_max_bytes = batch_max_bytes
        self._linger = linger
        self._open: Batch | None = None
        self._hurried = False
        self._sealed: deque[Batch] = deque()
        self._in_flight: Batch | None = None
        self._last_seq: dict[str | None, int] = {}
        self._lost: set[int] = set()
        self._waiting: deque[Waiting] = deque()

    @override
    def __repr__(self) -> str:
        return f"<Inbox {self.pending} pending, {self.size} bytes, {len(self._waiting)} waiting>"

    @property
    def pending(self) -> int:
        """How many rows are queued or being written."""
        batches = (*self._sealed, *filter(None, (self._open, self._in_flight)))
        return sum(len(batch.ops) for batch in batches) + self.spilled

    @property
    def in_flight_seq(self) -> int | None:
        """Up to which change the batch goes that is being written, None while none is."""
        return self._in_flight.last_seq if self._in_flight is not None else None

    @property
    def waiting(self) -> int:
        """How many changes stand at the door."""
        return len(self._waiting)

    def oldest(self) -> float | None:
        """When the oldest change that is not yet written came."""
        batches = (self._in_flight, *self._sealed, self._open)
        return next((batch.oldest for batch in batches if batch is not None), self.oldest_elsewhere)

    def offer(self, change: Change, now: float, tickets: tuple[Any, ...] = ()) -> int | None:
        """Take a change: its `seq`, or None when the queue is full and it must `wait`."""
        if self._waiting or self.spilled or not self._fits(change):
            return None
        return self._accept(change, now, tickets)

    def spill(self, change: Change) -> int:
        """Take a change whose content stays elsewhere until `refill` brings it; its `seq`."""
        self.accepted_seq += 1
        self.counts.accepted[change.table] += 1
        self.spilled += 1
        self._last_seq[change.thread_id] = self.accepted_seq
        return self.accepted_seq

    @property
    def wants_refill(self) -> bool:
        """Whether there is room again for what was spilled."""
        return self.spilled > 0 and self.size <= self.max_bytes // 2

    def refill(self, seq: int, change: Change, now: float, tickets: tuple[Any, ...] = ()) -> None:
        """Queue a spilled change, in the order of `seq`."""
        self.spilled -= 1
        self._queue(seq, change, now, tickets)

    def lose(self, seq: int) -> None:
        """A spilled change could not be kept; its caller has been told."""
        self.spilled -= 1
        self._lost.add(seq)
        self.counts.dropped["journal"] += 1
        self._catch_up()

    def hold(self, size: int) -> None:
        """So many bytes more, or less, are in memory of what has left the queue and could not be written."""
        self.size += size

    def is_lost(self, seq: int) -> bool:
        """Whether a change that is neither queued nor written was lost."""
        return seq in self._lost

    def hand_over(self, applied_seq: int) -> None:
        """Another process has written what was spilled up to here."""
        handed_over = applied_seq - self.applied_seq
        handed_over -= self._forget_lost(applied_seq)
        self.spilled -= handed_over
        self.counts.handed_over += handed_over
        self.applied_seq = applied_seq
        if len(self._last_seq) > _MANY_THREADS:
            self._last_seq = {key: seq for key, seq in self._last_seq.items() if seq > applied_seq}
        self._catch_up()

    def _forget_lost(self, applied_seq: int) -> int:
        """Of those up to here nobody asks again; how many there were."""
        passed = {seq for seq in self._lost if seq <= applied_seq}
        self._lost -= passed
        return len(passed)

    def _catch_up(self) -> None:
        # Numbers of lost changes are in no batch, so the end is reached when nothing is left.
        if not (self.spilled or self._open or self._sealed or self._in_flight):
            self.applied_seq = self.accepted_seq
            self._last_seq.clear()
            self._lost.clear()

    def wait(self, change: Change, tickets: tuple[Any, ...], token: Any) -> Waiting:
        """Stand at the door behind those who came before; `admit` lets in. Raises QueueFull at its limit."""
        if self.waiting_size + change.size > self.max_bytes and self._waiting:
            raise QueueFull(
                "the queue and its waiting room are full; the database is too slow or unreachable"
            )
        waiting = Waiting(change, tickets, token)
        self._waiting.append(waiting)
        self.waiting_size += change.size
        return waiting

    def give_up(self, waiting: Waiting) -> None:
        """Leave the door without having been let in."""
        self._waiting.remove(waiting)
        self.waiting_size -= waiting.change.size

    def admit(
        self,
        now: float,
        may_spill: Callable[[Change], bool] = lambda _change: False,
        *,
        spill_only: bool = False,
    ) -> list[Waiting]:
        """Let in from the door, in order, what fits now, here (not with `spill_only`) or (`may_spill`) elsewhere."""
        admitted = []
        while self._waiting:
            waiting = self._waiting[0]
            if not (spill_only or self.spilled) and self._fits(waiting.change):
                waiting.seq = self._accept(waiting.change, now, waiting.tickets)
            elif may_spill(waiting.change):
                waiting.seq, waiting.spilled = self.spill(waiting.change), True
            else:
                break
            self._waiting.popleft()
            self.waiting_size -= waiting.change.size
            admitted.append(waiting)
        return admitted

    def poll(self, now: float) -> Batch | float | None:
        """The next batch to write; or when to ask again; or None while nothing is queued.

        The caller writes one batch at a time and says `done` before it polls again.
        """
        if not self._sealed and self._open is not None:
            due = self._open.oldest + self._linger
            if not self._hurried and now < due:
                return due
            self._seal()
        if not self._sealed:
            return None
        self._in_flight = self._sealed.popleft()
        return self._in_flight

    def done(self, batch: Batch) -> None:
        """The batch is settled: every row is written, or accounted for otherwise."""
        self._in_flight = None
        self.size -= batch.size
        self.applied_seq = batch.last_seq
        if self._lost:
            self._forget_lost(batch.last_seq)
        for thread_id in batch.threads:
            if self._last_seq.get(thread_id, 0) <= batch.last_seq:
                self._last_seq.pop(thread_id, None)
        self._catch_up()

    def take_back(self) -> None:
        """The batch that was given out was not settled, and nobody is at it any more: it is the next one again."""
        if self._in_flight is not None:
            self._sealed.appendleft(self._in_flight)
            self._in_flight = None

    def ticket_for(self, thread_id: str | None) -> int | None:
        """The `seq` that a reader of the thread (None: of anything) must wait for, or None for none."""
        if self.applied_seq >= self.accepted_seq:
            return None
        if thread_id is None:
            return self.accepted_seq
        # A change whose thread is unknown may be of any thread.
        latest = max(self._last_seq.get(thread_id, 0), self._last_seq.get(None, 0))
        return latest if latest > self.applied_seq else None

    def hurry(self) -> None:
        """Somebody waits: the open batch leaves without lingering."""
        self._hurried = self._open is not None

    @property
    def has_ready_batch(self) -> bool:
        """Whether a batch may leave at once."""
        return bool(self._sealed) or self._hurried

    def abandon(self) -> list[Any]:
        """Whoever still waits, for a row or at the door, for the end of the process."""
        batches = (*self._sealed, *filter(None, (self._open, self._in_flight)))
        tickets = [ticket for batch in batches for op in batch.ops for ticket in op.tickets]
        for waiting in self._waiting:
            tickets += filter(None, (waiting.token, *waiting.tickets))
        return tickets

    def _fits(self, change: Change) -> bool:
        return self.size == 0 or self.size + change.size <= self.max_bytes

    def _accept(self, change: Change, now: float, tickets: tuple[Any, ...]) -> int:
        self.accepted_seq += 1
        self.counts.accepted[change.table] += 1
        self._last_seq[change.thread_id] = self.accepted_seq
        self._queue(self.accepted_seq, change, now, tickets)
        return self.accepted_seq

    def _queue(self, seq: int, change: Change, now: float, tickets: tuple[Any, ...]) -> None:
        if self._open is None:
            self._open = Batch(now)
        self.size += self._open.add(seq, change, tickets, self.counts)
        self.queued_seq = seq
        if len(self._open.ops) >= self._batch_max_rows or self._open.size >= self._batch_max_bytes:
            self._seal()

    def _seal(self) -> None:
        assert self._open is not None
        self._sealed.append(self._open)
        self._open = None
        self._hurried = False
