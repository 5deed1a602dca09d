"""Inbox, writer and store put together: submit a change, settle before a read, flush, close.

Everything up to the queue is synchronous, so that the order of the calls is the order of the writes.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import itertools
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import anyio

from forebay.changes import Change, Delete, Upsert
from forebay.counts import Counts
from forebay.errors import DatabaseError, ForebayError, LayerClosed, QueueFull, TransientError, WrongLoop
from forebay.inbox import Batch, Inbox, Op
from forebay.metrics import Metrics
from forebay.settings import Settings
from forebay.statements import Statement
from forebay.store import Store
from forebay.writer import Writer, settle_tickets

logger = logging.getLogger("forebay.engine")

# Handlers go on for a moment after SIGTERM; when nothing was written for this long, they are done. Seconds.
_QUIET_SPELL = 0.1
_TOMBSTONES = 100_000


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
        if self.inbox.offer(change, self._clock(), ticket) is None:
            await self._wait_for_room(change, ticket, loop)
        if committed:
            self.inbox.hurry()
        self._notify_writer(now=committed)
        # The change stays queued whatever becomes of the caller.
        return await asyncio.shield(ticket) if ticket is not None else []

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

    async def _wait_for_room(self, change: Change, ticket: Any, loop: asyncio.AbstractEventLoop) -> None:
        token = loop.create_future()
        try:
            waiting = self.inbox.wait(change, ticket, token)
        except QueueFull as error:
            self._refuse(change, error)
        try:
            with anyio.fail_after(self.settings.queue_timeout):
                await token
        except TimeoutError:
            self.inbox.give_up(waiting)
            self._refuse(change, QueueFull("the queue stayed full; the database is too slow or unreachable"))
        except asyncio.CancelledError:
            if waiting.seq is None:
                self.inbox.give_up(waiting)
                self.counts.refused["cancelled"] += 1
            raise

    def refuse(self, error: ForebayError) -> None:
        """Count and log a change that could not be made."""
        self.counts.refused["invalid"] += 1
        logger.error("change refused reason=%s", error)

    def _refuse(self, change: Change, error: ForebayError) -> None:
        self.counts.refused["queue_full"] += 1
        logger.error("change refused table=%s reason=%s", change.table, error)
        raise error

    def _notify_writer(self, *, now: bool) -> None:
        self.writer.notice(now=now or self.inbox.has_ready_batch)

    # ---- reading

    async def settle(self, thread_id: str | None) -> None:
        """Return when everything that was queued for the thread (None: for any) is in the database.

        Raises TransientError at once while the database can't be written to.
        """
        self._ensure_running()
        seq = self.inbox.ticket_for(thread_id)
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
        for waiting in self.inbox.admit(self._clock()):
            if not waiting.token.done():
                waiting.token.set_result(None)
        self._readers.reached(batch.last_seq)
        self._flushes.reached(batch.last_seq)

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
        self._loop = loop
        # An empty context: the first caller's would keep its Chainlit session alive as long as the writer.
        self._task = loop.create_task(self.writer.run(), name="forebay-writer", context=contextvars.Context())
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
                "closed with unwritten changes rows=%d waiting=%d reason=%s",
                self.inbox.pending,
                self.inbox.waiting,
                self.writer.failure or "close_timeout",
            )

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


def _fail(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


def _quiet_future(loop: asyncio.AbstractEventLoop) -> asyncio.Future[Any]:
    """A future whose error is not reported when its caller has gone: the writer reports it already."""
    future = loop.create_future()
    future.add_done_callback(lambda done: None if done.cancelled() else done.exception())
    return future
