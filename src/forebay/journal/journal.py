"""The journal: a process's changes on disk until the database has them.

One log a process, written by one thread. All changes that come within a moment, and while a commit runs, go
into the next one as one group, so the disk is synced once a group, not once a change.

What belongs to one journal, by suffix: `.journal`, the folder with the log; `.lock`, held by whoever writes it
to the database; and where that is not the process that appends, `.owner`, held by the latter, and `.progress`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import queue
import threading
import time
import uuid
import weakref
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forebay.errors import JournalError
from forebay.journal.log import FORMAT, About, Group, Log, Reader, read_about, remove
from forebay.journal.shared_progress import Progress
from forebay.model import changes
from forebay.model.changes import Change

logger = logging.getLogger("forebay.journal")

_JOURNAL, _LOCK, _OWNER, _PROGRESS = ".journal", ".lock", ".owner", ".progress"
_CHUNK_BYTES = 64 * 1024
_NO_LIMIT = 2**63
# A group leaves with so many changes, or when its first has waited for so many seconds. To wake a thread and to
# sync a disk costs as much CPU as a dozen changes do otherwise, and nobody sees two milliseconds.
_MANY = 64
_LINGER = 0.002
_ENCODED_AT_ONCE = 32

Record = tuple[int, Change]


@dataclass(slots=True)
class _Group:
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


@dataclass(slots=True)
class _Read:
    after_seq: int
    max_bytes: int
    done: asyncio.Future[list[Record]]


class _Trim:
    """Remove what the database has."""


class Journal:
    """The journal of this process, in a log of its own in `folder`, for the database at `location`.

    `external`: another process writes it to the database. `on_commit` is called in the journal's thread with
    the seconds that a commit took, `on_failure` in the event loop with the first and last `seq` of changes that
    could not be written. Raises JournalError when the folder can't be used. Its methods
    are called in one event loop.
    """

    def __init__(
        self,
        folder: Path,
        loop: asyncio.AbstractEventLoop,
        location: str = "",
        *,
        external: bool = False,
        on_commit: Callable[[float], None] | None = None,
        on_failure: Callable[[int, int], None] | None = None,
    ) -> None:
        self.id = uuid.uuid4().hex
        self.size = 0
        self.durable_seq = 0
        self.path = folder / f"{self.id}{_JOURNAL}"
        self._loop = loop
        self._lock_file, self.progress, self._log = _create(folder, self.path, location, external=external)
        self._reader = Reader(self.path)
        self._on_commit = on_commit
        self._on_failure = on_failure
        self._group = _Group()  # what gathers
        self._committing = False
        self._will_seal = False
        self._work: queue.SimpleQueue[_Group | _Read | _Trim | None] = queue.SimpleQueue()
        self._live: deque[tuple[int, int]] = deque()  # what is not trimmed yet: last seq, bytes
        self._applied_seq = 0
        self._trimming = False
        self._thread = threading.Thread(target=self._run, name="forebay-journal", daemon=True)
        self._thread.start()
        _held.add(self)

    def __repr__(self) -> str:
        return f"<Journal {self.id}, {self.size} bytes, durable up to {self.durable_seq}>"

    def append(self, seq: int, change: Change) -> asyncio.Future[None]:
        """Add a change; the future is done when it is on disk. Changes come in the order of `seq`."""
        done = self._loop.create_future()
        gathered = self._group.add(seq, change, done)
        self.size += change.size
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
        if self._committing or not self._group.last_seq:
            return
        self._group.encode()
        self._committing = True
        self._work.put(self._group)
        self._group = _Group()

    @property
    def is_quiet(self) -> bool:
        """Whether everything that was appended is on the disk, or was refused."""
        return not self._committing and not self._group.last_seq

    def rebind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Answer in another event loop from now on; the one before is closed, and nobody waits in it."""
        self._loop = loop
        self._group.waiters.clear()
        self._committing = self._will_seal = False
        self._seal()

    def trim(self, applied_seq: int) -> None:
        """The database has everything up to here; it is taken off the disk a segment at a time."""
        self._applied_seq = applied_seq
        while self._live and self._live[0][0] <= applied_seq:
            self.size -= self._live.popleft()[1]
        removable_seq = self._log.removable_seq
        if removable_seq is not None and removable_seq <= applied_seq and not self._trimming:
            self._trimming = True
            self._work.put(_Trim())

    async def read(self, after_seq: int, max_bytes: int) -> list[Record]:
        """The next changes behind `after_seq` that are on disk and intact, at least one group, about `max_bytes`."""
        done: asyncio.Future[list[Record]] = self._loop.create_future()
        self._work.put(_Read(after_seq, max_bytes, done))
        return await done

    async def synced(self) -> None:
        """Return when what gathers now is on the disk, or could not be put there."""
        if self._group.waiters:
            await asyncio.wait([self._group.waiters[-1]])
        else:
            await asyncio.sleep(0)

    async def close(self, *, remove: bool) -> None:
        """Commit what was appended and let go; `remove` the files when the database has them whole."""
        self._committing = False
        self._seal()
        self._work.put(None)
        await asyncio.to_thread(self._thread.join)
        if self.progress is not None:
            self.progress.close()
        if remove:
            _remove(self.path)
        self._lock_file.close()

    def forked(self) -> None:
        """In a forked child: let go of what is the parent's, without a word to it."""
        self._lock_file.close()  # the parent holds the lock on

    # ---- in the thread

    def _run(self) -> None:
        with contextlib.closing(self._log):
            while (work := self._work.get()) is not None:
                if isinstance(work, _Group):
                    self._commit(work)
                elif isinstance(work, _Read):
                    self._answer(work)
                else:
                    self._remove_applied()

    def _commit(self, group: _Group) -> None:
        error = group.fault
        started = time.monotonic()
        if error is None:
            try:
                self._log.append(group.first_seq, group.last_seq, group.lines, group.checksum)
            except OSError as failed:
                error = _explain(failed)
            except Exception as failed:  # whatever it is, its callers must not wait for ever
                error = JournalError(f"the changes can't be journaled ({type(failed).__name__})")
        if error is None and self._on_commit is not None:
            self._on_commit(time.monotonic() - started)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._committed, group, error)

    def _answer(self, work: _Read) -> None:
        records = _records(self._reader.read(work.after_seq, _NO_LIMIT, work.max_bytes), work.after_seq)

        def tell() -> None:
            if not work.done.done():
                work.done.set_result(records)

        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(tell)

    def _remove_applied(self) -> None:
        self._trimming = False
        with contextlib.suppress(OSError):  # it is tried again
            self._log.trim(self._applied_seq)

    # ---- back in the event loop

    def _committed(self, group: _Group, error: JournalError | None) -> None:
        self._committing = False
        size = sum(map(len, group.lines))
        if error is None:
            self.durable_seq = group.last_seq
            if self.progress is not None:
                self.progress.durable = group.last_seq
            self.size += size - group.estimate
            self._note(group.last_seq, size)
        else:
            logger.error("journal failed reason=%s", error)
            self.size -= group.estimate
            if self._on_failure is not None:
                self._on_failure(group.first_seq, group.last_seq)
        for waiter in group.waiters:
            _tell(waiter, error)
        if self._group.last_seq:
            self._seal_soon(self._group.last_seq - self._group.first_seq + 1)

    def _note(self, seq: int, size: int) -> None:
        """Remember what is to be trimmed, in chunks: an entry for each group would fill the memory in an outage."""
        if seq <= self._applied_seq:
            self.size -= size
            return
        if self._live and self._live[-1][1] < _CHUNK_BYTES:
            size += self._live.pop()[1]
        self._live.append((seq, size))


