"""The journal: a process's changes on disk until the database has them.

One log a process, written by one thread. All changes that come within a moment, and while a commit runs, go
into the next one as one group, so the disk is synced once a group, not once a change.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import queue
import tempfile
import threading
import time
import uuid
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typing_extensions import override

from forebay.errors import JournalError
from forebay.journal.group import Group, Run, tell
from forebay.journal.log import Log
from forebay.journal.log_format import FORMAT, About, make_folder
from forebay.journal.log_reader import Reader
from forebay.journal.orphan import NO_LIMIT, Record, read_records, reason_of
from forebay.journal.ownership import JOURNAL, LOCK, OWNER, PROGRESS, beginning, remove_files
from forebay.journal.retention import Retention
from forebay.journal.shared_progress import Progress
from forebay.model.changes import Change
from forebay.primitives import posix

logger = logging.getLogger("forebay.journal")

_CHUNK_BYTES = 64 * 1024
# A group leaves with so many changes, or when its first has waited for so many seconds. To wake a thread and to
# sync a disk costs as much CPU as a dozen changes do otherwise, and nobody sees two milliseconds.
_MANY = 64
_LINGER = 0.002


@dataclass(slots=True)
class _Read:
    after_seq: int
    max_bytes: int
    done: asyncio.Future[list[Record]]


@dataclass(slots=True)
class _Name:
    database_id: str


_Work = Group | _Read | _Name


class Journal:
    """The journal of this process, in a log of its own in `folder`, for the database at `location`.

    `database_id` is that database's own id; while it is None, `location` is all that tells which one it is.
    `external`: another process writes it to the database. What the database has is kept for `keep` seconds, at
    most `keep_bytes` of it. `size` is what the database has not, `kept_size` what is kept, `unsynced` what the disk
    has not answered for, in bytes. `on_commit` is called in the journal's thread with the seconds that a commit took;
    in the event loop, `on_failure` with the `seq` of a change that could not be written, its row's key, who waits for
    it, and why, and `on_answer` after each group. Raises JournalError when the folder can't be used. Its methods are
    called in one event loop.
    """

    def __init__(
        self,
        folder: Path,
        loop: asyncio.AbstractEventLoop,
        location: str = "",
        *,
        database_id: str | None = None,
        external: bool = False,
        keep: float = 0.0,
        keep_bytes: int = 0,
        on_commit: Callable[[float], None] | None = None,
        on_failure: Callable[[int, str, asyncio.Future[None] | None, JournalError], None] | None = None,
        on_answer: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.id = uuid.uuid4().hex
        self.database_id = database_id
        self.size = 0
        self.kept_size = 0
        self.unsynced = 0
        self.durable_seq = 0
        self.path = folder / f"{self.id}{JOURNAL}"
        self._loop = loop
        self._lock_file, self.progress, self._log = _create(
            folder, self.path, location, database_id, external=external
        )
        self._reader = Reader(self.path)
        self._on_commit = on_commit
        self._on_failure = on_failure
        self._on_answer = on_answer
        self._clock = clock
        self._asked_at = 0.0  # when the thread got what it has
        self._group = Group()  # what gathers
        self._committing = False
        self._in_flight: list[Group] = []  # what the thread has, or has done and not told yet
        self._will_seal = False
        self._work: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        # What the database has not, and what it has and is kept: last seq and bytes of each chunk.
        self._live: deque[tuple[int, int]] = deque()
        self._kept: deque[tuple[int, int]] = deque()
        self._applied_seq = 0
        self._retention = Retention(self._log, keep, keep_bytes, clock)
        self._thread = threading.Thread(target=self._run, name="forebay-journal", daemon=True)
        self._thread.start()
        _held.add(self)

    @override
    def __repr__(self) -> str:
        return f"<Journal {self.id}, {self.size} bytes, durable up to {self.durable_seq}>"

    def append(self, seq: int, change: Change) -> asyncio.Future[None]:
        """Add a change; the future is done when it is on disk, or see `written`. They come in the order of `seq`."""
        done = self._loop.create_future()
        gathered = self._group.add(seq, change, done)
        self.size += change.size
        self.unsynced += change.size
        if not self._committing and (not self._will_seal or gathered == _MANY):
            self._seal_soon(gathered)
        return done

    def _seal_soon(self, gathered: int) -> None:
        self._will_seal = True
        if gathered < _MANY:
            self._loop.call_later(_LINGER, self._seal)
        else:  # not at once: whoever runs in this turn of the loop joins the group
            self._loop.call_soon(self._seal)

    def _seal(self) -> None:
        """Hand what has gathered to the thread, unless it is busy; then it takes it next."""
        self._will_seal = False
        if self._committing or not self._group:
            return
        self._group.encode()
        self._committing = True
        self._asked_at = self._clock()
        self._in_flight.append(self._group)
        self._work.put(self._group)
        self._group = Group()

    @property
    def is_quiet(self) -> bool:
        """Whether everything that was appended is on the disk, or was refused."""
        return not self._committing and not self._group

    @property
    def stalled_for(self) -> float:
        """How long the disk has not answered, in seconds."""
        return self._clock() - self._asked_at if self._committing else 0.0

    def written(self, applied_seq: int) -> None:
        """The database has everything up to here: whoever waits for that need not wait for this disk any more."""
        if applied_seq > self.durable_seq:
            for group in (*self._in_flight, self._group):
                group.written(applied_seq)

    def rebind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Answer in another event loop from now on; the one before is closed, and nobody waits in it."""
        # In this order: the thread looks at the loop after a group is finished, see `_tell_loop`.
        self._loop = loop
        self._will_seal = False
        for group in (*self._in_flight, self._group):
            group.forget_waiters()
        for group in [group for group in self._in_flight if group.is_finished]:
            self._committed(group)
        self._seal()

    def trim(self, applied_seq: int) -> None:
        """The database has everything up to here; that is kept for a while, then taken off the disk.

        A lower number than before says that the database has gone back. What is behind it and still there,
        see `kept_seq`, is not taken off any more; whoever reads from there should look at `kept_seq` afterwards.
        """
        if applied_seq < self._applied_seq:
            self._take_back(applied_seq)
        self._applied_seq = applied_seq
        while self._live and self._live[0][0] <= applied_seq:
            seq, size = self._live.popleft()
            self.size -= size
            self._keep(seq, size)
        self._forget_removed()

    @property
    def kept_seq(self) -> int:
        """Everything behind it can still be read back, whether the database has it or not."""
        return self._retention.kept_seq

    def _take_back(self, applied_seq: int) -> None:
        self._retention.went_back = True
        while self._kept and self._kept[-1][0] > applied_seq:
            seq, size = self._kept.pop()
            self.kept_size -= size
            self._live.appendleft((seq, size))
            self.size += size

    def _keep(self, seq: int, size: int) -> None:
        self.kept_size += size
        _add(self._kept, seq, size)

    def _forget_removed(self) -> None:
        kept_seq = self._retention.kept_seq
        while self._kept and self._kept[0][0] <= kept_seq:
            self.kept_size -= self._kept.popleft()[1]

    def name(self, database_id: str) -> None:
        """The database has told its own id."""
        self.database_id = database_id
        self._work.put(_Name(database_id))

    async def read(self, after_seq: int, max_bytes: int) -> list[Record]:
        """The next changes behind `after_seq` that are on disk and intact, at least one group, about `max_bytes`.

        Raises JournalError where the disk does not give them back.
        """
        done: asyncio.Future[list[Record]] = self._loop.create_future()
        self._work.put(_Read(after_seq, max_bytes, done))
        return await done

    async def synced(self) -> None:
        """Return when what gathers now is on the disk, or could not be put there."""
        waiter = self._group.waiters[-1] if self._group else None
        if waiter is not None:
            await asyncio.wait([waiter])
        else:
            await asyncio.sleep(0)

    async def close(self, *, remove: bool, patience: float | None = None) -> None:
        """Commit what was appended and let go; `remove` the files when the database has them whole.

        A disk that has not answered after `patience` seconds is left alone, with what it has.
        """
        self._committing = False
        self._seal()
        self._work.put(None)
        await asyncio.to_thread(self._thread.join, patience)
        if self._thread.is_alive():
            logger.error("journal left behind path=%s reason=its disk does not answer", self.path)
            return
        if self.progress is not None:
            self.progress.close()
        if remove:
            self._remove()
        self._lock_file.close()

    def _remove(self) -> None:
        try:
            remove_files(self.path)
        except OSError as error:  # whoever adopts it finds that the database has it
            logger.error("journal left behind path=%s reason=%s", self.path, reason_of(error))

    def forked(self) -> None:
        """In a forked child: let go of what is the parent's, without a word to it."""
        self._lock_file.close()  # the parent holds the lock on

    # ---- in the thread

    def _run(self) -> None:
        with contextlib.closing(self._log):
            while (work := self._next_work()) is not None:
                if isinstance(work, Group):
                    self._commit(work)
                elif isinstance(work, _Read):
                    self._answer(work)
                else:
                    self._log.name(work.database_id)

    def _next_work(self) -> _Work | None:
        while True:
            self._retention.look(self._applied_seq)
            with contextlib.suppress(queue.Empty):
                return self._work.get(timeout=self._retention.wait)

    def _commit(self, group: Group) -> None:
        started = time.monotonic()
        for run in group.runs:
            run.fault = self._put(run)
        if self._on_commit is not None and all(run.fault is None for run in group.runs):
            self._on_commit(time.monotonic() - started)
        group.is_finished = True
        self._tell_loop(group)

    def _put(self, run: Run) -> JournalError | None:
        """Why it can't be put on the disk."""
        try:
            self._log.append(run.first_seq, run.last_seq, run.lines, run.checksum)
        except OSError as failed:
            return _explain(failed)
        except Exception as failed:  # whatever it is, its callers must not wait for ever
            return JournalError(f"the changes can't be journaled ({type(failed).__name__})")
        return None

    def _tell_loop(self, group: Group) -> None:
        """Where the loop is closed, nobody waits any more, and `rebind` takes up what is finished."""
        loop: asyncio.AbstractEventLoop | None = None
        while loop is not self._loop:
            loop = self._loop
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._committed, group)
                return

    def _answer(self, work: _Read) -> None:
        records: list[Record] = []
        error: JournalError | None = None
        try:
            records = read_records(self._reader, work.after_seq, NO_LIMIT, work.max_bytes)
        except JournalError as failed:
            error = failed

        def tell() -> None:
            if work.done.done():
                return
            if error is not None:
                work.done.set_exception(error)
            else:
                work.done.set_result(records)

        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(tell)

    # ---- back in the event loop

    def _committed(self, group: Group) -> None:
        if group not in self._in_flight:  # `rebind` was faster
            return
        self._in_flight.remove(group)
        self._committing = bool(self._in_flight)
        self.size -= group.estimate
        self.unsynced -= group.estimate
        for run in group.runs:
            if run.fault is None:
                self._stored(run)
        self._tell_failed(group)
        group.finished()
        self._on_answer()
        if self._group and not self._committing:
            self._seal_soon(len(self._group))

    def _stored(self, run: Run) -> None:
        self.durable_seq = run.last_seq
        if self.progress is not None:
            self.progress.durable = run.last_seq
        self.size += run.size
        self._note(run.last_seq, run.size)

    def _tell_failed(self, group: Group) -> None:
        """Whoever waits for what is not on the disk is the pipeline's to tell, which may have it elsewhere."""
        if not group.unfit and all(run.fault is None for run in group.runs):
            return
        failed = [*group.take_failed()]
        for reason in sorted({str(fault) for _, _, fault, _ in failed}):
            logger.error("journal failed reason=%s", reason)
        for seq, key, fault, waiter in failed:
            if self._on_failure is not None and seq not in group.unfit:
                self._on_failure(seq, key, waiter, fault)
            else:
                tell(waiter, fault)

    def _note(self, seq: int, size: int) -> None:
        """Remember what is to be trimmed, in chunks: an entry for each group would fill the memory in an outage."""
        if seq <= self._applied_seq:
            self.size -= size
            self._keep(seq, size)
        else:
            _add(self._live, seq, size)


