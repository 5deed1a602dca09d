"""The journal: a process's changes on disk until the database has them.

One SQLite file a process, in WAL mode with `synchronous=FULL`, written by one thread. All changes that come
while a commit runs go into the next one as one row, so the disk is synced once a group, not once a change.

Files of one journal, by their suffix: `.journal`, the changes; `.lock`, held by whoever writes them to the
database; and where that is not the process that appends, `.owner`, held by the latter, and `.progress`.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import queue
import sqlite3
import threading
import time
import uuid
import weakref
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from forebay import changes
from forebay.changes import Change
from forebay.errors import JournalError
from forebay.progress import Progress

logger = logging.getLogger("forebay.journal")

FORMAT = 2
_JOURNAL, _LOCK, _OWNER, _PROGRESS = ".journal", ".lock", ".owner", ".progress"
_CHUNK_BYTES = 64 * 1024
# A group is a row of a few hundred kilobytes at most; on SQLite's own 4 KiB pages it costs twice the time.
_PAGE_BYTES = 32 * 1024
_CHECKPOINT_PAGES = 512
_TRIM_INTERVAL = 0.1  # seconds; what the database has may stay on disk so much longer
_TABLES = """
CREATE TABLE about (format INTEGER NOT NULL, journal_id TEXT NOT NULL, database TEXT NOT NULL);
CREATE TABLE changes (
    first_seq INTEGER PRIMARY KEY, last_seq INTEGER NOT NULL, crc INTEGER NOT NULL, body BLOB NOT NULL);
