"""A log of groups of changes in a folder of files, appended to and synced by one thread.

SQLite served before. It writes each group twice and page by page, which costs three times the CPU; it reads
nothing of a file that was cut, and takes a flipped bit in its log for the log's end. Here a group is one
record with a checksum of its own, and behind a damaged one the next intact one is found.

Old segments are removed as a whole. For the format see `log_format`.

Room is reserved ahead of what is written, so the last segment ends in zeros. A sync that need not note a new
length of the file takes half the CPU and a quarter of the time. The file is opened such that writing syncs:
after each system call the thread waits for the interpreter, which a busy event loop lends every 5 ms.
"""

from __future__ import annotations

import contextlib
import errno
import os
import zlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from forebay.journal.log_format import HEADER, MAGIC, PREFIX, SUFFIX, About, Beside, Head
from forebay.primitives.posix import sync_folder

SEGMENT_BYTES = 8 * 1024 * 1024
_RESERVED_BYTES = 256 * 1024
_PARTS_AT_ONCE = 1024  # what Linux takes in one call


@dataclass(slots=True)
class Segment:
    """A file that is full, with what it holds. `applied_at`: since when the database is known to have it whole."""

    path: Path
    last_seq: int
    size: int
    applied_at: float | None = None


class Log:
    """Writes a log into `folder`, which must not exist. Every method may raise OSError.

    `beside`: its changes come before those of the process's own log.
    """

    def __init__(
        self, folder: Path, about: About, database_id: str | None = None, *, beside: bool = False
    ) -> None:
        self._about = about
        self._beside = (Beside(True),) if beside else ()
        self._database_id = database_id
        self.closed: deque[Segment] = deque()  # the oldest first
        self.first_seq = 0  # of the segment that is written to; 0 while it holds nothing
        self._number = 0
        self._path = folder
        self._file = -1
        self._good = 0  # bytes of the segment that are whole
        self._reserved = 0  # up to where the file system has room for it
        self._last_seq = 0
        # Under another name until it says whose it is, as somebody may be looking for it.
        self._folder = folder.with_suffix(".new")
        self._folder.mkdir(mode=0o700)
        self._open()
        self._folder.rename(folder)
        self._folder, self._path = folder, folder / self._path.name
        sync_folder(folder.parent)

    def append(self, first_seq: int, last_seq: int, body: Sequence[bytes], checksum: int) -> None:
        """Write a group; returns when it is synced. After an OSError the log is as it was before.

        `body` is in parts, `checksum` is `zlib.crc32` over all of them.
        """
        if self._good >= SEGMENT_BYTES:
            self.end_segment()
        if self._file < 0:
            self._open()
        try:
            self._write(first_seq, last_seq, body, checksum)
        except OSError:
            self._undo()
            raise
        self._last_seq = last_seq
        self.first_seq = self.first_seq or first_seq

    def _write(self, first_seq: int, last_seq: int, body: Sequence[bytes], checksum: int) -> None:
        length = sum(map(len, body))
        whole = zlib.crc32(PREFIX.pack(length, first_seq, last_seq), checksum)
        self._write_out([HEADER.pack(MAGIC, length, first_seq, last_seq, whole), *body], HEADER.size + length)

    def _write_out(self, record: list[bytes], size: int) -> None:
        end = self._good + size
        if end > self._reserved:
            self._reserve(end)
        at = self._good
        while at < end:
            at += os.pwritev(self._file, _from(record, at - self._good)[:_PARTS_AT_ONCE], at)
        if not os.fstat(self._file).st_nlink:  # nobody will find what is in it
            raise FileNotFoundError(errno.ENOENT, "the journal was removed")
        self._good = end

    def _reserve(self, end: int) -> None:
        """Ask for room up to `end` and beyond. Where there is none ahead of time, writing may still find some."""
        self._reserved = end + _RESERVED_BYTES
        with contextlib.suppress(OSError, AttributeError):  # macOS has no such call
            os.posix_fallocate(self._file, self._good, self._reserved - self._good)

    def _undo(self) -> None:
        """Cut off what was written in part. A file that failed to sync is not trusted again."""
        try:
            self._cut()
        except OSError:
            self.end_segment()

    def _cut(self) -> None:
        os.ftruncate(self._file, self._good)
        os.fsync(self._file)
        self._reserved = 0

    def name(self, database_id: str) -> None:
        """Say whose the log is, now that it is known: a segment that does so begins."""
        self._database_id = database_id
        self.end_segment()
        with contextlib.suppress(OSError):  # the next group begins it
            self._open()

    def end_segment(self) -> None:
        """Close the segment that is written to; the next group begins another."""
        if self._file >= 0:
            with contextlib.suppress(OSError):  # or what is reserved and unused would pass for damage
                self._cut()
            os.close(self._file)
            self._file = -1
            self.closed.append(Segment(self._path, self._last_seq, self._good))
            self.first_seq = self._good = 0

    def _open(self) -> None:
        path = self._folder / f"{self._number + 1:08d}{SUFFIX}"
        # What is there already is what could not be begun before, nor removed.
        flags = os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_CLOEXEC | os.O_DSYNC
        self._file, self._good, self._reserved = os.open(path, flags, 0o600), 0, 0
        try:
            heads = self._heads()
            self._write_out([heads], len(heads))
            sync_folder(self._folder)
        except OSError:
            os.close(self._file)
            self._file = -1
            with contextlib.suppress(OSError):
                path.unlink()
            raise
        # Only now: a number that is missing means that a segment was lost.
        self._number, self._path = self._number + 1, path

    def _heads(self) -> bytes:
        before = self.closed[-1].size if self.closed else 0
        head = Head(self._database_id, self._about.database, before)
        return b"".join(_head_record(orjson.dumps(each)) for each in (self._about, head, *self._beside))

    def remove_oldest(self) -> None:
        """Delete the oldest segment that is closed."""
        self.closed[0].path.unlink(missing_ok=True)
        self.closed.popleft()

    def close(self) -> None:
        """Let go of the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _head_record(body: bytes) -> bytes:
    checksum = zlib.crc32(PREFIX.pack(len(body), 0, 0), zlib.crc32(body))
    return HEADER.pack(MAGIC, len(body), 0, 0, checksum) + body


def _from(parts: Sequence[bytes], offset: int) -> list[bytes]:
    """The parts without their first `offset` bytes; so many are hardly ever left over."""
    if not offset:
        return list(parts)
    rest = b"".join(parts)
    return [rest[offset:]]
