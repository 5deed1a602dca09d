"""How a log lies on the disk: segments of records, each with a checksum of its own.

A record is a header (magic, length, first and last `seq`, checksum) and the encoded changes. Each file, a
segment, begins with records that say whose it is, with 0 as their numbers. Behind a damaged record the next intact
one is found.
"""

from __future__ import annotations

import contextlib
import struct
import zlib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import orjson

from forebay.primitives import posix

FORMAT = 4
MAGIC = b"\xf0FB\n"
HEADER = struct.Struct("<4sIQQI")  # magic, length of the body, first seq, last seq, checksum
PREFIX = struct.Struct("<IQQ")  # what the checksum covers behind the body
SECTOR_BYTES = 512  # what a disk writes whole or not at all
SUFFIX = ".log"

_Kind = TypeVar("_Kind")


@dataclass(frozen=True, slots=True)
class About:
    """Whose a log is: `database` is the location that its changes are for."""

    format: int
    journal_id: str
    database: str


@dataclass(frozen=True, slots=True)
class Head:
    """What a segment says behind that. Releases that do not know it pass over it.

    `database_id` is the database's own id, where it was known, `location` how the database is reached, in full;
    `before`, up to which byte the segment before this one holds groups.
    """

    database_id: str | None
    location: str
    before: int


@dataclass(frozen=True, slots=True)
class Beside:
    """What a segment says behind that of a log beside its process's own: its changes came before those there."""

    is_beside: bool


@dataclass(frozen=True, slots=True)
class Group:
    """Changes that were written together, encoded."""

    first_seq: int
    last_seq: int
    body: bytes


def make_folder(folder: Path) -> None:
    """Create a folder, its owner's alone, such that a crash of the machine forgets neither it nor its parents."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in missing:
        posix.sync_folder(path.parent)


def group_at(content: bytes, at: int) -> Group | None:
    """The intact group that begins there."""
    if len(content) - at < HEADER.size or content[at : at + len(MAGIC)] != MAGIC:
        return None
    _, length, first_seq, last_seq, checksum = HEADER.unpack_from(content, at)
    begin = at + HEADER.size
    if begin + length > len(content):
        return None
    body = content[begin : begin + length]
    if zlib.crc32(PREFIX.pack(length, first_seq, last_seq), zlib.crc32(body)) != checksum:
        return None
    return Group(first_seq, last_seq, body)


def next_intact(content: bytes, at: int) -> int | None:
    """Where the next intact group begins, at `at` or behind it."""
    while (at := content.find(MAGIC, at)) >= 0:
        if group_at(content, at) is not None:
            return at
        at += 1
    return None


def is_partial(rest: bytes, offset: int) -> bool:
    """Whether a group that begins at `offset` of its file was written in part: it lacks its end, or a sector."""
    # JSON holds no zeros, and no damage that leaves a sector readable makes so many.
    first = -offset % SECTOR_BYTES or SECTOR_BYTES
    if not rest[:first].strip(b"\0"):
        return True
    if not MAGIC.startswith(rest[: len(MAGIC)].rstrip(b"\0")):
        return False
    if len(rest) < HEADER.size:
        return True
    length: int = HEADER.unpack_from(rest)[1]
    end = HEADER.size + length
    sectors = pairwise([0, *range(first, end, SECTOR_BYTES), end])
    return (
        end > len(rest)
        or rest[end - 1] == 0
        or any(not rest[begin:until].strip(b"\0") for begin, until in sectors)
    )


def heads_of(content: bytes) -> tuple[About | None, Head | None]:
    """What a segment that begins with this says of itself; None for what is damaged or was never written."""
    return _head_of(About, content), _head_of(Head, content)


def is_beside(content: bytes) -> bool:
    """Whether a segment that begins with this is of a log beside its process's own."""
    return _head_of(Beside, content) is not None


def _head_of(kind: type[_Kind], content: bytes) -> _Kind | None:
    at = next_intact(content, 0)
    while at is not None and (group := group_at(content, at)) is not None and group.last_seq == 0:
        with contextlib.suppress(TypeError):
            return kind(**_fields(group.body))
        at += HEADER.size + len(group.body)
    return None


def _fields(body: bytes) -> dict[str, Any]:
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return fields if isinstance(fields, dict) else {}