"""
# The group that holds `after_seq + 1`, and those behind it.
_BEHIND = """
SELECT first_seq, last_seq, crc, body FROM changes
WHERE first_seq >= coalesce((SELECT max(first_seq) FROM changes WHERE first_seq <= :after_seq + 1), 0)
AND last_seq > :after_seq ORDER BY first_seq"""

Record = tuple[int, Change]


@dataclass(slots=True)
class _Group:
    """Changes that are committed together, and the futures of those who wait for it."""

    first_seq: int
    last_seq: int
    changes: list[Change]
    waiters: list[asyncio.Future[None]]
    estimate: int


@dataclass(slots=True)
class _Read:
    after_seq: int
    max_bytes: int
    done: asyncio.Future[list[Record]]


class Journal:
    """The journal of this process, in a file of its own in `folder`, for the database at `location`.

    `external`: another process writes it to the database. `on_commit` is called in the journal's thread with
    the seconds that a commit took, `on_failure` in the event loop with the first and last `seq` of changes that
    could not be written. Raises JournalError when the folder or the file can't be used. Its methods
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
        self._lock_file, self._connection = _create(folder, self.path, location, external=external)
        self.progress = Progress(self.path.with_suffix(_PROGRESS), create=True) if external else None
        self._on_commit = on_commit
        self._on_failure = on_failure
        self._changes: list[Change] = []
        self._waiters: list[asyncio.Future[None]] = []
        self._last_seq = 0
        self._estimate = 0
        self._committing = False
        self._will_seal = False
        self._work: queue.SimpleQueue[_Group | _Read | None] = queue.SimpleQueue()
        self._live: deque[tuple[int, int]] = deque()  # what is not trimmed yet: last seq, bytes
        self._applied_seq = 0
        self._trimmed_seq = 0
        self._trimmed_at = 0.0
        self._thread = threading.Thread(target=self._run, name="forebay-journal", daemon=True)
        self._thread.start()
        _held.add(self)

    def __repr__(self) -> str:
        return f"<Journal {self.id}, {self.size} bytes, durable up to {self.durable_seq}>"

    def append(self, seq: int, change: Change) -> asyncio.Future[None]:
        """Add a change; the future is done when it is on disk. Changes come in the order of `seq`."""
        done = self._loop.create_future()
        self._changes.append(change)
        self._waiters.append(done)
        self._last_seq = seq
        self._estimate += change.size
        self.size += change.size
        if not self._will_seal and not self._committing:
            # Not at once: whoever runs in this turn of the loop joins the group.
            self._will_seal = True
            self._loop.call_soon(self._seal)
        return done

    def _seal(self) -> None:
        """Hand what has gathered to the thread, unless it is busy; then it takes it next."""
        self._will_seal = False
        if self._committing or not self._changes:
            return
        first_seq = self._last_seq - len(self._changes) + 1
        group = _Group(first_seq, self._last_seq, self._changes, self._waiters, self._estimate)
        self._changes, self._waiters, self._estimate = [], [], 0
        self._committing = True
        self._work.put(group)

    @property
    def is_quiet(self) -> bool:
        """Whether everything that was appended is on the disk, or was refused."""
        return not self._committing and not self._changes

    def rebind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Answer in another event loop from now on; the one before is closed, and nobody waits in it."""
        self._loop = loop
        self._waiters = []
        self._committing = self._will_seal = False
        self._seal()

    def trim(self, applied_seq: int) -> None:
        """The database has everything up to here; one of the next commits takes it off the disk."""
        self._applied_seq = applied_seq
        while self._live and self._live[0][0] <= applied_seq:
            self.size -= self._live.popleft()[1]

    async def read(self, after_seq: int, max_bytes: int) -> list[Record]:
        """The next changes behind `after_seq` that are on disk, at least one group, about `max_bytes`."""
        done: asyncio.Future[list[Record]] = self._loop.create_future()
        self._work.put(_Read(after_seq, max_bytes, done))
        return await done

    async def synced(self) -> None:
        """Return when what gathers now is on the disk, or could not be put there."""
        if self._waiters:
            await asyncio.wait([self._waiters[-1]])
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
        _parents.append(self._connection)  # closing it would touch the parent's file

    # ---- in the thread

    def _run(self) -> None:
        with contextlib.closing(self._connection) as connection:
            while (work := self._work.get()) is not None:
                if isinstance(work, _Group):
                    self._commit(connection, work)
                else:
                    self._answer(work, partial(_read, connection, work.after_seq, work.max_bytes))

    def _commit(self, connection: sqlite3.Connection, group: _Group) -> None:
        error: JournalError | None = None
        started = time.monotonic()
        size = group.estimate
        try:
            body = changes.encode(group.changes)
            size = len(body)
            self._insert(connection, (group.first_seq, group.last_seq, zlib.crc32(body), body), started)
        except sqlite3.Error as failed:
            error = _explain(failed)
        if error is None and self._on_commit is not None:
            self._on_commit(time.monotonic() - started)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._committed, group, size, error)

    def _insert(self, connection: sqlite3.Connection, row: tuple[Any, ...], now: float) -> None:
        """One statement is a transaction by itself, and each costs the event loop a turn at the interpreter's lock."""
        insert = "INSERT INTO changes VALUES (?, ?, ?, ?)"
        if self._applied_seq == self._trimmed_seq or now - self._trimmed_at < _TRIM_INTERVAL:
            connection.execute(insert, row)
            return
        connection.execute("BEGIN")
        try:
            connection.execute(insert, row)
            applied_seq = self._applied_seq
            connection.execute("DELETE FROM changes WHERE last_seq <= ?", (applied_seq,))
            connection.execute("COMMIT")
        except sqlite3.Error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        self._trimmed_seq, self._trimmed_at = applied_seq, now

    def _answer(self, work: _Read, act: Callable[[], list[Record]]) -> None:
        records: list[Record] = []
        error: JournalError | None = None
        try:
            records = act()
        except sqlite3.Error as failed:
            error = _explain(failed)

        def tell() -> None:
            if not work.done.done():
                work.done.set_exception(error) if error else work.done.set_result(records)

        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(tell)

    # ---- back in the event loop

    def _committed(self, group: _Group, size: int, error: JournalError | None) -> None:
        self._committing = False
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
        self._seal()

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
        self.damaged = False
        self.progress: Progress | None = None
        self._lock_file = lock_file
        self._connection: sqlite3.Connection | None = None
        if path.with_suffix(_PROGRESS).exists() and owned:
            self.progress = Progress(path.with_suffix(_PROGRESS))

    def __repr__(self) -> str:
        return f"<Orphan {self.id}>"

    @property
    def owned(self) -> bool:
        """Whether a process still appends to it."""
        return _is_held(self.path.with_suffix(_OWNER))

    @property
    def exists(self) -> bool:
        """False when its owner has removed it, as the database had it whole."""
        return self.path.exists()

    def read(self, after_seq: int, max_bytes: int) -> list[Record]:
        """As `Journal.read`, of what is intact; `damaged` tells whether something was not.

        Raises JournalError where the file can't be read at all.
        """
        records: list[Record] = []
        size = 0
        try:
            for first_seq, last_seq, crc, body in self._rows(after_seq):
                found = _intact(first_seq, last_seq, crc, body)
                self.damaged = self.damaged or not found
                records += [record for record in found if record[0] > after_seq]
                size += len(body) if found else 0
                if size >= max_bytes:
                    break
        except sqlite3.Error as error:
            self.damaged = True
            if not records:
                raise _explain(error) from None
        return records

    def _rows(self, after_seq: int) -> Iterator[tuple[int, int, int, bytes]]:
        """The groups in order. Behind a page that can't be read, those that can be reached from the end."""
        if self._connection is None:
            self._connection = _connect(self.path)
        seen = after_seq
        try:
            for row in self._connection.execute(_BEHIND, {"after_seq": after_seq}):
                yield row
                seen = row[1]
            return
        except sqlite3.DatabaseError:
            self.damaged = True
        keys: list[int] = []
        with contextlib.suppress(sqlite3.DatabaseError):
            select = "SELECT first_seq FROM changes WHERE first_seq > ? ORDER BY first_seq DESC"
            keys.extend(key for (key,) in self._connection.execute(select, (seen,)))
        for key in reversed(keys):
            with contextlib.suppress(sqlite3.DatabaseError):
                yield self._connection.execute(
                    "SELECT first_seq, last_seq, crc, body FROM changes WHERE first_seq = ?", (key,)
                ).fetchone()

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
        if self._connection is not None:
            self._connection.close()
            self._connection = None
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
    """Whether the journal can be read by this release and is for the database. One that can't be read at all is."""
    try:
        with contextlib.closing(_connect(path)) as connection:
            found = connection.execute("SELECT * FROM about").fetchone()
    except sqlite3.Error:
        return True
    if found is None:
        return True
    if found[0] != FORMAT:
        reason = "another release of forebay wrote it"
    elif location is not None and found[2] not in ("", location):
        reason = f"it is for {found[2]}"
    else:
        return True
    if path not in _left_alone:
        _left_alone.add(path)
        logger.error("journal left alone path=%s reason=%s", path, reason)
    return False