class Orphan:
    """A journal that nobody writes to the database, held by this process. See `adopt`.

    `progress` is there where its owner, that appends to it, is another process; `owned` while that one lives.
    """

    def __init__(self, path: Path, lock_file: Any, *, owned: bool = False) -> None:
        self.path = path
        self.id = path.stem
        self.progress: Progress | None = None
        self._lock_file = lock_file
        self._reader = Reader(path)
        if path.with_suffix(_PROGRESS).exists() and owned:
            self.progress = Progress(path.with_suffix(_PROGRESS))

    def __repr__(self) -> str:
        return f"<Orphan {self.id}>"

    @property
    def damaged(self) -> bool:
        """Whether something could not be read."""
        return self._reader.damaged

    @property
    def torn(self) -> bool:
        """Whether it ends within a group, which was never acknowledged, unless the file was cut."""
        return self._reader.torn

    @property
    def owned(self) -> bool:
        """Whether a process still appends to it."""
        return _is_held(self.path.with_suffix(_OWNER))

    @property
    def exists(self) -> bool:
        """False when its owner has removed it, as the database had it whole."""
        return self.path.exists()

    def read(self, after_seq: int, max_bytes: int) -> list[Record]:
        """As `Journal.read`, of what is intact; `damaged` tells whether something was not."""
        up_to_seq = self.progress.durable if self.progress is not None else _NO_LIMIT
        return _records(self._reader.read(after_seq, up_to_seq, max_bytes), after_seq)

    def remove(self) -> None:
        """The database has it whole."""
        self._disconnect()
        _remove(self.path)
        self._lock_file.close()

    def set_aside(self) -> Path:
        """Keep a damaged file where it is not adopted again."""
        self._disconnect()
        aside = self.path.with_suffix(".damaged")
        self.path.rename(aside)
        self._lock_file.close()
        return aside

    def release(self) -> None:
        """Leave it to the next who adopts it."""
        self._disconnect()
        self._lock_file.close()

    def _disconnect(self) -> None:
        if self.progress is not None:
            self.progress.close()
            self.progress = None


