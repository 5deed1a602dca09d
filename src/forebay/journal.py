"""The journal: a process's changes on disk until the database has them.

One SQLite file a process, in WAL mode with `synchronous=FULL`, written by one thread. All changes that come
while a commit runs go into the next one as one row, so the disk is synced once a group, not once a change.
A file belongs to whoever holds the lock beside it; one whose owner is gone may be adopted.
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
import uuid
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from forebay import changes
from forebay.changes import Change
from forebay.errors import JournalError

logger = logging.getLogger("forebay.journal")

FORMAT = 1
_SUFFIX = ".journal"
_CHUNK_BYTES = 64 * 1024
_TABLES = """
CREATE TABLE about (format INTEGER NOT NULL, journal_id TEXT NOT NULL);
CREATE TABLE changes (
    first_seq INTEGER PRIMARY KEY, last_seq INTEGER NOT NULL, crc INTEGER NOT NULL, lines BLOB NOT NULL);
"""

Record = tuple[int, Change]


@dataclass(slots=True)
class _Group:
    """Changes that are committed together. `done` is their callers' acknowledgement."""

    done: asyncio.Future[None]
    first_seq: int
    last_seq: int = 0
    lines: list[bytes] = field(default_factory=list)


@dataclass(slots=True)
class _Read:
    after_seq: int
    max_bytes: int
    done: asyncio.Future[list[Record]]


