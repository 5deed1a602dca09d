"""Inbox, journal, writer and store put together: submit a change, settle before a read, flush, close.

Everything up to the queue is synchronous, so that the order of the calls is the order of the writes.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import logging
import threading
import time
import uuid
import weakref
from collections.abc import Awaitable, Callable
from functools import cache, partial
from itertools import chain
from pathlib import Path
from threading import get_ident
from typing import Any

import anyio

from forebay.database.sql.statement import Statement
from forebay.database.store import Store
from forebay.errors import (
    DatabaseError,
    ForebayError,
    JournalError,
    LayerClosed,
    LayerForked,
    QueueFull,
    RowError,
    SettingsError,
    ThreadHeldUp,
    TransientError,
    WrongLoop,
)
from forebay.journal.dead_letters import DeadLetters
from forebay.journal.journal import Journal, check_folder
from forebay.journal.orphan import Record
from forebay.journal.side_journal import SideJournal
from forebay.model.changes import OVERHEAD_BYTES, Change
from forebay.pipeline.barrier import Waiters
from forebay.pipeline.batch_writer import Writer
from forebay.pipeline.crossing import Arrivals, Call
from forebay.pipeline.cursor import Cursor
from forebay.pipeline.external_writer import Handover
from forebay.pipeline.kept_journals import KeptJournals
from forebay.pipeline.lane import Log, MemoryLog
from forebay.pipeline.lanes import Lanes
from forebay.pipeline.letterbox import Letterbox
from forebay.pipeline.queue import Inbox, Waiting
from forebay.pipeline.recovery import Recovery
from forebay.pipeline.tombstones import Tombstones
from forebay.pipeline.write_loop import Worker
from forebay.primitives import posix
from forebay.primitives.awaitables import NOTHING, Deferred
from forebay.primitives.futures import fail, quiet_future, settle, settle_with
from forebay.primitives.own_loop import OwnLoop
from forebay.settings import Settings
from forebay.telemetry.collector import JournalView, Metrics
from forebay.telemetry.counters import Counts
from forebay.telemetry.health import Health

logger = logging.getLogger("forebay.engine")

# Handlers go on for a moment after SIGTERM; when nothing was written for this long, they are done. Seconds.
_QUIET_SPELL = 0.1
# How long the first reads wait for what a process before this one has left in its journal: a process's, not a
# read's, or a long journal would hold each of them up. Seconds.
_RECOVERY_PATIENCE = 5.0

# What the disk has not answered for may take as much as the queue, and so much where that is small. Bytes.
_UNSYNCED = 32 * 1024 * 1024
_DISK_PATIENCE = 10.0  # seconds that a disk may take to answer
_COLLECT_AFTER = 50_000  # new objects; a few thousand writes
_FORGET_TIMEOUT = 1.0  # seconds
_NEVER = 2**63  # no change has this number
_LOOK_AROUND = 1.0  # seconds between two looks of who waits for another loop: is it there?

_Durable = asyncio.Future[None] | None  # None: there is nothing to wait for


class Pipeline:
    """One process's writes and reads, at home in one event loop, whose calls it takes.

    It starts itself at its first use: in the loop that runs then in the main thread, or that `start` is called in. A
    loop in another thread may end at any time; where such a one comes first, or comes when the home has ended, the
    home is a thread of its own. What other loops call is brought to the home, see `bring`.
    """

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
        if store.replica is not None:
            self.counts.replica_reads = store.replica.reads
        self.inbox = Inbox(
            max_bytes=settings.queue_max_bytes,
            batch_max_rows=settings.batch_max_rows,
            batch_max_bytes=settings.batch_max_bytes,
            linger=settings.linger,
            counts=self.counts,
        )
        # What is in memory alone ends with the process; there is nothing to keep it for.
        self._journals = settings.durability == "journal" and not store.in_memory
        if self._journals and not posix.has_journals():
            raise SettingsError(
                "FOREBAY_DURABILITY=journal needs a POSIX system, for locks on files and writes that wait for the disk:"
                " set memory (a crash loses what is queued) or commit (each write waits for the database)"
            )
        self._external = self._journals and settings.writer == "external"
        self._tombstones = Tombstones(self.counts)
        self.letterbox = Letterbox(
            DeadLetters(settings.journal_dir, settings.dead_letters_max_bytes),
            store,
            self.counts,
            clock,
            make_log=self._side_journal if self._journals else None,
            on_unsafe=self._not_kept,
        )
        self.writer = Writer(
            store,
            self.counts,
            metrics,
            self._tombstones,
            clock,
            keep=self.letterbox.keep,
            keep_is_vital=self._journals,
            pending=lambda: self.inbox.pending,
            on_failure=self._fail_readers,
        )
        self.kept = KeptJournals(store, settings.journal_keep, settings.journal_keep_bytes, clock)
        self.lanes = self.writer.lanes = self._make_lanes(clock)
        self.recovery = self._make_recovery(clock)
        self._worker = self._make_worker(clock)
        self.closed = False
        self.health = Health(
            lambda: self.failure, lambda: self.counts.written.total() > 0, settings.ready_grace, clock
        )
        # Called with the loop that the engine starts in.
        self.on_start: list[Callable[[asyncio.AbstractEventLoop], None]] = []
        self.journal: Journal | None = None
        self._folder_failure: JournalError | None = None
        self._trying: asyncio.Future[None] | None = None  # whether the folder takes files
        # Where this process's changes stand in the database, whether a journal keeps them or not.
        self.cursor = Cursor(uuid.uuid4().hex)
        self._doubted = False
        store.known = lambda: (self.cursor.journal_id, self.cursor.at.seq)
        store.on_gone_back = self._doubt
        self._metrics = metrics
        self._clock = clock
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None  # the loop's
        self._thread_id = 0
        self._own_loop: OwnLoop | None = None
        self._moving = threading.RLock()
        self._arrivals = Arrivals(settings.queue_max_bytes)
        self._brought: set[asyncio.Task[Any]] = set()
        self._is_taking = False
        self._task: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self.is_forked = False
        self._patient_until: float | None = None  # when reads cease to wait for recovery, on the clock
        self._readers = Waiters()
        self._flushes = Waiters()
        self._commits = Waiters()  # for what this machine's disk has not taken
        self._unsafe: dict[str, list[tuple[int, asyncio.Future[None]]]] = {}  # the same, by the row's key
        # Rows that were refused and no letter holds, up to which change, while the journal's answer is not there yet.
        self._unkept: dict[str, tuple[int, RowError]] = {}
        self._spilled_tickets: dict[int, tuple[Any, ...]] = {}
        _pipelines.add(self)
        metrics.observe(
            self.counts,
            self.inbox,
            lambda: self.health.reason() is None,
            clock,
            self._journal_view(),
            self.lanes,
        )

    def __repr__(self) -> str:
        return f"<Pipeline {'closed' if self.closed else 'open'}, {self.inbox!r}, {self.writer!r}>"

    def _journal_view(self) -> JournalView | None:
        if not self._journals:
            return None
        return JournalView(
            size=lambda: self.journal.size if self.journal is not None else 0,
            capacity=self.settings.journal_max_bytes,
            spilled=lambda: self.inbox.spilled,
        )

    def _make_recovery(self, clock: Callable[[], float]) -> Recovery | None:
        if self.store.in_memory or self._external:
            return None
        return Recovery(
            self.settings.journal_dir,
            self.store.label,
            self.writer,
            self.store,
            self.kept,
            self.counts,
            clock,
        )

    def _make_lanes(self, clock: Callable[[], float]) -> Lanes:
        """What is held up counts where it lies: in the queue's bytes or in the journal's, a quarter of them at most."""
        on_disk = self._journals
        whole = self.settings.journal_max_bytes if on_disk else self.settings.queue_max_bytes

        def make_log() -> Log:
            return self._side_journal() if on_disk else MemoryLog()

        return Lanes(
            make_log,
            self.kept,
            self.store,
            self.writer,
            self.counts,
            clock,
            max_bytes=whole // 4,
            on_size=(lambda _bytes: None) if on_disk else self.inbox.hold,
        )

    def _side_journal(self) -> SideJournal:
        return SideJournal(self.settings.journal_dir, self.store.label, self.store.database_id)

    def _make_worker(self, clock: Callable[[], float]) -> Worker | Handover:
        if self._external:
            return Handover(self.inbox, self, clock)
        return Worker(self.inbox, self.writer, self.recovery, self, clock)

    @property
    def failure(self) -> ForebayError | None:
        """Why nothing is written at present; None while it is."""
        return self._worker.failure if isinstance(self._worker, Handover) else self.writer.failure

    @property
    def ended(self) -> bool:
        """Whether the writer has ended by itself, by a fault of forebay's own."""
        return self._task is not None and self._task.done() and not self._task.cancelled()

    # ---- writing

    async def write(self, change: Change, *, committed: bool = False) -> bool:
        """Queue a change; its place is fixed before the first await. False: its thread was deleted before.

        Returns when it is as durable as the settings say, or, with `committed`, when its transaction has
        committed. Raises QueueFull, JournalError, and with `committed` or `durability=commit` the RowError of
        a row that the database refuses.
        """
        self._ensure_running()
        if self._tombstones.drops(change):
            return False
        await self._take(change, committed=committed)
        return True

    def submit(self, change: Change, *, committed: bool = False) -> Awaitable[None]:
        """As `write`, with the place fixed when this returns; who waits for it gets None. To be called at home.

        What waits for the journal is then the caller alone. Each coroutine more has to be fetched from memory
        when it goes on, which costs as much as to queue the change.
        """
        try:
            self._ensure_running()
        except ForebayError as error:
            self.refuse(error)
            raise
        return NOTHING if self._tombstones.drops(change) else self._take(change, committed=committed)

    def _take(self, change: Change, *, committed: bool) -> Awaitable[None]:
        if not committed and self.settings.durability != "commit":
            return self._enter(change)
        ticket = quiet_future(self._ensure_running())
        entered = self._enter(change, (ticket,), now=committed)
        return Deferred(partial(_both, entered, ticket))

    def _enter(self, change: Change, tickets: tuple[Any, ...] = (), *, now: bool = False) -> Awaitable[None]:
        """Queue a change, at once; to be awaited until it is as durable as the settings say, but for `commit`."""
        started = self._clock()
        taken, durable = self._accept(change, started, tickets)
        if not taken:
            waiting = self._stand(change, tickets)
            return Deferred(partial(self._enter_late, waiting, started, now=now))
        self._entered(change, started, now=now)
        return durable if durable is not None else NOTHING

    async def _enter_late(self, waiting: Waiting, started: float, *, now: bool) -> None:
        change = waiting.change
        durable = await self._wait_for_room(waiting)
        self._entered(change, started, now=now)
        if durable is not None:
            await durable

    def _entered(self, change: Change, started: float, *, now: bool) -> None:
        self._metrics.enqueue_duration.observe(self._clock() - started)
        self._notify(now=now)

    def _accept(self, change: Change, now: float, tickets: tuple[Any, ...]) -> tuple[bool, _Durable]:
        """Take a change, if there is room: whether it is taken, and the future of its being durable."""
        if self.lanes.is_full and self.lanes.refuses(change):
            error = QueueFull("the database holds its thread up, and no more that waits for it is kept")
            raise self._refusal(change, error, "thread_held_up")
        journal = (self.journal or self._own_journal()) if self._journals else None
        if not self._external:
            seq = self.inbox.offer(change, now, tickets)
            if seq is not None:
                return True, self._journaled(seq, change)
        if journal is None or self.inbox.waiting or not self._has_room(change):
            return False, None
        return True, self._spilled(self.inbox.spill(change), change, tickets)

    def _journaled(self, seq: int, change: Change) -> _Durable:
        """Put a change that is queued on the disk; where that has no room or stalls, the database makes it last."""
        if self.journal is None:
            return None
        if self._has_room(change):
            return self.journal.append(seq, change)
        waiter = quiet_future(self._ensure_running())
        self._await_commit(seq, change.key, waiter)
        return waiter

    def _await_commit(self, seq: int, key: str, waiter: asyncio.Future[None]) -> None:
        """Of what this machine's disk has not taken; `key`: of its row."""
        self._commits.join(seq, waiter)
        self._unsafe.setdefault(key, []).append((seq, waiter))

    def _not_journaled(
        self, seq: int, key: str, waiter: asyncio.Future[None] | None, error: JournalError
    ) -> None:
        """The disk has not taken a change: it is made all the same where it is queued too, and lost elsewhere."""
        if seq > self.inbox.queued_seq:
            self._lose(seq)
            if waiter is not None:
                fail(waiter, error)
        elif waiter is not None:
            refused_seq, refusal = self._unkept.get(key, (0, None))
            if refusal is not None and seq <= refused_seq:
                fail(waiter, refusal)
            self._await_commit(seq, key, waiter)
        self._reached()

    def _spilled(self, seq: int, change: Change, tickets: tuple[Any, ...]) -> _Durable:
        """Keep a change in the journal alone, until `refill` or until another process has written it."""
        assert self.journal is not None
        if not self._external:
            self.counts.spilled += 1
        if tickets:
            self._spilled_tickets[seq] = tickets
        return self.journal.append(seq, change)

    def _lose(self, seq: int) -> None:
        """A spilled change is nowhere any more; its caller is told."""
        self._spilled_tickets.pop(seq, None)
        self.inbox.lose(seq)

    def _has_room(self, change: Change) -> bool:
        """Whether the journal may take it: what the disk has not answered for is in memory."""
        journal, most = self.journal, self.settings
        if journal is None or journal.size + self.lanes.size + change.size > most.journal_max_bytes:
            return False
        return journal.unsynced + change.size <= max(most.queue_max_bytes, _UNSYNCED)

    def _own_journal(self) -> Journal:
        """This process's journal, created at its first write. Raises JournalError."""
        if self.journal is None:
            try:
                self.journal = Journal(
                    self.settings.journal_dir,
                    asyncio.get_running_loop(),
                    self.store.label,
                    database_id=self.store.database_id,
                    external=self._external,
                    keep=self.settings.journal_keep,
                    keep_bytes=self.settings.journal_keep_bytes,
                    on_commit=self._metrics.journal_commit_duration.observe,
                    on_failure=self._not_journaled,
                    on_answer=self._journal_answered,
                )
            except JournalError as error:
                self.refuse(error)
                raise
            self.cursor = Cursor(self.journal.id, source=_Pages(self.journal, self.went_back))
        return self.journal

    def _stand(self, change: Change, tickets: tuple[Any, ...]) -> Waiting:
        """Take a place at the door of a full queue. Raises QueueFull where too many stand there."""
        try:
            return self.inbox.wait(change, tickets, self._ensure_running().create_future())
        except QueueFull as error:
            raise self._refusal(change, error) from None

    async def _wait_for_room(self, waiting: Waiting) -> _Durable:
        change = waiting.change
        try:
            with anyio.fail_after(self.settings.queue_timeout):
                durable: _Durable = await waiting.token
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

    def _refusal(self, change: Change, error: QueueFull, reason: str = "queue_full") -> QueueFull:
        self.counts.refused[reason] += 1
        logger.error("change refused table=%s reason=%s", change.table, error)
        return error

    def _notify(self, *, now: bool) -> None:
        if now:
            self.inbox.hurry()
        self._worker.notice(now=now or self.inbox.has_ready_batch)

    # ---- reading

    async def settle(self, thread_id: str | None) -> None:
        """Return when everything that was queued for the thread (None: for any) is in the database.

        Raises TransientError at once while the database can't be written to, and ThreadHeldUp while it holds this
        thread up. Who reads of many does not wait for what is held up.
        """
        self._ensure_running()
        if self.recovery is not None and not self.recovery.done_once.is_set():
            await self._wait_for_recovery()
        seq = self.inbox.ticket_for(thread_id)
        if seq is not None:
            if self.failure is not None:
                raise _unreadable(self.failure)
            started = self._clock()
            await self._applied(seq, self._readers)
            self._metrics.settle_duration.observe(self._clock() - started)
        if thread_id is not None and (self.lanes.open or self._external):
            await self._pass_lanes(thread_id)

    async def settle_step(self, step_id: str) -> None:
        """As `settle`, for who reads one step and does not know its thread."""
        await self.settle(None)
        await self.lanes.settle_step(step_id)

    async def _pass_lanes(self, thread_id: str) -> None:
        progress = self.journal.progress if self.journal is not None else None
        if progress is not None:
            if progress.has_news:
                self.store.committed_elsewhere()
            if progress.is_parked(thread_id):
                raise ThreadHeldUp("`forebay drain` can't write this thread at present, others it can")
        await self.lanes.settle(thread_id)

    async def _wait_for_recovery(self) -> None:
        """What a process before this one has acknowledged should be seen, but a long journal must not block."""
        assert self.recovery is not None
        if self.writer.failure is not None:
            raise _unreadable(self.writer.failure)
        if self._patient_until is None:
            self._patient_until = self._clock() + _RECOVERY_PATIENCE
        patience = self._patient_until - self._clock()
        if patience <= 0:
            return
        recovered = asyncio.ensure_future(self.recovery.done_once.wait())
        failed = self._readers.add(_NEVER, self._ensure_running())
        try:
            await asyncio.wait((recovered, failed), timeout=patience, return_when=asyncio.FIRST_COMPLETED)
            if failed.done():
                failed.result()
        finally:
            recovered.cancel()
            failed.cancel()

    async def read(self, statement: Statement, **parameters: Any) -> Any:
        """Run a read. Raises a DatabaseError."""
        self._ensure_running()
        return await self.store.read(statement, **parameters)

    async def write_now(self, statement: Statement, **parameters: Any) -> Any:
        """Run a write that nothing queued depends on, and that returns what it stored."""
        self._ensure_running()
        return await self.store.write(statement, **parameters)

    async def _applied(self, seq: int, waiters: Waiters) -> None:
        done = waiters.add(seq, self._ensure_running())
        self._notify(now=True)
        await done

    async def flush(self) -> None:
        """Return when everything that was accepted is in the database, or given up as a refused row."""
        self._ensure_running()
        if self.inbox.applied_seq < self.inbox.accepted_seq:
            await self._applied(self.inbox.accepted_seq, self._flushes)
        if self.lanes.open:
            await self.lanes.written()

    def _fail_readers(self, error: ForebayError | None) -> None:
        """Readers fail at once when the writer does; `flush` goes on waiting."""
        if error is not None:
            self._readers.fail(_unreadable(error))

    def _not_kept(self, change: Change, error: RowError, cursor: Cursor) -> None:
        """No letter holds a row that was refused: where the journal has it not either, it was not made."""
        batch_seq = self.inbox.in_flight_seq
        if cursor is not self.cursor or batch_seq is None:
            return
        if self.journal is not None and not self.journal.is_quiet:
            self._unkept[change.key] = batch_seq, error
        for seq, waiter in self._unsafe.get(change.key, ()):
            if seq <= batch_seq:
                fail(waiter, error)

    # ---- what the worker tells

    def batch_settled(self) -> None:
        """See `write_loop.Owner`."""
        if self.journal is not None:
            self._trim(self.journal)
            if self.journal.database_id is None and self.store.database_id is not None:
                self.journal.name(self.store.database_id)
        if self.inbox.waiting:
            self._admit()
        self._reached()

    def _trim(self, journal: Journal) -> None:
        """Not what a refused row is in that nothing else holds yet."""
        held_seq = journal.progress.held if journal.progress is not None else None
        if held_seq is not None:
            journal.trim(min(held_seq, self.inbox.applied_seq))
        elif not self.cursor.is_held:
            journal.trim(self.inbox.applied_seq)

    @property
    def _is_held(self) -> bool:
        """Whether the journal has to stay, though the database has it whole."""
        progress = self.journal.progress if self.journal is not None else None
        return self.cursor.is_held or (progress is not None and progress.held is not None)

    def _admit(self) -> None:
        for waiting in self.inbox.admit(self._clock(), self._has_room, spill_only=self._external):
            assert waiting.seq is not None
            durable: _Durable = None
            if waiting.spilled:
                durable = self._spilled(waiting.seq, waiting.change, waiting.tickets)
            else:
                durable = self._journaled(waiting.seq, waiting.change)
            # A future as the result of a future: what the caller waits for next.
            settle_with(waiting.token, durable)

    def _journal_answered(self) -> None:
        """The disk has taken something, or given up: whoever stands at the door may come in."""
        if self._unkept and self.journal is not None and self.journal.is_quiet:
            self._unkept.clear()
        if self.inbox.waiting:
            self._admit()
            self._notify(now=False)

    def handover_failed(self, error: TransientError) -> None:
        """See `external_writer.Owner`."""
        self._fail_readers(error)

    def _reached(self) -> None:
        applied_seq = self.inbox.applied_seq
        self._readers.reached(applied_seq)
        self._flushes.reached(applied_seq)
        self._commits.reached(applied_seq)
        if self._unsafe and not self._commits:
            self._unsafe.clear()
        if self.journal is not None:
            self.journal.written(applied_seq)
        if self._external:
            for seq in [seq for seq in self._spilled_tickets if seq <= applied_seq]:
                for ticket in self._spilled_tickets.pop(seq):
                    settle(ticket, None)

    async def look_back(self) -> None:
        """See `write_loop.Owner`. Whoever has lost its connection may meet another server behind the same name."""
        if self.cursor.at.seq and (self._doubted or not self.store.has_writer):
            self._doubted = False
            with contextlib.suppress(DatabaseError):
                await self.writer.verify(self.cursor)

    def _doubt(self) -> None:
        """A reader has met a database that lacks what was written; the writer is to look."""
        self._doubted = True
        if isinstance(self._worker, Worker):
            self._worker.look_now()

    def went_back(self) -> None:
        """Reads wait for what is written again as they do for what a process before this one has left."""
        self.kept.went_back()
        if self.recovery is not None:
            self.recovery.done_once.clear()
            self.recovery.due, self._patient_until = 0.0, None

    async def refill(self) -> None:
        """See `write_loop.Owner`."""
        assert self.journal is not None
        # A little at a time: in memory a change takes up several times what it does on the disk.
        room = max(1, (self.settings.queue_max_bytes - self.inbox.size) // 8)
        durable_seq = self.journal.durable_seq
        # A disk that does not give them back may yet do so, and what comes after them must not overtake.
        records = await self.writer.until_answered(partial(self.journal.read, self.inbox.queued_seq, room))
        for seq, change in records:
            self._lose_unreadable(seq - 1)
            self.inbox.refill(seq, change, self._clock(), self._spilled_tickets.pop(seq, ()))
        if not records:
            self._lose_unreadable(durable_seq)
            self.inbox.queued_seq = max(self.inbox.queued_seq, durable_seq)
            await self.journal.synced()  # what is spilled is on its way to the disk

    def _lose_unreadable(self, last_seq: int) -> None:
        """The disk does not give back what was spilled up to here."""
        first_seq = self.inbox.queued_seq + 1
        missing = [seq for seq in range(first_seq, last_seq + 1) if not self.inbox.is_lost(seq)]
        if missing:
            logger.critical(
                "journal damaged changes=%d; see the disk that holds FOREBAY_JOURNAL_DIR", len(missing)
            )
        for seq in missing:
            self._lose(seq)
        self._reached()

    # ---- life

    def start(self) -> None:
        """Start in the running loop, unless it runs in another one."""
        with self._moving:
            if self._is_homeless:
                self._ensure_running()

    def is_away(self) -> bool:
        """Whether another loop than this one is the home: then all calls but this one are to be brought there.

        Starts where there is no home. At home it takes what others have brought before.
        """
        loop = self._loop
        # A thread runs one loop at a time. Before Python 3.12, asking for it asks the system for the process's id.
        if (
            loop is not None
            and self._thread_id == get_ident()
            and loop.is_running()
            and not self._arrivals.waiting
        ):
            return False
        return self._look_for_home()

    def _look_for_home(self) -> bool:
        running = asyncio.get_running_loop()
        if self.is_forked:
            return False
        with self._moving:
            if self._is_homeless and not self.closed:
                if threading.current_thread() is threading.main_thread():
                    self._start(running)
                else:
                    self._start_apart()
        if running is not self._loop:
            return not self._is_homeless
        self._take_arrivals()
        return False

    @property
    def has_begun(self) -> bool:
        """Whether it was ever started."""
        return self._loop is not None

    @property
    def _is_homeless(self) -> bool:
        """Whether there is no loop that takes calls, now or later."""
        loop, thread = self._loop, self._thread
        if loop is None or thread is None or loop.is_closed():
            return True
        # One that stands, while its thread runs another or has ended, can't go on.
        return not loop.is_running() and (thread is threading.current_thread() or not thread.is_alive())

    def bring(self, act: Callable[[], Awaitable[Any]], size: int = OVERHEAD_BYTES) -> Awaitable[Any]:
        """Have the home do `act`, in the order of these calls; to be awaited for its result, or its error.

        It is done whether somebody waits or not, and whatever becomes of the caller's loop. `size`: its bytes in
        memory. Raises QueueFull when too much waits; who waits gets WrongLoop when the home does not take it.
        """
        call = Call(act, size)
        try:
            self._arrivals.add(call)
        except QueueFull as error:
            self.refuse(error)
            raise
        self._call_home()
        return Deferred(partial(self._answer_to, call))

    def _call_home(self) -> None:
        loop = self._loop
        with contextlib.suppress(RuntimeError):  # it has ended since: whoever comes next finds another
            if loop is not None:
                loop.call_soon_threadsafe(self._take_arrivals)

    def _take_arrivals(self) -> None:
        loop = asyncio.get_running_loop()
        # Not where this was its home, nor while one is taking its place: what came after it would come before it.
        if loop is not self._loop or self._is_taking:
            return
        self._is_taking = True
        try:
            while (call := self._arrivals.next()) is not None:
                task = call.begin(loop)
                if task is not None:
                    self._brought.add(task)
                    task.add_done_callback(self._brought.discard)
        finally:
            self._is_taking = False

    async def _answer_to(self, call: Call) -> Any:
        began = self._clock()
        while not call.answer.done():
            await asyncio.wait([call.answer], timeout=_LOOK_AROUND)
            if not call.answer.done():
                self._look_after(call, self._clock() - began)
        return call.answer.result()

    def _look_after(self, call: Call, waited: float) -> None:
        """Who was to take a call may have ended, or may stand still. Raises WrongLoop."""
        self.is_away()  # finds another
        if call.was_left:
            raise WrongLoop("the data layer's event loop has ended before the call was done")
        if waited >= self.settings.queue_timeout and self._arrivals.withdraw(call):
            error = WrongLoop("the data layer's event loop stands still and takes no calls of other threads")
            self.refuse(error)
            raise error

    async def leave(self) -> None:
        """End the home of its own, if it has one; to be called elsewhere, when it is closed."""
        if self._own_loop is not None:
            await self._own_loop.end()
            self._take_nothing_more()

    def _take_nothing_more(self) -> None:
        while (call := self._arrivals.next()) is not None:
            call.tell(fail, LayerClosed("the data layer is closed; create a new one"))

    async def check_folder(self) -> None:
        """Raises JournalError while the folder takes no journal, or this process's was removed; it is logged once."""
        if not self._journals or self.closed or self.is_forked:
            return
        try:
            await self._try_disk(self.settings.journal_dir)
        except JournalError as error:
            if self._folder_failure is None:
                logger.error("journal folder unusable reason=%s", error)
            self._folder_failure = error
            raise
        if self._folder_failure is not None:
            self._folder_failure = None
            logger.warning("journal folder usable again")

    async def _try_disk(self, folder: Path) -> None:
        """A disk that does not answer holds up one thread, not whoever asks about it."""
        own = self.journal.path if self.journal is not None else None
        if self.journal is None or self.journal.stalled_for < _DISK_PATIENCE:
            if self._trying is None or self._trying.done():
                self._trying = asyncio.ensure_future(asyncio.to_thread(check_folder, folder, own))
            done, _ = await asyncio.wait([self._trying], timeout=_DISK_PATIENCE)
            if done:
                return self._trying.result()
        raise JournalError(
            f"the disk that holds {folder} does not answer; see that disk, or set FOREBAY_JOURNAL_DIR"
        )

    def _ensure_running(self) -> asyncio.AbstractEventLoop:
        loop = self._loop
        if loop is not None and loop.is_running() and self._thread_id == get_ident() and not self.closed:
            return loop
        loop = asyncio.get_running_loop()
        if loop is not self._loop or self.closed:
            self._start(loop)
        return loop

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        if self.closed:
            raise LayerClosed("the data layer is closed; create a new one")
        if self.is_forked:
            raise LayerForked(
                "this process was forked off the one that the data layer runs in; create a new one"
            )
        if not self._is_homeless:
            raise WrongLoop("the data layer runs in another event loop")
        begin = self._moves_to(loop, threading.current_thread())
        begin()

    def _start_apart(self) -> None:
        """In a thread of its own, since the caller's loop may end at any time."""
        self._own_loop = OwnLoop("forebay-home")
        begin = self._moves_to(self._own_loop.loop, self._own_loop.thread)
        self._own_loop.loop.call_soon(begin)
        self._own_loop.loop.call_soon(self._take_arrivals)
        self._own_loop.start()

    def _moves_to(self, loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> Callable[[], None]:
        """Make it the home; what is to be done in it first."""
        before, self._loop = self._loop, loop
        self._thread, self._thread_id = thread, thread.ident or 0
        return partial(self._begin, loop, before)

    def _begin(self, loop: asyncio.AbstractEventLoop, before: asyncio.AbstractEventLoop | None) -> None:
        self._thread_id = get_ident()
        if before is not None:
            self._leave_loop(loop)
        if self.settings.gc_tuning:
            _tune_collector()
        # An empty context: the first caller's would keep its Chainlit session alive as long as the worker.
        self._task = loop.create_task(
            self._worker.run(), name="forebay-writer", context=contextvars.Context()
        )
        self._task.add_done_callback(_report_end)
        self.lanes.rebind()
        self.letterbox.rebind()
        self.kept.rebind()
        for start in self.on_start:
            start(loop)

    def _leave_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Go on in this loop with what was queued; the one before has ended, and nobody waits in it."""
        if self._task is not None and not self._task.get_loop().is_closed():
            self._task.cancel()
        self.store.forget_connections()
        self._trying = None
        if self.journal is not None:
            self.journal.rebind(loop)
        if self.recovery is not None:
            self.recovery.rebind()
        self.inbox.take_back()
        self._readers, self._flushes, self._commits = Waiters(), Waiters(), Waiters()
        self._unsafe.clear()
        self._worker = self._make_worker(self._clock)

    def forked(self) -> None:
        """In a forked child: what is queued and journaled is the parent's."""
        if self._loop is not None:
            self._loop, self.is_forked = None, True
        elif self.journal is None:
            self.cursor.renew()  # or each child would take the others' batches for its own

    async def close(self) -> None:
        """Write out the queue within `close_timeout`, taking writes until a quiet spell, and disconnect."""
        if self.is_forked:
            self.closed = True  # there is nothing of its own to close
        if self.closed and self._closing is None:
            return
        # A task of its own, so that a caller who is cancelled leaves no half-closed layer to the next.
        if self._closing is None or self._closing.cancelled():
            self._closing = asyncio.get_running_loop().create_task(self._close(), name="forebay-close")
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        self.health.closing = True
        with anyio.move_on_after(self.settings.close_timeout):
            await self._drain()
        self.closed = True
        await self._stop_worker()
        await self._fail_waiters()
        await self.letterbox.close()
        await self.kept.close()
        await self._close_journal()
        await self.store.close()

    async def _drain(self) -> None:
        while self._loop is not None and not self.closed:
            seen = self.inbox.accepted_seq
            await self.flush()
            await anyio.sleep(_QUIET_SPELL)
            if self.inbox.accepted_seq == seen and not self.inbox.waiting:
                return

    async def _stop_worker(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if self.recovery is not None:
            self.recovery.release()
        unwritten = self.inbox.pending + self.lanes.changes
        if unwritten or self.inbox.waiting:
            logger.error(
                "closed with unwritten changes rows=%d waiting=%d kept_in=%s reason=%s",
                unwritten,
                self.inbox.waiting,
                self.journal.path if self.journal is not None else "nowhere",
                self.failure or "close_timeout",
            )

    async def _close_journal(self) -> None:
        finished = not self.inbox.pending and not self._is_held
        if self.journal is not None:
            await self.journal.close(remove=finished, patience=self.settings.close_timeout)
        if finished and self.inbox.accepted_seq:
            # The checkpoint stays: a statement that comes late must find it. Those of long ago may go.
            with contextlib.suppress(DatabaseError), anyio.move_on_after(_FORGET_TIMEOUT):
                await self.store.clear_checkpoints()

    async def _fail_waiters(self) -> None:
        closed = LayerClosed("the data layer was closed before the change was written")
        parked = await self.lanes.close(closed)
        self._readers.fail(closed)
        self._flushes.fail(closed)
        self._commits.fail(closed)
        spilled = chain.from_iterable(self._spilled_tickets.values())
        for future in (*self.inbox.abandon(), *spilled, *parked):
            fail(future, closed)


async def _both(entered: Awaitable[None], ticket: asyncio.Future[None]) -> None:
    await entered
    # The change stays queued whatever becomes of the caller.
    await asyncio.shield(ticket)


class _Pages:
    """This process's journal as what can be read again; `went_back` is told when it has to be."""

    def __init__(self, journal: Journal, went_back: Callable[[], None]) -> None:
        self._journal = journal
        self._went_back = went_back

    async def read(self, after_seq: int, max_bytes: int) -> list[Record]:
        """What can't be read back is told, and does not keep what comes after it from being written."""
        try:
            return await self._journal.read(after_seq, max_bytes)
        except JournalError as error:
            logger.critical("journal not read again reason=%s", error)
            return []

    def went_back(self, seq: int) -> None:
        self._journal.trim(seq)
        self._went_back()


@cache
def _tune_collector() -> None:
    """Once a process. Of a threshold that somebody has chosen, the greater counts."""
    gc.freeze()
    youngest, *older = gc.get_threshold()
    gc.set_threshold(max(youngest, _COLLECT_AFTER) if youngest else 0, *older)


def _report_end(task: asyncio.Task[None]) -> None:
    """The writer runs until it is cancelled; any other end is a fault of forebay's own."""
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.critical(
            "writer ended, nothing is written any more reason=%s", type(error).__name__, exc_info=error
        )


def _unreadable(error: ForebayError) -> TransientError:
    return TransientError(
        f"what was written before can't be read yet: {error}", location=getattr(error, "location", None)
    )


# A child that is forked off must not write what is the parent's.
_pipelines: weakref.WeakSet[Pipeline] = weakref.WeakSet()


def _after_fork() -> None:
    for pipeline in list(_pipelines):
        pipeline.forked()


posix.after_fork(_after_fork)
