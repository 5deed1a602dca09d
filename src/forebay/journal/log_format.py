"""How a log lies on the disk: segments of records, each with a checksum of its own.

A record is a header (magic, length, first and last `seq`, checksum) and the encoded changes. Each file, a
segment, begins with a record that says whose it is. Behind a damaged record the next intact one is found.
"""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

FORMAT = 4
MAGIC = b"\xf0FB\n"
HEADER = struct.Struct("<4sIQQI")  # magic, length of the body, first seq, last seq, checksum
PREFIX = struct.Struct("<IQQ")  # what the checksum covers behind the body
SECTOR_BYTES = 512  # what a disk writes whole or not at all
SUFFIX = ".log"


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


def sync_folder(folder: Path) -> None:
    """Or a crash of the machine could forget a new file's name."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