def _create(folder: Path, path: Path, location: str, *, external: bool) -> tuple[Any, sqlite3.Connection]:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock_file = _lock(path.with_suffix(_OWNER if external else _LOCK))
        # Under another name until it is whole: an adopter that comes in between would take it for damaged.
        fresh = path.with_suffix(".new")
        os.close(os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        with contextlib.closing(_connect(fresh)) as connection:
            connection.executescript(_TABLES)
            connection.execute("INSERT INTO about VALUES (?, ?, ?)", (FORMAT, path.stem, location))
        fresh.rename(path)
        _sync_folder(folder)
        connection = _connect(path)
    except (OSError, sqlite3.Error) as error:
        raise JournalError(
            f"the journal can't be written in {folder} ({_reason(error)}); set FOREBAY_JOURNAL_DIR to a folder on a"
            " local disk that this process may write to"
        ) from None
    return lock_file, connection


def _sync_folder(folder: Path) -> None:
    """Or a crash of the machine could forget the file's name."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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


def _connect(path: Path) -> sqlite3.Connection:
    uri = f"{path.absolute().as_uri()}?mode=rw"
    connection = sqlite3.connect(uri, uri=True, check_same_thread=False, isolation_level=None)
    connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")  # of a new file
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
    return connection


def _intact(first_seq: int, last_seq: int, crc: int, body: bytes) -> list[Record]:
    """A group's changes; none where it is not what was written. SQLite checks its log but not its pages."""
    if zlib.crc32(body) != crc:
        return []
    return list(zip(range(first_seq, last_seq + 1), changes.decode(body), strict=True))


def _read(connection: sqlite3.Connection, after_seq: int, max_bytes: int) -> list[Record]:
    records: list[Record] = []
    size = 0
    for first_seq, last_seq, crc, body in connection.execute(_BEHIND, {"after_seq": after_seq}):
        found = _intact(first_seq, last_seq, crc, body)
        if not found:
            raise sqlite3.DatabaseError("checksum")
        records += [record for record in found if record[0] > after_seq]
        size += len(body)
        if size >= max_bytes:
            break
    return records


def _remove(path: Path) -> None:
    # The journal first: what is left of the others then belongs to nothing.
    for suffix in (_JOURNAL, f"{_JOURNAL}-wal", f"{_JOURNAL}-shm", _PROGRESS, _OWNER, _LOCK):
        path.with_suffix(suffix).unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return getattr(error, "sqlite_errorname", None) or type(error).__name__


def _explain(error: sqlite3.Error) -> JournalError:
    reason = _reason(error)
    if reason == "SQLITE_FULL":
        return JournalError("the disk that holds the journal is full; make room, or set FOREBAY_JOURNAL_DIR")
    return JournalError(f"the journal can't be used ({reason}); see the disk that holds FOREBAY_JOURNAL_DIR")


def _tell(waiter: asyncio.Future[None], error: JournalError | None) -> None:
    if waiter.done():  # its caller was cancelled
        return
    if error is None:
        waiter.set_result(None)
    else:
        waiter.set_exception(error)
        waiter.exception()  # or it would be reported where the caller has gone


_held: weakref.WeakSet[Journal] = weakref.WeakSet()
_parents: list[Any] = []


def _after_fork() -> None:
    for journal in list(_held):
        journal.forked()


os.register_at_fork(after_in_child=_after_fork)
