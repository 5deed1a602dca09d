"""A log of groups of changes in a folder of files, appended to and synced by one thread.

SQLite served before. It writes each group twice and page by page, which costs three times the CPU; it reads
nothing of a file that was cut, and takes a flipped bit in its log for the log's end. Here a group is one
record with a checksum of its own, and behind a damaged one the next intact one is found.

A record is a header (magic, length, first and last `seq`, checksum) and the encoded changes. Each file, a
segment, begins with a record that says whose it is. Old segments are removed as a whole.

Room is reserved ahead of what is written, so the last segment ends in zeros. A sync that need not note a new
length of the file takes half the CPU and a quarter of the time. The file is opened such that writing syncs:
after each system call the thread waits for the interpreter, which a busy event loop lends every 5 ms.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import orjson

FORMAT = 4
SEGMENT_BYTES = 8 * 1024 * 1024
_RESERVED_BYTES = 256 * 1024
_SECTOR_BYTES = 512  # what a disk writes whole or not at all
_SUFFIX = ".log"
_MAGIC = b"\xf0FB\n"
_HEADER = struct.Struct("<4sIQQI")  # magic, length of the body, first seq, last seq, checksum
_PREFIX = struct.Struct("<IQQ")  # what the checksum covers behind the body
_PARTS_AT_ONCE = 1024  # what Linux takes in one call


@dataclass(frozen=True, slots=True)
class About:
    """Whose a log is: `database` is the location that its changes are for."""

    format: int
    journal_id: str
    database: str


@dataclass(frozen=True, slots=True)
class Group:
    """Changes that were written together, encoded."""

    first_seq: int
    last_seq: int
    body: bytes


class Log:
    """Writes a log into `folder`, which must not exist. Every method may raise OSError."""

    def __init__(self, folder: Path, about: About) -> None:
        self._about = orjson.dumps(about)
        self._closed: deque[tuple[Path, int]] = deque()  # segments that are full, and their last seq
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
        if self._file < 0 or self._good >= SEGMENT_BYTES:
            self._rotate()
        try:
            self._write(first_seq, last_seq, body, checksum)
        except OSError:
            self._undo()
            raise
        self._last_seq = last_seq

    def _write(self, first_seq: int, last_seq: int, body: Sequence[bytes], checksum: int) -> None:
        length = sum(map(len, body))
        whole = zlib.crc32(_PREFIX.pack(length, first_seq, last_seq), checksum)
        record = [_HEADER.pack(_MAGIC, length, first_seq, last_seq, whole), *body]
        end = self._good + _HEADER.size + length
        if end > self._reserved:
            self._reserve(end)
        at = self._good
        while at < end:
            at += os.pwritev(self._file, _from(record, at - self._good)[:_PARTS_AT_ONCE], at)
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
            self._retire()

    def _cut(self) -> None:
        os.ftruncate(self._file, self._good)
        os.fsync(self._file)
        self._reserved = 0

    def _rotate(self) -> None:
        self._retire()
        self._open()

    def _retire(self) -> None:
        if self._file >= 0:
            with contextlib.suppress(OSError):  # or what is reserved and unused would pass for damage
                self._cut()
            os.close(self._file)
            self._file = -1
            self._closed.append((self._path, self._last_seq))

    def _open(self) -> None:
        self._number += 1
        self._path = self._folder / f"{self._number:08d}{_SUFFIX}"
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC | os.O_DSYNC
        self._file, self._good, self._reserved = os.open(self._path, flags, 0o600), 0, 0
        try:
            self._write(0, 0, [self._about], zlib.crc32(self._about))
            sync_folder(self._folder)
        except OSError:
            os.close(self._file)
            self._file = -1
            self._path.unlink(missing_ok=True)
            raise

    @property
    def removable_seq(self) -> int | None:
        """The `seq` up to which the database must be for `trim` to remove something; None while it can't."""
        return self._closed[0][1] if self._closed else None

    def trim(self, applied_seq: int) -> None:
        """Remove the segments that hold nothing behind `applied_seq`."""
        while self._closed and self._closed[0][1] <= applied_seq:
            self._closed[0][0].unlink(missing_ok=True)
            self._closed.popleft()

    def close(self) -> None:
        """Let go of the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


class Reader:
    """Reads a log from its beginning, also while it is being written.

    `damaged` tells whether something could not be read; `torn` whether the last segment ends within a group,
    which a crash leaves behind of one that was never acknowledged.
    """

    def __init__(self, folder: Path) -> None:
        self.damaged = False
        self.torn = False
        self._folder = folder
        self._segment: Path | None = None
        self._offset = 0
        self._behind = -1

    def read(self, after_seq: int, up_to_seq: int, max_bytes: int) -> list[Group]:
        """The next groups with something behind `after_seq`, none behind `up_to_seq`: at least one, about so much."""
        if after_seq < self._behind:
            self._segment, self._offset = None, 0
        self._behind = after_seq
        groups: list[Group] = []
        size = 0
        for group, segment, end in self._groups(after_seq, up_to_seq):
            groups.append(group)
            self._segment, self._offset = segment, end
            size += len(group.body)
            if size >= max_bytes:
                break
        return groups

    def _groups(self, after_seq: int, up_to_seq: int) -> Iterator[tuple[Group, Path, int]]:
        segments = segments_of(self._folder)
        self._check_for_gaps(segments)
        for segment in segments:
            if self._segment is not None and segment < self._segment:
                continue
            offset = self._offset if segment == self._segment else 0
            is_last = segment == segments[-1]
            for group, end in self._scan(segment, offset, is_last=is_last):
                if group.last_seq > up_to_seq:
                    return
                if group.last_seq > after_seq:
                    yield group, segment, end

    def _check_for_gaps(self, segments: list[Path]) -> None:
        """The oldest are removed when the database has them; one that is missing behind another is lost."""
        numbers = [int(segment.stem) for segment in segments]
        if numbers and numbers[-1] - numbers[0] >= len(numbers):
            self.damaged = True

    def _scan(self, segment: Path, offset: int, *, is_last: bool) -> Iterator[tuple[Group, int]]:
        try:
            content = _read_from(segment, offset)
        except FileNotFoundError:  # trimmed in between
            return
        except OSError:  # a disk that can't read it back
            self.damaged = True
            return
        at = 0
        self.torn = self.torn or (is_last and offset == 0 and not content)
        while at < len(content):
            group = _group_at(content, at)
            if group is None:
                following = _next_intact(content, at + 1)
                if following is None:
                    self._note_end(content[at:], offset + at, is_last=is_last)
                    return
                self.damaged, at = True, following
                continue
            at += _HEADER.size + len(group.body)
            if group.last_seq:  # not the record that says whose it is
                yield group, offset + at

    def _note_end(self, rest: bytes, offset: int, *, is_last: bool) -> None:
        """What is left has no intact group in it: it is reserved, or written in part, or damaged."""
        if is_last and not rest.strip(b"\0"):
            return
        if is_last and _is_partial(rest, offset):
            self.torn = True
        else:
            self.damaged = True


def read_about(folder: Path) -> About | None:
    """Whose the log in the folder is; None where no segment says it."""
    for segment in segments_of(folder):
        try:
            group = _group_at(_read_from(segment, 0, _HEADER.size + 64 * 1024), 0)
            if group is not None and group.last_seq == 0:
                return About(**orjson.loads(group.body))
        except (OSError, TypeError, orjson.JSONDecodeError):
            continue
    return None


def segments_of(folder: Path) -> list[Path]:
    """The log's files, in order."""
    return sorted(path for path in folder.glob(f"*{_SUFFIX}") if path.stem.isdecimal())