def adopt(
    folder: Path, location: str | None = "", *, owned: bool = False, but: Sequence[str] = ()
) -> Orphan | None:
    """Take the oldest journal in the folder that nobody writes out; two adopters never take one.

    `location`: for that database only, None for any; `owned`: also those that a living process appends to;
    `but`: not these ids. Raises OSError where the folder can't be read.
    """
    if not folder.is_dir():
        return None
    for path in sorted(folder.glob(f"*{_JOURNAL}"), key=_age):
        if path.stem in but or (not owned and _is_held(path.with_suffix(_OWNER))):
            continue
        lock_file = _lock(path.with_suffix(_LOCK))
        if lock_file is None:
            continue
        if not path.exists():  # somebody else wrote it out in between
            path.with_suffix(_LOCK).unlink(missing_ok=True)
        elif _is_for(path, location):
            return Orphan(path, lock_file, owned=owned)
        lock_file.close()
    return None


def let_go(orphan: Orphan) -> bool:
    """End with a journal whose intact changes are all written: remove it, or set a damaged one aside."""
    if orphan.damaged:
        kept_at = orphan.set_aside()
        logger.error("journal damaged kept_at=%s reason=some of its changes can't be read back", kept_at)
        return False
    if orphan.torn:
        logger.warning("journal ends within a change journal=%s; that one was not acknowledged", orphan.id)
    orphan.remove()
    return True


def journal_paths(folder: Path) -> list[Path]:
    """Every journal in the folder, the oldest first, whoever holds it."""
    return sorted(folder.glob(f"*{_JOURNAL}"), key=_age) if folder.is_dir() else []


def is_written_out(path: Path) -> bool:
    """Whether a process has taken it on itself to write the journal at `path` to the database."""
    return _is_held(path.with_suffix(_LOCK))


def is_owned(path: Path) -> bool:
    """Whether a process appends to the journal at `path` that another one is to write to the database."""
    return _is_held(path.with_suffix(_OWNER))


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # written out in between
        return 0.0


_left_alone: set[Path] = set()  # told once


def _is_for(path: Path, location: str | None) -> bool:
    """Whether the journal can be read by this release and is for the database. One that doesn't say so is."""
    about = read_about(path)
    if about is None:
        return True
    if about.format != FORMAT:
        reason = "another release of forebay wrote it"
    elif location is not None and about.database not in ("", location):
        reason = f"it is for {about.database}"
    else:
        return True
    if path not in _left_alone:
        _left_alone.add(path)
        logger.error("journal left alone path=%s reason=%s", path, reason)
    return False


def _create(folder: Path, path: Path, location: str, *, external: bool) -> tuple[Any, Progress | None, Log]:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # The log last: whoever finds it looks for the others.
        lock_file = _lock(path.with_suffix(_OWNER if external else _LOCK))
        progress = Progress(path.with_suffix(_PROGRESS), create=True) if external else None
        return lock_file, progress, Log(path, About(FORMAT, path.stem, location))
    except OSError as error:
        raise JournalError(
            f"the journal can't be written in {folder} ({_reason(error)}); set FOREBAY_JOURNAL_DIR to a folder on a"
            " local disk that this process may write to"
        ) from None


def _lock(path: Path) -> Any:
    """The lock file, held; None when another process holds it. It is removed together with its journal."""
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return os.fdopen(descriptor, "w")


def _is_held(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _records(groups: Sequence[Group], after_seq: int) -> list[Record]:
    return [
        record
        for group in groups
        for record in zip(range(group.first_seq, group.last_seq + 1), changes.decode(group.body), strict=True)
        if record[0] > after_seq
    ]


def _remove(path: Path) -> None:
    # The journal first: what is left of the others then belongs to nothing.
    remove(path)
    for suffix in (_PROGRESS, _OWNER, _LOCK):
        path.with_suffix(suffix).unlink(missing_ok=True)


def _reason(error: OSError) -> str:
    return error.strerror or type(error).__name__


def _explain(error: OSError) -> JournalError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return JournalError("the disk that holds the journal is full; make room, or set FOREBAY_JOURNAL_DIR")
    return JournalError(
        f"the journal can't be written ({_reason(error)}); see the disk that holds FOREBAY_JOURNAL_DIR"
    )


def _tell(waiter: asyncio.Future[None], error: JournalError | None) -> None:
    if waiter.done():  # its caller was cancelled
        return
    if error is None:
        waiter.set_result(None)
    else:
        waiter.set_exception(error)
        waiter.exception()  # or it would be reported where the caller has gone


_held: weakref.WeakSet[Journal] = weakref.WeakSet()


def _after_fork() -> None:
    for journal in list(_held):
        journal.forked()


os.register_at_fork(after_in_child=_after_fork)
