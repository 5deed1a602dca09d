"""Where refused rows go: to the dead letters, or, while those take none, they wait here and the others go on.

What waits is in memory, within bounds, and stays on the disk meanwhile: in a journal of its own, or, where that can't
be written either, in the journal that it came from, whose checkpoint is held. So whoever adopts that finds it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import anyio
from typing_extensions import override

from forebay.errors import JournalError, RowError
from forebay.journal.dead_letters import DeadLetters, Unfit, encoded
from forebay.journal.orphan import let_go
from forebay.journal.side_journal import SideJournal
from forebay.model.changes import Change
from forebay.pipeline.batch_writer import reason_of
from forebay.pipeline.cursor import Cursor
from forebay.primitives.backoff import Backoff
from forebay.telemetry.counters import Counts

logger = logging.getLogger("forebay.writer")

MOST_BYTES = 16 * 1024 * 1024  # that wait
_BACKOFF = (0.5, 30.0)  # seconds
_DISK_PATIENCE = 10.0  # seconds that a disk may take to answer
_REMINDER = 30.0  # seconds between two log lines while something waits


class Database(Protocol):
    """Which database has refused what is kept."""

    @property
    def label(self) -> str:
        """Where it is, without a password."""

    @property
    def database_id(self) -> str | None:
        """Its own id, as far as that is known."""


@dataclass(slots=True, eq=False)
class _Log:
    """A journal of what waits: how many of those in it still do."""

    journal: SideJournal
    last_seq: int = 0
    size: int = 0
    waiting: int = 0


@dataclass(slots=True, eq=False)
class _Waiting:
    """A refused change. `cursor` is held for its sake until it is in `log`."""

    change: Change
    error: RowError
    cursor: Cursor | None
    log: _Log | None = None


class Letterbox:
    """A process's refused rows on their way to the dead letters.

    `make_log` makes a journal for what waits, None where nothing is journaled: then it waits in memory alone. `failure`
    is why something waits, None while nothing does. `on_unsafe` is told of a row that its journal alone may have, and
    of whose that is: who waits to hear that it is safe has to be told otherwise.
    """

    def __init__(
        self,
        letters: DeadLetters,
        database: Database,
        counts: Counts,
        clock: Callable[[], float],
        *,
        make_log: Callable[[], SideJournal] | None,
        on_unsafe: Callable[[Change, RowError, Cursor], None] = lambda _change, _error, _cursor: None,
    ) -> None:
        self.failure: JournalError | None = None
        self.size = 0
        self._letters = letters
        self._database = database
        self._counts = counts
        self._clock = clock
        self._make_log = make_log
        self._on_unsafe = on_unsafe
        self._waiting: list[_Waiting] = []
        self._log: _Log | None = None  # that is appended to
        self._trying: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._reminded: float | None = None

    @override
    def __repr__(self) -> str:
        return f"<Letterbox {self.changes} waiting, {self.size} bytes>"

    @property
    def changes(self) -> int:
        """How many wait."""
        return len(self._waiting)

    @property
    def warning(self) -> str | None:
        """What somebody should look at, None while nothing waits."""
        return f"{self.changes} refused rows wait: {self.failure}" if self.changes else None

    async def keep(self, change: Change, error: RowError, cursor: Cursor | None) -> bool:
        """See `batch_writer.Keep`. `cursor`: of the journal that the change is in."""
        if not self._waiting:
            try:
                await self._in_time(change, error)
            except Unfit:
                raise
            except JournalError as failed:
                self.failure = failed
            else:
                return True
        encoded(change)
        self._let_wait(change, error, cursor if self._make_log is not None else None)
        return False

    async def _in_time(self, change: Change, error: RowError) -> None:
        """A disk that does not answer holds up a thread, not the writer; what it takes later is the same letter."""
        if self._trying is not None and not self._trying.done():
            raise _no_answer()
        trying = self._trying = asyncio.ensure_future(asyncio.to_thread(self._keep, change, error))
        trying.add_done_callback(lambda done: None if done.cancelled() else done.exception())
        done, _ = await asyncio.wait([trying], timeout=_DISK_PATIENCE)
        if not done:
            raise _no_answer()
        trying.result()

    def _keep(self, change: Change, error: RowError) -> None:
        self._letters.keep(self._database.label, change, error, self._database.database_id)

    async def count(self) -> None:
        """Look how many dead letters lie in the folder; where that can't be told, it is left as it was."""
        with contextlib.suppress(JournalError):
            pile = await asyncio.to_thread(self._letters.pile)
            self._counts.letters, self._counts.letters_size = pile.letters, pile.size

    def _let_wait(self, change: Change, error: RowError, cursor: Cursor | None) -> None:
        assert self.failure is not None
        if self._waiting and self.size + change.size > MOST_BYTES:
            raise JournalError(
                f"no more refused rows may wait, since they can't be kept: {self.failure}",
                location=self.failure.location,
            )
        self._waiting.append(_Waiting(change, error, cursor))
        self.size += change.size
        self._tell()
        if cursor is not None:
            cursor.hold()
            self._on_unsafe(change, error, cursor)
        self._start()

    def _tell(self) -> None:
        self._counts.letters_waiting = len(self._waiting)
        now = self._clock()
        if self.failure is None:
            self._reminded = None
        elif self._reminded is None or now - self._reminded >= _REMINDER:
            self._reminded = now
            logger.error(
                "refused rows wait rows=%d bytes=%d reason=%s", len(self._waiting), self.size, self.failure
            )

    def _start(self) -> None:
        if self._task is None or self._task.done():
            # An empty context: whoever wrote the change has one that holds a Chainlit session.
            self._task = asyncio.get_running_loop().create_task(
                self._run(), name="forebay-letters", context=contextvars.Context()
            )

    async def _run(self) -> None:
        backoff = Backoff(*_BACKOFF)
        while self._waiting:
            await self._secure()
            await asyncio.sleep(backoff.next_delay())
            if await self._retry():
                backoff.reset()

    async def _secure(self) -> None:
        """Put what waits on the disk, beside the journal that it came from, which needs not be held any more."""
        unsafe = [one for one in self._waiting if one.cursor is not None]
        if not unsafe:
            return
        try:
            log = await asyncio.to_thread(self._append, [one.change for one in unsafe])
        except JournalError:  # the journals that they came from have them still
            return
        log.waiting += len(unsafe)
        for one in unsafe:
            assert one.cursor is not None
            one.cursor.let_go()
            one.cursor, one.log = None, log

    def _append(self, added: list[Change]) -> _Log:
        assert self._make_log is not None
        if self._log is None or self._log.size > MOST_BYTES:
            self._log = _Log(self._make_log())
        log = self._log
        log.journal.append(log.last_seq + 1, added)
        log.last_seq += len(added)
        log.size += sum(change.size for change in added)
        return log

    async def _retry(self) -> bool:
        """Keep what waits, in its order, until one can't be; whether one could."""
        kept = 0
        while self._waiting:
            one = self._waiting[0]
            try:
                await self._in_time(one.change, one.error)
            except JournalError as failed:
                self.failure = failed
                self._tell()
                return kept > 0
            kept += 1
            await self._kept(one)
        self.failure = None
        self._tell()
        if self._log is not None:
            await self._end_log(self._log)
        logger.warning("refused rows kept rows=%d", kept)
        return True

    async def _kept(self, one: _Waiting) -> None:
        self._waiting.remove(one)
        self.size -= one.change.size
        self._counts.letters_waiting = len(self._waiting)
        self._counts.dead_lettered[one.change.table, reason_of(one.error)] += 1
        if one.cursor is not None:
            one.cursor.let_go()
        if one.log is not None:
            one.log.waiting -= 1
            await self._end_log(one.log)

    async def _end_log(self, log: _Log) -> None:
        if log.waiting:
            return
        if log is self._log:
            self._log = None
        try:
            await asyncio.to_thread(let_go, log.journal)
        except JournalError as failed:  # whoever adopts it has the same letters again
            logger.error("refused rows left behind journal=%s reason=%s", log.journal.id, failed)
            log.journal.release()

    def rebind(self) -> None:
        """Go on in the loop that runs now; the one before has ended."""
        self._task = self._trying = None
        if self._waiting:
            self._start()

    async def close(self) -> None:
        """Try once more; what waits still is left to the next process, where it is on the disk."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if self._waiting:
            with anyio.move_on_after(_DISK_PATIENCE):
                await self._secure()
                await self._retry()
        for log in {one.log for one in self._waiting if one.log is not None}:
            log.journal.release()
        if self._log is not None:
            await self._end_log(self._log)
            self._log = None
        if self._waiting:
            self._leave()

    def _leave(self) -> None:
        if self._make_log is not None:
            logger.error("closed with refused rows rows=%d kept_in=their journals", len(self._waiting))
            return
        self._counts.dropped["no_dead_letter"] += len(self._waiting)
        logger.error("rows lost rows=%d reason=%s", len(self._waiting), self.failure)
        self._waiting.clear()
        self.size = self._counts.letters_waiting = 0


def _no_answer() -> JournalError:
    return JournalError("the disk that holds the dead letters does not answer")
