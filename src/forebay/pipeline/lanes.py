"""Lanes: a thread that the database holds up waits by itself, in its order, and the others go on.

What is parked lies in a journal of its own, where a journal is kept at all, before the checkpoint passes it. So a
process that is gone leaves it to whoever adopts its journals. Each lane is a replay of that journal, which is tried
again with backoff, one lane at a time and beside the writer; it ends when everything is in.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from typing_extensions import override

from forebay.database import error_codes
from forebay.database.checkpoint import Checkpoint, Position
from forebay.database.store import LeftOut
from forebay.errors import DatabaseError, JournalError, ThreadHeldUp
from forebay.journal.orphan import let_go
from forebay.journal.side_journal import SideJournal
from forebay.model.changes import Change, Delete
from forebay.pipeline.batch_writer import Applies, Writer
from forebay.pipeline.kept_journals import KeptJournals
from forebay.pipeline.lane import Lane, Log
from forebay.pipeline.queue import Op
from forebay.pipeline.replay import Replay
from forebay.primitives import threads
from forebay.primitives.backoff import Backoff
from forebay.telemetry.counters import Counts

logger = logging.getLogger("forebay.writer")

# With so many held up, it is not a thread's trouble any more: then everything waits.
MOST_LANES = 100
_BATCH_BYTES = 256 * 1024
# Seconds between two tries: whoever holds a lock lets go of it; what takes too long is likely to do so again.
_LOCK_BACKOFF, _SLOW_BACKOFF = (0.25, 10.0), (1.0, 300.0)
_NAMES = ("parentId", "forId")  # what a row hangs on


class Database(Applies, Protocol):
    """What lanes need of a store."""

    @override
    async def apply(
        self,
        changes: Sequence[Change],
        checkpoint: Checkpoint | None,
        *,
        late: bool = False,
        share: float = 1.0,
        apart: bool = False,
    ) -> frozenset[str | LeftOut]:
        """See `batch_writer.Applies`; `apart`: beside the writer."""

    async def thread_of(self, change: Change) -> str | None:
        """The thread of a row that is there. Raises a DatabaseError."""


class Lanes:
    """The lanes of a process, beside its `writer`.

    `make_log` makes a new one's log, and `kept` gets it at its end; `max_bytes`: with so much parked, what else is
    written to a thread that is held up is refused. `on_size` is told by how many bytes what is parked grows and
    shrinks, `on_change` when one begins, when its thread is known, and when it has ended.
    """

    def __init__(
        self,
        make_log: Callable[[], Log],
        kept: KeptJournals,
        store: Database,
        writer: Writer,
        counts: Counts,
        clock: Callable[[], float],
        *,
        max_bytes: int,
        on_size: Callable[[int], None] = lambda _bytes: None,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self.open: dict[str, Lane] = {}  # by key
        self.size = 0
        self.is_full = False
        self._make_log = make_log
        self._kept = kept
        self._store = store
        self._writer = writer
        self._counts = counts
        self._clock = clock
        self._max_bytes = max_bytes
        self._on_size = on_size
        self._on_change = on_change
        self._rows: dict[
            tuple[str, str], str
        ] = {}  # the lane of a row that is parked, or that one of them names
        self._threads: dict[str, str] = {}  # the lane of a thread
        self._replays: dict[str, Replay] = {}
        self._turn = asyncio.Semaphore()

    @override
    def __repr__(self) -> str:
        return f"<Lanes {len(self.open)} open, {self.changes} changes, {self.size} bytes>"

    @property
    def has_room(self) -> bool:
        """Whether one thread more may be held up."""
        return len(self.open) < MOST_LANES

    @property
    def threads(self) -> set[str]:
        """The threads that are held up, as far as they are known."""
        return {lane.thread_id for lane in self.open.values() if lane.thread_id is not None}

    @property
    def changes(self) -> int:
        """How many changes are parked."""
        return sum(lane.changes for lane in self.open.values())

    def key_of(self, change: Change) -> str | None:
        """The lane that the change has to go into, or nothing.

        A row that is in a lane stays there. A change that does not say its thread goes where is what names it, or what
        it hangs on.
        """
        key = self._rows.get((change.table, change.key))
        if key is not None:
            return key
        if change.thread_id is not None:
            return self._threads.get(change.thread_id)
        return self._rows.get(("", change.key)) or self._rows.get(("steps", _step_of(change)))

    def refuses(self, change: Change) -> bool:
        """Whether a change is of a thread that is held up, and there is no room for what waits so."""
        return self.is_full and self.key_of(change) is not None

    async def park(self, ops: Sequence[Op], error: DatabaseError | None = None) -> bool:
        """Put changes of one thread at the end of its lane; with an `error`, that may begin.

        False where it has ended, and there is no error. Raises JournalError or a DatabaseError; then nothing is done.
        """
        first = ops[0].change
        key = self.key_of(first)
        if key is None and error is None:
            return False
        if key is None:  # of a row that is nowhere yet, nobody can say whose it is
            thread_id = await self._store.thread_of(first)
            key = self._threads.get(thread_id or "", thread_id) or f"{first.table}/{first.key}"
            lane = self.open.get(key) or await self._begin(key, thread_id, error)
        else:
            lane = self.open[key]
        try:
            await lane.append(ops)
        except JournalError:
            if lane.task is None:
                await self._drop(lane)
            raise
        self._grow(sum(op.change.size for op in ops))
        is_news = self._note(lane, [op.change for op in ops]) or lane.task is None
        if lane.task is None:
            self._start(lane)
        if is_news:
            self._on_change()
        return True

    def _note(self, lane: Lane, changes: Sequence[Change]) -> bool:
        """What these change, and what they hang on, waits in this lane from now on. True if they tell its thread."""
        before = lane.thread_id
        for change in changes:
            lane.thread_id = lane.thread_id or change.thread_id
            for row in _rows_of(change):
                self._rows.setdefault(row, lane.key)
        if lane.thread_id is not None:
            self._threads.setdefault(lane.thread_id, lane.key)
        return lane.thread_id != before

    async def _begin(self, key: str, thread_id: str | None, error: DatabaseError | None) -> Lane:
        log = await threads.taken(self._make_log, _release)
        lane = self.open[key] = Lane(key, thread_id, log)
        reason = _reason_of(error)
        self._counts.parkings[reason] += 1
        logger.warning("thread held up lane=%s threads=%d reason=%s", log.id, len(self.open), error or reason)
        writer = self._writer.aside(
            _InTurn(self._store, self),
            pending=lambda: lane.changes,
            on_failure=lane.note,
            backoff=Backoff(*(_LOCK_BACKOFF if reason == "lock" else _SLOW_BACKOFF)),
        )
        self._replays[key] = Replay(log, Position(), writer, self._counts, self._clock, tickets=lane.tickets)
        return lane

    async def _drop(self, lane: Lane) -> None:
        """Forget one that could not begin."""
        del self.open[lane.key], self._replays[lane.key]
        if isinstance(lane.log, SideJournal):
            try:
                await asyncio.to_thread(let_go, lane.log)
            except JournalError as failed:  # there is nothing in it for whoever adopts it
                logger.error("lane left behind lane=%s reason=%s", lane.log.id, failed)
                lane.log.release()

    def _grow(self, size: int) -> None:
        self.size += size
        self.is_full = self.size >= self._max_bytes
        self._on_size(size)

    def _start(self, lane: Lane) -> None:
        # An empty context: whoever wrote the change has one that holds a Chainlit session.
        lane.task = asyncio.get_running_loop().create_task(
            self._run(lane), name="forebay-lane", context=contextvars.Context()
        )
        lane.task.add_done_callback(_report_end)

    async def _run(self, lane: Lane) -> None:
        replaying = self._replays[lane.key]
        while lane.changes:
            written = await self._advance(lane, replaying)
            self._grow(-lane.passed(replaying.read_seq))
            if not written:
                await lane.appended()
        await self._end(lane)

    async def _advance(self, lane: Lane, replaying: Replay) -> int:
        while True:
            try:
                written = await replaying.advance(_BATCH_BYTES, late=lambda: True)
            except JournalError as error:
                lane.note(DatabaseError(str(error)))
                logger.error("lane not read lane=%s reason=%s", lane.log.id, error)
                await asyncio.sleep(_SLOW_BACKOFF[0])
            else:
                lane.note(None)
                return written

    async def _end(self, lane: Lane) -> None:
        del self.open[lane.key]
        cursor = self._replays.pop(lane.key).cursor
        self._rows = {row: key for row, key in self._rows.items() if key != lane.key}
        self._threads = {each.thread_id: key for key, each in self.open.items() if each.thread_id is not None}
        self._on_change()
        logger.warning("thread goes on lane=%s changes=%d", lane.log.id, lane.last_seq)
        if isinstance(lane.log, SideJournal):
            try:
                await self._kept.add(lane.log, cursor)
            except JournalError as error:  # whoever adopts it finds that the database has it
                logger.error("lane left behind lane=%s reason=%s", lane.log.id, error)
                lane.log.release()

    async def settle(self, thread_id: str) -> None:
        """Return when what is parked of the thread is written. Raises ThreadHeldUp while it can't be."""
        for lane in [lane for lane in self.open.values() if lane.thread_id == thread_id]:
            await lane.settle()

    async def settle_step(self, step_id: str) -> None:
        """The same of one step."""
        if (key := self._rows.get(("steps", step_id))) is not None:
            await self.open[key].settle()

    async def written(self) -> None:
        """Return when everything that is parked now is written, however long that takes."""
        loop = asyncio.get_running_loop()
        for done in [lane.written(loop) for lane in self.open.values() if lane.changes]:
            await done

    async def tried(self) -> None:
        """Return when everything that is parked now is written, or was not at the last try."""
        for lane in list(self.open.values()):
            with contextlib.suppress(ThreadHeldUp):
                await lane.settle()

    def rebind(self) -> None:
        """Go on in the loop that runs now; the one before has ended."""
        self._turn = asyncio.Semaphore()
        for lane in self.open.values():
            lane.rebind()
            self._start(lane)

    async def turn(self, attempt: Callable[[], Any]) -> Any:
        """Have a lane's attempt made when no other one's is."""
        async with self._turn:
            return await attempt()

    async def close(self, error: Exception) -> list[Any]:
        """Leave what is parked to the next process, where it is on the disk; who waited for it, but readers."""
        tasks = [lane.task for lane in self.open.values() if lane.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        waiting = []
        for lane in self.open.values():
            waiting += lane.end(error)
            if isinstance(lane.log, SideJournal):
                lane.log.release()
        return waiting


class _InTurn:
    """The store as a lane has it."""

    def __init__(self, store: Database, lanes: Lanes) -> None:
        self._store = store
        self._lanes = lanes

    async def apply(
        self,
        changes: Sequence[Change],
        checkpoint: Checkpoint | None,
        *,
        late: bool = False,
        share: float = 1.0,
    ) -> frozenset[str | LeftOut]:
        """See `batch_writer.Applies`."""

        async def attempt() -> frozenset[str | LeftOut]:
            return await self._store.apply(changes, checkpoint, late=late, share=share, apart=True)

        found: frozenset[str | LeftOut] = await self._lanes.turn(attempt)
        return found

    async def position(self, journal_id: str) -> Position:
        """See `batch_writer.Applies`."""
        return await self._store.position(journal_id)

    @property
    def has_writer(self) -> bool:
        """See `batch_writer.Applies`."""
        return self._store.has_writer


def _release(log: Log) -> None:
    if isinstance(log, SideJournal):
        log.release()


def _step_of(change: Change) -> str:
    """The step that a feedback is on, which is where its thread is said if it says none."""
    return "" if isinstance(change, Delete) or change.table != "feedbacks" else change.row["forId"]


def _rows_of(change: Change) -> list[tuple[str, str]]:
    """The row itself, and what it hangs on."""
    row = {} if isinstance(change, Delete) else change.row
    return [(change.table, change.key), *(("", row[name]) for name in _NAMES if row.get(name))]


def _reason_of(error: DatabaseError | None) -> str:
    if error is None:
        return "answer"
    known = {error_codes.LOCKED: "lock", error_codes.CANCELLED: "time"}
    return known.get(error.sqlstate or "", "answer")


def _report_end(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.critical(
            "lane ended, its thread is not written any more reason=%s", type(error).__name__, exc_info=error
        )