class Journal:
    """The journal of this process, in a file of its own in `folder`.

    Raises JournalError when the folder or the file can't be used. Its methods are called in one event loop.
    """

    def __init__(self, folder: Path, loop: asyncio.AbstractEventLoop) -> None:
        self.id = uuid.uuid4().hex
        self.size = 0
        self.durable_seq = 0
        self._loop = loop
        self._pid = os.getpid()
        self._lock_file, self.path, self._connection = _create(folder, self.id)
        self._gathering: _Group | None = None
        self._guard = threading.Lock()
        self._work: queue.SimpleQueue[_Group | _Read | None] = queue.SimpleQueue()
        self._live: deque[tuple[int, int]] = deque()  # what is not trimmed yet: last seq, bytes
        self._applied_seq = 0
        self._thread = threading.Thread(target=self._run, name="forebay-journal", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"<Journal {self.id}, {self.size} bytes, durable up to {self.durable_seq}>"

    def append(self, seq: int, line: bytes) -> asyncio.Future[None]:
        """Add an encoded change; the future is done when it is on disk. Changes come in the order of `seq`."""
        with self._guard:
            group = self._gathering
            if group is None:
                group = self._gathering = _Group(self._loop.create_future(), seq)
                group.done.add_done_callback(_look_at_error)
                self._work.put(group)
            group.lines.append(line)
            group.last_seq = seq
        self.size += len(line)
        self._note(seq, len(line))
        return group.done

    def _note(self, seq: int, size: int) -> None:
        """Remember what is to be trimmed, in chunks: an entry for each change would fill the memory in an outage."""
        if self._live and self._live[-1][1] < _CHUNK_BYTES:
            size += self._live.pop()[1]
        self._live.append((seq, size))

    def rebind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Answer in another event loop from now on; the one before is closed."""
        self._loop = loop
        with self._guard:
            self._gathering = None

    def trim(self, applied_seq: int) -> None:
        """The database has everything up to here; the next commit takes it off the disk."""
        self._applied_seq = applied_seq
        while self._live and self._live[0][0] <= applied_seq:
            self.size -= self._live.popleft()[1]

    async def read(self, after_seq: int, max_bytes: int) -> list[Record]:
        """The next changes behind `after_seq` that are on disk, at least one group, about `max_bytes`."""
        done: asyncio.Future[list[Record]] = self._loop.create_future()
        self._work.put(_Read(after_seq, max_bytes, done))
        return await done

    async def synced(self) -> None:
        """Return when the commit that is gathering now is over."""
        group = self._gathering
        if group is not None:
            await asyncio.wait([group.done])
        else:
            await asyncio.sleep(0)

    async def close(self, *, remove: bool) -> None:
        """Commit what was appended and let go; `remove` the file when the database has it whole."""
        self._work.put(None)
        await asyncio.to_thread(self._thread.join)
        if remove:
            _remove(self.path)
        self._lock_file.close()

    # ---- in the thread

    def _run(self) -> None:
        with contextlib.closing(self._connection) as connection:
            while (work := self._work.get()) is not None:
                if isinstance(work, _Group):
                    self._commit(connection, work)
                else:
                    self._answer(work.done, partial(_read, connection, work.after_seq, work.max_bytes))

    def _commit(self, connection: sqlite3.Connection, group: _Group) -> None:
        with self._guard:
            if self._gathering is group:
                self._gathering = None

        def commit() -> None:
            with connection:
                _insert(connection, group)
                connection.execute("DELETE FROM changes WHERE last_seq <= ?", (self._applied_seq,))

        self._answer(group.done, commit, group.last_seq)

    def _answer(self, done: asyncio.Future[Any], act: Callable[[], Any], seq: int | None = None) -> None:
        try:
            result, error = act(), None
        except sqlite3.Error as failed:
            result, error = None, _explain(failed)

        def tell() -> None:
            if error is None and seq is not None:
                self.durable_seq = seq
            if done.done():
                return
            if error is not None:
                logger.error("journal failed reason=%s", error)
                done.set_exception(error)
            else:
                done.set_result(result)

        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(tell)


class Orphan:
    """A journal whose owner is gone, held by this process. See `adopt`."""

    def __init__(self, path: Path, lock_file: Any) -> None:
        self.path = path
        self.id = path.stem
        self._lock_file = lock_file

    def read(self, after_seq: int, max_bytes: int) -> list[Record]:
        """As `Journal.read`. Raises JournalError for a damaged file."""
        try:
            with contextlib.closing(_connect(self.path)) as connection:
                return _read(connection, after_seq, max_bytes)
        except sqlite3.Error as error:
            raise _explain(error) from None

    def remove(self) -> None:
        """The database has it whole."""
        _remove(self.path)
        self._lock_file.close()

    def set_aside(self) -> Path:
        """Keep a damaged file where it is not adopted again."""
        aside = self.path.with_suffix(".damaged")
        self.path.rename(aside)
        self._lock_file.close()
        return aside


def adopt(folder: Path) -> Iterator[Orphan]:
    """Take the journals in the folder whose owners are gone, the oldest first; two adopters never take one."""
    if not folder.is_dir():
        return
    for path in sorted(folder.glob(f"*{_SUFFIX}"), key=lambda found: found.stat().st_mtime):
        lock_file = _lock(path.with_suffix(".lock"))
        if lock_file is None:
            continue
        if not path.exists():  # somebody else wrote it out in between
            path.with_suffix(".lock").unlink(missing_ok=True)
            lock_file.close()
        elif _format_of(path) not in (FORMAT, None):
            logger.error("journal left alone path=%s reason=another release of forebay wrote it", path)
            lock_file.close()
        else:
            yield Orphan(path, lock_file)


def _format_of(path: Path) -> int | None:
    """The file's format version; None where it can't be told, which reading it will explain."""
    try:
        with contextlib.closing(_connect(path)) as connection:
            found: int = connection.execute("SELECT format FROM about").fetchone()[0]
            return found
    except (sqlite3.Error, TypeError):
        return None


def _create(folder: Path, journal_id: str) -> tuple[Any, Path, sqlite3.Connection]:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = folder / f"{journal_id}{_SUFFIX}"
        lock_file = _lock(path.with_suffix(".lock"))
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        connection = _connect(path)
        with connection:
            connection.executescript(_TABLES)
            connection.execute("INSERT INTO about VALUES (?, ?)", (FORMAT, journal_id))
    except (OSError, sqlite3.Error) as error:
        raise JournalError(
            f"the journal can't be written in {folder} ({_reason(error)}); set FOREBAY_JOURNAL_DIR to a folder on a"
            " local disk that this process may write to"
        ) from None
    return lock_file, path, connection


def _lock(path: Path) -> Any:
    """The lock file, held; None when another process holds it. It is removed together with its journal."""
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return os.fdopen(descriptor, "w")


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(f"file:{path}?mode=rw", uri=True, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def _insert(connection: sqlite3.Connection, group: _Group) -> None:
    lines = b"\n".join(group.lines)  # JSON has no bare line feed
    row = (group.first_seq, group.last_seq, zlib.crc32(lines), lines)
    connection.execute("INSERT INTO changes VALUES (?, ?, ?, ?)", row)


def _read(connection: sqlite3.Connection, after_seq: int, max_bytes: int) -> list[Record]:
    """SQLite checks its log but not its pages, so each row carries a checksum of its own."""
    records: list[Record] = []
    size = 0
    rows = connection.execute(
        "SELECT first_seq, crc, lines FROM changes WHERE last_seq > ? ORDER BY first_seq", (after_seq,)
    )
    for first_seq, crc, lines in rows:
        if zlib.crc32(lines) != crc:
            raise sqlite3.DatabaseError("checksum")
        decoded = ((first_seq + number, line) for number, line in enumerate(lines.split(b"\n")))
        records += [(seq, changes.decode(line)) for seq, line in decoded if seq > after_seq]
        size += len(lines)
        if size >= max_bytes:
            break
    return records


def _remove(path: Path) -> None:
    for name in (
        path,
        path.with_name(path.name + "-wal"),
        path.with_name(path.name + "-shm"),
        path.with_suffix(".lock"),
    ):
        name.unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return getattr(error, "sqlite_errorname", None) or type(error).__name__


def _explain(error: sqlite3.Error) -> JournalError:
    reason = _reason(error)
    if reason == "SQLITE_FULL":
        return JournalError("the disk that holds the journal is full; make room, or set FOREBAY_JOURNAL_DIR")
    return JournalError(f"the journal can't be used ({reason}); see the disk that holds FOREBAY_JOURNAL_DIR")


def _look_at_error(done: asyncio.Future[Any]) -> None:
    if not done.cancelled():
        done.exception()