def remove(folder: Path) -> None:
    """Delete a log."""
    for path in folder.iterdir() if folder.is_dir() else ():
        path.unlink(missing_ok=True)
    try:
        folder.rmdir()
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise


def sync_folder(folder: Path) -> None:
    """Or a crash of the machine could forget a new file's name."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _from(parts: Sequence[bytes], offset: int) -> list[bytes]:
    """The parts without their first `offset` bytes; so many are hardly ever left over."""
    if not offset:
        return list(parts)
    rest = b"".join(parts)
    return [rest[offset:]]


def _read_from(path: Path, offset: int, size: int = -1) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)


def _group_at(content: bytes, at: int) -> Group | None:
    """The intact group that begins there."""
    if len(content) - at < _HEADER.size or content[at : at + len(_MAGIC)] != _MAGIC:
        return None
    _, length, first_seq, last_seq, checksum = _HEADER.unpack_from(content, at)
    begin = at + _HEADER.size
    if begin + length > len(content):
        return None
    body = content[begin : begin + length]
    if zlib.crc32(_PREFIX.pack(length, first_seq, last_seq), zlib.crc32(body)) != checksum:
        return None
    return Group(first_seq, last_seq, body)


def _next_intact(content: bytes, at: int) -> int | None:
    while (at := content.find(_MAGIC, at)) >= 0:
        if _group_at(content, at) is not None:
            return at
        at += 1
    return None


def _is_partial(rest: bytes, offset: int) -> bool:
    """Whether a group that begins at `offset` of its file was written in part: it lacks its end, or a sector."""
    # JSON holds no zeros, and no damage that leaves a sector readable makes so many.
    first = -offset % _SECTOR_BYTES or _SECTOR_BYTES
    if not rest[:first].strip(b"\0"):
        return True
    if not _MAGIC.startswith(rest[: len(_MAGIC)].rstrip(b"\0")):
        return False
    if len(rest) < _HEADER.size:
        return True
    length: int = _HEADER.unpack_from(rest)[1]
    end = _HEADER.size + length
    sectors = pairwise([0, *range(first, end, _SECTOR_BYTES), end])
    return (
        end > len(rest)
        or rest[end - 1] == 0
        or any(not rest[begin:until].strip(b"\0") for begin, until in sectors)
    )