def _add(chunks: deque[tuple[int, int]], seq: int, size: int) -> None:
    if chunks and chunks[-1][1] < _CHUNK_BYTES:
        size += chunks.pop()[1]
    chunks.append((seq, size))


def _create(
    folder: Path, path: Path, location: str, database_id: str | None, *, external: bool
) -> tuple[Any, Progress | None, Log]:
    try:
        make_folder(folder)
        with beginning(path) as begun:
            # The log last: whoever finds it looks for the others.
            lock_file = begun.enter_context(posix.lock_file(path.with_suffix(OWNER if external else LOCK)))
            progress = None
            if external:
                progress = begun.enter_context(
                    contextlib.closing(Progress(path.with_suffix(PROGRESS), create=True))
                )
            return lock_file, progress, Log(path, About(FORMAT, path.stem, location), database_id)
    except OSError as error:
        raise _unusable(folder, error) from None


def check_folder(folder: Path, own: Path | None) -> None:
    """Raises JournalError where no journal can be written, or where `own`, this process's, is there no more."""
    try:
        if own is not None and not own.is_dir():
            raise FileNotFoundError(errno.ENOENT, "this process's journal was removed")
        make_folder(folder)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _unusable(folder, error) from None


def _unusable(folder: Path, error: OSError) -> JournalError:
    return JournalError(
        f"the journal can't be written ({reason_of(error)}); set FOREBAY_JOURNAL_DIR to a folder on a local disk that"
        " this process may write to",
        location=str(folder),
    )


def _explain(error: OSError) -> JournalError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return JournalError("the disk that holds the journal is full; make room, or set FOREBAY_JOURNAL_DIR")
    return JournalError(
        f"the journal can't be written ({reason_of(error)}); see the disk that holds FOREBAY_JOURNAL_DIR"
    )


_held: weakref.WeakSet[Journal] = weakref.WeakSet()


def _after_fork() -> None:
    for journal in list(_held):
        journal.forked()


posix.after_fork(_after_fork)
