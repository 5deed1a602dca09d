"""Inbox, writer and store put together: submit a change, settle before a read, flush, close.

Everything up to the queue is synchronous, so that the order of the calls is the order of the writes.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import heapq
import itertools
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import anyio

from forebay.changes import Change, Delete, Upsert, encode
from forebay.counts import Counts
from forebay.errors import (
    DatabaseError,
    ForebayError,
    JournalError,
    LayerClosed,
    QueueFull,
    TransientError,
    WrongLoop,
)
from forebay.inbox import Batch, Inbox, Op
from forebay.journal import Journal
from forebay.metrics import Metrics
from forebay.recovery import Recovery
from forebay.settings import Settings
from forebay.statements import Statement
from forebay.store import Store
from forebay.writer import Writer, settle_tickets

logger = logging.getLogger("forebay.engine")

# Handlers go on for a moment after SIGTERM; when nothing was written for this long, they are done. Seconds.
_QUIET_SPELL = 0.1
_TOMBSTONES = 100_000
_JOURNAL_RETRY = 1.0  # seconds between tries to read what was spilled


class Engine:
    """One process's writes and reads. It starts itself at its first use, in the loop that runs then."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self.store = store
        self.counts = Counts()
        self.inbox = Inbox(
            max_bytes=settings.queue_max_bytes,
            batch_max_rows=settings.batch_max_rows,
            batch_max_bytes=settings.batch_max_bytes,
            linger=settings.linger,
            counts=self.counts,
        )
        self.writer = Writer(self.inbox, store, self, self.counts, clock)
        self.closed = False
        self._metrics = metrics
        self._clock = clock
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._readers = _Waiters()
        self._flushes = _Waiters()
        self._journal: Journal | None = None
        self._recovered = False
        self._spilled_tickets: dict[int, Any] = {}
        self._tombstones: OrderedDict[str, None] = OrderedDict()
        metrics.observe(
            self.counts, self.inbox, lambda: self.writer.failure is None and not self.closed, clock
        )

    def __repr__(self) -> str:
        return f"<Engine {'closed' if self.closed else 'open'}, {self.inbox!r}, {self.writer!r}>"

    # ---- writing

    async def write(self, change: Change, *, committed: bool = False) -> list[str]:
        """Queue a change; its place is fixed before the first await.

        Returns when it is queued, or, with `committed` or `durability=commit`, when its transaction has
        committed: then with the object keys of the elements that it deleted. Of an element that is dropped,
        as its thread is deleted, the own one is returned. Raises QueueFull, and with `committed` the RowError
        of a row that the database refuses.
        """
        loop = self._ensure_running()
        if self._is_dead(change):
            key = change.row.get("objectKey") if isinstance(change, Upsert) else None
            return [key] if key else []
        wait = committed or self.settings.durability == "commit"
        ticket = _quiet_future(loop) if wait else None
        durable = self._accept(change, ticket) or await self._wait_for_room(change, ticket, loop)
        if committed:
            self.inbox.hurry()
        self._notify_writer(now=committed)
        # The change stays queued whatever becomes of the caller.
        await asyncio.shield(durable)
        return await asyncio.shield(ticket) if ticket is not None else []

    def _accept(self, change: Change, ticket: Any) -> asyncio.Future[None] | None:
        """Take a change: the future of its being durable. None when there is no room."""
        journal = self._own_journal()
        seq = self.inbox.offer(change, self._clock(), ticket)
        if seq is not None:
            return self._journaled(seq, change)
        if journal is None or self.inbox.waiting or not self._may_spill(change):
            return None
        return self._spilled(self.inbox.spill(change), change, ticket)

    def _journaled(self, seq: int, change: Change) -> asyncio.Future[None]:
        if self._journal is None:
            return self._nothing_to_wait_for
        return self._journal.append(seq, encode(change))

    def _spilled(self, seq: int, change: Change, ticket: Any) -> asyncio.Future[None]:
        """Keep a change in the journal alone until `refill`. If that fails, it is lost, and the caller is told."""
        self.counts.spilled += 1
        if ticket is not None:
            self._spilled_tickets[seq] = ticket
        durable = self._journaled(seq, change)
        durable.add_done_callback(lambda done: self._lose(seq, change) if done.exception() else None)
        return durable

    def _lose(self, seq: int, change: Change) -> None:
        self._spilled_tickets.pop(seq, None)
        self.inbox.lose(change)
        self._reached()

    def _may_spill(self, change: Change) -> bool:
        journal = self._journal
        return journal is not None and journal.size + change.size <= self.settings.journal_max_bytes

    def _own_journal(self) -> Journal | None:
        """This process's journal, created at its first write. Raises JournalError."""
        if self._journal is None and self.settings.durability == "journal":
            try:
                self._journal = Journal(self.settings.journal_dir, asyncio.get_running_loop())
            except JournalError as error:
                self.refuse(error)
                raise
        return self._journal

    def _is_dead(self, change: Change) -> bool:
        """Whether the change is of a deleted thread, which must stay gone; it is counted and dropped then."""
        if isinstance(change, Delete):
            if change.table == "threads":
                self._bury(change.key)
            return False
        if change.thread_id not in self._tombstones:
            return False
        self.counts.accepted[change.table] += 1
        self.counts.dropped["deleted_thread"] += 1
        return True

    def _bury(self, thread_id: str) -> None:
        self._tombstones[thread_id] = None
        self._tombstones.move_to_end(thread_id)
        if len(self._tombstones) > _TOMBSTONES:
            self._tombstones.popitem(last=False)

    async def _wait_for_room(
        self, change: Change, ticket: Any, loop: asyncio.AbstractEventLoop
    ) -> asyncio.Future[None]:
        token = loop.create_future()
        try:
            waiting = self.inbox.wait(change, ticket, token)
        except QueueFull as error:
            raise self._refusal(change, error) from None
        try:
            with anyio.fail_after(self.settings.queue_timeout):
                durable: asyncio.Future[None] = await token
        except TimeoutError:
            self.inbox.give_up(waiting)
            raise self._refusal(
                change, QueueFull("the queue stayed full; the database is too slow or unreachable")
            ) from None
        except asyncio.CancelledError:
            if waiting.seq is None:
                self.inbox.give_up(waiting)
                self.counts.refused["cancelled"] += 1
            raise
        return durable

    def refuse(self, error: ForebayError) -> None:
        """Count and log a change that could not be made or journaled."""
        self.counts.refused[type(error).__name__] += 1
        logger.error("change refused reason=%s", error)

    def _refusal(self, change: Change, error: QueueFull) -> QueueFull:
        self.counts.refused["queue_full"] += 1
        logger.error("change refused table=%s reason=%s", change.table, error)
        return error

    def _notify_writer(self, *, now: bool) -> None:
        self.writer.notice(now=now or self.inbox.has_ready_batch)

    # ---- reading

    async def settle(self, thread_id: str | None) -> None:
        """Return when everything that was queued for the thread (None: for any) is in the database.

        Raises TransientError at once while the database can't be written to.
        """
        self._ensure_running()
        seq = self.inbox.ticket_for(thread_id) or (None if self._recovered else 0)
        if seq is None:
            return
        if self.writer.failure is not None:
            raise TransientError(f"what was written before can't be read yet: {self.writer.failure}")
        started = self._clock()
        await self._applied(seq, self._readers)
        self._metrics.settle_duration.observe(self._clock() - started)

    async def read(self, statement: Statement, **parameters: Any) -> Any:
        """Run a read. Raises a DatabaseError."""
        self._ensure_running()
        return await self.store.read(statement, **parameters)

    async def write_now(self, statement: Statement, **parameters: Any) -> Any:
        """Run a write that nothing queued depends on, and that returns what it stored."""
        self._ensure_running()
        return await self.store.write(statement, **parameters)

    async def _applied(self, seq: int, waiters: _Waiters) -> None:
        done = waiters.add(seq, self._ensure_running())
        self.inbox.hurry()
        self._notify_writer(now=True)
        await done

    async def flush(self) -> None:
        """Return when everything that was accepted is in the database, or given up as a refused row."""
        self._ensure_running()
        if self.inbox.applied_seq < self.inbox.accepted_seq:
            await self._applied(self.inbox.accepted_seq, self._flushes)

    # ---- what the writer tells

    def batch_written(self, batch: Batch, seconds: float) -> None:
        """See `writer.Observer`."""
        self._metrics.flush_duration.observe(seconds)
        self._metrics.batch_rows.observe(len(batch.ops))

    def batch_settled(self, batch: Batch) -> None:
        """See `writer.Observer`."""
        if self._journal is not None:
            self._journal.trim(self.inbox.applied_seq)
        for waiting in self.inbox.admit(self._clock(), self._may_spill):
            assert waiting.seq is not None
            if waiting.spilled:
                durable = self._spilled(waiting.seq, waiting.change, waiting.ticket)
            else:
                durable = self._journaled(waiting.seq, waiting.change)
            if not waiting.token.done():
                # A future as the result of a future: what the caller waits for next.
                waiting.token.set_result(durable)
        self._reached()

    def _reached(self) -> None:
        self._readers.reached(self.inbox.applied_seq)
        self._flushes.reached(self.inbox.applied_seq)

    @property
    def journal_id(self) -> str | None:
        """See `writer.Observer`."""
        return self._journal.id if self._journal is not None else None

    async def refill(self) -> None:
        """See `writer.Observer`."""
        assert self._journal is not None
        room = max(1, self.settings.queue_max_bytes - self.inbox.size)
        try:
            records = await self._journal.read(self.inbox.queued_seq, room)
        except JournalError as error:
            logger.error("spilled changes wait reason=%s", error)
            await anyio.sleep(_JOURNAL_RETRY)
            return
        if not records:
            await self._journal.synced()  # what is spilled is on its way to the disk
        for seq, change in records:
            self.inbox.refill(seq, change, self._clock(), self._spilled_tickets.pop(seq, None))

    async def recover(self) -> None:
        """See `writer.Observer`."""
        settings = self.settings
        await Recovery(
            settings.journal_dir, self.writer, self.store, self.counts, self._clock, settings.batch_max_bytes
        ).run()
        self._recovered = True
        self._readers.reached(0)

    def op_settled(self, op: Op, result: list[str] | DatabaseError) -> None:
        """See `writer.Observer`."""
        settle_tickets(op.tickets, result)

    def batch_failed(self, error: DatabaseError) -> None:
        """Readers fail at once; `flush` goes on waiting. See `writer.Observer`."""
        self._readers.fail(TransientError(f"what was written before can't be read yet: {error}"))

    # ---- life

    def _ensure_running(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.get_running_loop()
        if self.closed:
            raise LayerClosed("the data layer is closed; create a new one")
        if loop is self._loop:
            return loop
        if self._loop is not None and not self._loop.is_closed():
            raise WrongLoop("the data layer runs in another event loop; create one layer for each loop")
        if self._loop is not None:
            self.store.forget_connections()
            if self._journal is not None:
                self._journal.rebind(loop)
        self._loop = loop
        self._nothing_to_wait_for = loop.create_future()
        self._nothing_to_wait_for.set_result(None)
        # An empty context: the first caller's would keep its Chainlit session alive as long as the writer.
        self._task = loop.create_task(self.writer.run(), name="forebay-writer", context=contextvars.Context())
        self._task.add_done_callback(_report_end)
        return loop

    async def close(self) -> None:
        """Write out the queue within `close_timeout`, taking writes until a quiet spell, and disconnect."""
        if self.closed:
            return
        with anyio.move_on_after(self.settings.close_timeout):
            await self._drain()
        self.closed = True
        await self._stop_writer()
        self._fail_waiters()
        await self._close_journal()
        await self.store.close()

    async def _drain(self) -> None:
        if self._loop is None:
            return
        while True:
            seen = self.inbox.accepted_seq
            await self.flush()
            await anyio.sleep(_QUIET_SPELL)
            if self.inbox.accepted_seq == seen and not self.inbox.waiting:
                return

    async def _stop_writer(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if self.inbox.pending or self.inbox.waiting:
            logger.error(
                "closed with unwritten changes rows=%d waiting=%d kept_in=%s reason=%s",
                self.inbox.pending,
                self.inbox.waiting,
                self._journal.path if self._journal is not None else "nowhere",
                self.writer.failure or "close_timeout",
            )

    async def _close_journal(self) -> None:
        if self._journal is None:
            return
        finished = not self.inbox.pending
        await self._journal.close(remove=finished)
        if finished:
            with contextlib.suppress(DatabaseError):  # a checkpoint without a journal does no harm
                await self.store.forget_journal(self._journal.id)

    def _fail_waiters(self) -> None:
        closed = LayerClosed("the data layer was closed before the change was written")
        self._readers.fail(closed)
        self._flushes.fail(closed)
        for future in self.inbox.abandon():
            _fail(future, closed)


class _Waiters:
    """Futures that are done when everything up to their `seq` is settled."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, asyncio.Future[None]]] = []
        self._number = itertools.count()  # tells entries of one seq apart, which futures can't be

    def add(self, seq: int, loop: asyncio.AbstractEventLoop) -> asyncio.Future[None]:
        done = _quiet_future(loop)
        heapq.heappush(self._heap, (seq, next(self._number), done))
        return done

    def reached(self, seq: int) -> None:
        while self._heap and self._heap[0][0] <= seq:
            _, _, done = heapq.heappop(self._heap)
            if not done.done():
                done.set_result(None)

    def fail(self, error: Exception) -> None:
        for _, _, done in self._heap:
            _fail(done, error)
        self._heap.clear()


def _report_end(task: asyncio.Task[None]) -> None:
    """The writer runs until it is cancelled; any other end is a fault of forebay's own."""
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.critical(
            "writer ended, nothing is written any more reason=%s", type(error).__name__, exc_info=error
        )


def _fail(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


def _quiet_future(loop: asyncio.AbstractEventLoop) -> asyncio.Future[Any]:
    """A future whose error is not reported when its caller has gone: the writer reports it already."""
    future = loop.create_future()
    future.add_done_callback(lambda done: None if done.cancelled() else done.exception())
    return future
