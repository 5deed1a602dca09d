"""What lies between Chainlit's face and the database, put together; how it begins, moves to another loop, and ends.

`Intake` takes changes in, `Worker` has them written, `Barrier` lets reads through behind them; all of it lives in one
event loop, its `Home`.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import logging
import time
import uuid
import weakref
from collections.abc import Callable
from functools import cache

import anyio
from typing_extensions import override

from forebay.database.store import Store
from forebay.errors import DatabaseError, ForebayError, LayerClosed, RowError
from forebay.journal.dead_letters import DeadLetters
from forebay.journal.folder_check import FolderCheck
from forebay.journal.journal import Journal
from forebay.journal.side_journal import SideJournal
from forebay.model.changes import Change
from forebay.pipeline.alarm import Alarm
from forebay.pipeline.barrier import Barrier
from forebay.pipeline.batch_writer import Writer
from forebay.pipeline.cursor import Cursor
from forebay.pipeline.external_writer import Handover
from forebay.pipeline.home import Home
from forebay.pipeline.intake import Intake
from forebay.pipeline.kept_journals import KeptJournals
from forebay.pipeline.lane import Log, MemoryLog
from forebay.pipeline.lanes import Lanes
from forebay.pipeline.letterbox import Letterbox
from forebay.pipeline.own_journal import OwnJournal
from forebay.pipeline.queue import Inbox
from forebay.pipeline.quotas import nobody
from forebay.pipeline.recovery import Recovery
from forebay.pipeline.refusals import Refusals
from forebay.pipeline.tombstones import Tombstones
from forebay.pipeline.write_loop import Worker
from forebay.primitives import posix
from forebay.primitives.futures import fail
from forebay.settings import Settings
from forebay.telemetry.collector import JournalView, Metrics
from forebay.telemetry.counters import Counts
from forebay.telemetry.health import Health

logger = logging.getLogger("forebay.engine")

# Handlers go on for a moment after SIGTERM; when nothing was written for this long, they are done. Seconds.
_QUIET_SPELL = 0.1
_COLLECT_AFTER = 50_000  # new objects; a few thousand writes
_FORGET_TIMEOUT = 1.0  # seconds


class Pipeline:
    """One process's writes and reads. It starts itself at its first use, see `Home`."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
        whose: Callable[[], str] = nobody,
    ) -> None:
        self.store = store
        self.counts = counts = Counts()
        if store.replica is not None:
            counts.replica_reads = store.replica.reads
        self._settings = settings
        self._clock = clock
        self._task: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        # Called with the loop that it starts in.
        self.on_start: list[Callable[[asyncio.AbstractEventLoop], None]] = []
        self.health = Health(
            lambda: self.failure, lambda: counts.written.total() > 0, settings.ready_grace, clock
        )

        self.inbox = Inbox(
            max_bytes=settings.queue_max_bytes,
            batch_max_rows=settings.batch_max_rows,
            batch_max_bytes=settings.batch_max_bytes,
            linger=settings.linger,
            counts=counts,
        )
        # Where this process's changes stand in the database, whether a journal keeps them or not.
        self.cursor = Cursor(uuid.uuid4().hex)
        self._own = OwnJournal(settings, store, metrics, self.cursor, self._went_back)
        self._folder = FolderCheck(settings.journal_dir)

        tombstones = Tombstones(counts)
        self.letterbox = Letterbox(
            DeadLetters(settings.journal_dir, settings.dead_letters_max_bytes),
            store,
            counts,
            clock,
            make_log=self._side_journal if self._own.kept else None,
            on_unsafe=self._not_kept,
        )
        self.writer = Writer(
            store,
            counts,
            metrics,
            tombstones,
            clock,
            keep=self.letterbox.keep,
            keep_is_vital=self._own.kept,
            pending=lambda: self.inbox.pending,
            on_failure=lambda failure: self.barrier.note(failure),
        )
        self.kept = KeptJournals(store, settings.journal_keep, settings.journal_keep_bytes, clock)
        self.lanes = self.writer.lanes = self._make_lanes()
        self.recovery = self._make_recovery()

        alarm = self._alarm = Alarm(clock)
        self.refusals = Refusals(counts)
        self.home = Home(
            self._begin,
            self.refusals,
            clock,
            max_bytes=settings.queue_max_bytes,
            patience=settings.queue_timeout,
        )
        self.barrier = Barrier(
            self.inbox, self._own, self.lanes, self.recovery, store, self.home, alarm, metrics, clock
        )
        self.intake = Intake(
            settings,
            self.inbox,
            self._own,
            self.lanes,
            tombstones,
            self.barrier,
            self.home,
            alarm,
            self.refusals,
            counts,
            metrics,
            clock,
            whose,
        )
        self._worker: Worker | Handover
        if self._own.is_external:
            self._worker = Handover(self.inbox, self.intake, self._own, self.barrier, store, alarm, clock)
        else:
            self._worker = Worker(
                self.inbox, self.intake, self.writer, self.cursor, self.recovery, alarm, clock
            )
            store.on_gone_back = self._worker.look_now
        store.known = lambda: (self.cursor.journal_id, self.cursor.known_seq)
        _pipelines.add(self)
        metrics.observe(
            counts,
            self.inbox,
            lambda: self.health.reason() is None,
            clock,
            self._journal_view() if self._own.kept else None,
            self.lanes,
        )

    @override
    def __repr__(self) -> str:
        return f"<Pipeline {'closed' if self.home.closed else 'open'}, {self.inbox!r}, {self.writer!r}>"

    def _journal_view(self) -> JournalView:
        return JournalView(
            size=lambda: self.journal.size if self.journal is not None else 0,
            capacity=self._settings.journal_max_bytes,
            spilled=lambda: self.inbox.spilled,
        )

    def _make_recovery(self) -> Recovery | None:
        if self.store.in_memory or self._own.is_external:
            return None
        return Recovery(
            self._settings.journal_dir,
            self.store.label,
            self.writer,
            self.store,
            self.kept,
            self.counts,
            self._clock,
        )

    def _make_lanes(self) -> Lanes:
        """What is held up counts where it lies: in the queue's bytes or in the journal's, a quarter of them at most."""
        on_disk, settings = self._own.kept, self._settings
        whole = settings.journal_max_bytes if on_disk else settings.queue_max_bytes

        def make_log() -> Log:
            return self._side_journal() if on_disk else MemoryLog()

        return Lanes(
            make_log,
            self.kept,
            self.store,
            self.writer,
            self.counts,
            self._clock,
            max_bytes=whole // 4,
            on_size=(lambda _bytes: None) if on_disk else self.inbox.hold,
        )

    def _side_journal(self) -> SideJournal:
        return SideJournal(self._settings.journal_dir, self.store.label, self.store.database_id)

    # ---- how it is

    @property
    def journal(self) -> Journal | None:
        """This process's journal; None before its first write, and where none is kept."""
        return self._own.journal

    @property
    def failure(self) -> ForebayError | None:
        """Why nothing is written at present; None while it is."""
        return self.barrier.failure

    @property
    def ended(self) -> bool:
        """Whether the writer has ended by itself, by a fault of forebay's own."""
        return self._task is not None and self._task.done() and not self._task.cancelled()

    async def check_folder(self) -> None:
        """Raises JournalError while the folder takes no journal, or this process's was removed; it is logged once."""
        if self._own.kept and not self.home.closed and not self.home.is_forked:
            await self._folder.check(self.journal)

    # ---- its beginnings

    def _begin(self, loop: asyncio.AbstractEventLoop, moved: bool) -> None:
        if moved:
            self._leave_loop(loop)
        if self._settings.gc_tuning:
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
        self._folder.rebind()
        if self.journal is not None:
            self.journal.rebind(loop)
        if self.recovery is not None:
            self.recovery.rebind()
        self.intake.rebind()
        self.barrier.rebind()
        self._alarm.rebind()

    def _went_back(self) -> None:
        """The database has; reads wait for what is written again."""
        self.kept.went_back()
        if self.recovery is not None:
            self.recovery.begin_again()

    def _not_kept(self, change: Change, error: RowError, cursor: Cursor) -> None:
        if cursor is self.cursor:
            self.intake.not_kept(change, error)

    def forked(self) -> None:
        """In a forked child: what is queued and journaled is the parent's."""
        if self.home.has_begun:
            self.home.forked()
        elif self.journal is None:
            self.cursor.renew()  # or each child would take the others' batches for its own

    async def adopt_all(self) -> None:
        """Return when what other processes have left behind is written, as far as it can be."""
        self.home.ensure()
        if self.recovery is not None:
            self.recovery.begin_again()
            self._alarm.notice(now=True)
            await self.recovery.done_once.wait()

    # ---- its end

    async def close(self) -> None:
        """Write out the queue within `close_timeout`, taking writes until a quiet spell, and disconnect."""
        if self.home.is_forked:
            self.home.closed = True  # there is nothing of its own to close
        if self.home.closed and self._closing is None:
            return
        # A task of its own, so that a caller who is cancelled leaves no half-closed layer to the next.
        if self._closing is None or self._closing.cancelled():
            self._closing = asyncio.get_running_loop().create_task(self._close(), name="forebay-close")
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        self.health.closing = True
        with anyio.move_on_after(self._settings.close_timeout):
            await self._drain()
        self.home.closed = True
        await self._stop_worker()
        await self._fail_waiters()
        await self.letterbox.close()
        await self.kept.close()
        await self._close_journal()
        await self.store.close()

    async def _drain(self) -> None:
        while self.home.has_begun and not self.home.closed:
            seen = self.inbox.accepted_seq
            # What is held up the next process finds, where it is on the disk; it may be so for hours.
            await self.barrier.flush(leaves_held_up=self._own.kept)
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

    async def _fail_waiters(self) -> None:
        closed = LayerClosed("the data layer was closed before the change was written")
        for ticket in await self.lanes.close(closed):
            fail(ticket, closed)
        self.barrier.close(closed)
        self.intake.close(closed)

    async def _close_journal(self) -> None:
        finished = not self.inbox.pending and not self._own.is_held
        if self.journal is not None:
            await self.journal.close(remove=finished, patience=self._settings.close_timeout)
        if finished and self.inbox.accepted_seq:
            # The checkpoint stays: a statement that comes late must find it. Those of long ago may go.
            with contextlib.suppress(DatabaseError), anyio.move_on_after(_FORGET_TIMEOUT):
                await self.store.clear_checkpoints()


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


# A child that is forked off must not write what is the parent's.
_pipelines: weakref.WeakSet[Pipeline] = weakref.WeakSet()


def _after_fork() -> None:
    for pipeline in list(_pipelines):
        pipeline.forked()


posix.after_fork(_after_fork)
