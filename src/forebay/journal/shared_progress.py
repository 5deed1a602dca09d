"""How far a journal has come, shared with the process that writes it out: a few numbers in a mapped file.

The one who appends says what is durable, the one who writes says what the database has. Both are on one
machine, so a look at the other's number costs neither a system call nor the disk.

It is a hint between two that live. Nobody syncs it, so after a crash of the machine it may say anything.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
from collections.abc import Iterable
from pathlib import Path

import orjson

# Native and aligned, so that each number is read and written whole.
_NUMBER = struct.Struct("@Q")
_DURABLE, _APPLIED, _FAILING, _PARKED, _HELD = 0, 8, 16, 24, 32
_SIZE = 40
_FORMER_SIZE = 24  # of a release that did not tell what is parked, nor what is held
_PARKED_FILE = ".parked"
_UNTOLD = 1 << 63  # in the number of what is parked: the file does not say it, as the disk is full


class Progress:
    """The numbers of one journal. Raises OSError where the file can't be used."""

    def __init__(self, path: Path, *, create: bool = False) -> None:
        descriptor = os.open(path, os.O_RDWR | (os.O_CREAT | os.O_EXCL if create else 0), 0o600)
        try:
            if create:
                os.write(descriptor, bytes(_SIZE))  # a hole would be filled later, on a full disk by a signal
            size = os.fstat(descriptor).st_size
            if size < _FORMER_SIZE:
                raise OSError(errno.EINVAL, "it is too short")
            self._size = min(size, _SIZE)
            self._numbers = mmap.mmap(descriptor, self._size)
        finally:
            os.close(descriptor)
        self._names = path.with_suffix(_PARKED_FILE)
        self._seen = 0
        self._parked: frozenset[str] = frozenset()

    @property
    def durable(self) -> int:
        """The last `seq` that is on the disk."""
        return self._get(_DURABLE)

    @durable.setter
    def durable(self, seq: int) -> None:
        self._set(_DURABLE, seq)

    @property
    def applied(self) -> int:
        """The last `seq` that the database has."""
        return self._get(_APPLIED)

    @applied.setter
    def applied(self, seq: int) -> None:
        self._set(_APPLIED, seq)

    @property
    def failing(self) -> bool:
        """Whether the database can't be written to at present."""
        return bool(self._get(_FAILING))

    @failing.setter
    def failing(self, failing: bool) -> None:
        self._set(_FAILING, int(failing))

    @property
    def held(self) -> int | None:
        """What comes behind this `seq` has to stay, though the database has it; None for nothing."""
        number = self._get(_HELD) if self._can_hold else 0
        return number - 1 if number else None

    def hold(self, seq: int | None) -> bool:
        """Say so, before `applied` passes it. False where its owner does not know what that means."""
        if self._can_hold:
            self._set(_HELD, seq + 1 if seq is not None else 0)
        return self._can_hold or seq is None

    @property
    def _can_hold(self) -> bool:
        return self._size >= _HELD + _NUMBER.size

    @property
    def _can_park(self) -> bool:
        return self._size >= _PARKED + _NUMBER.size

    def park(self, thread_ids: Iterable[str]) -> None:
        """Say which threads wait by themselves, before `applied` passes what waits. The file's number tells of news.

        Where the disk takes no names, every thread may be one of them until the next call.
        """
        if not self._can_park:
            return
        ids = sorted(thread_ids)
        if not ids and not self._get(_PARKED):
            return
        number = (self._get(_PARKED) & ~_UNTOLD) + 1
        try:
            self._write_names(ids)
        except OSError:
            number |= _UNTOLD
        self._set(_PARKED, number)

    def _write_names(self, ids: list[str]) -> None:
        if not ids:  # that takes no room
            self._names.unlink(missing_ok=True)
            return
        fresh = self._names.with_suffix(_PARKED_FILE + ".new")
        fresh.write_bytes(orjson.dumps(ids))
        fresh.rename(self._names)

    @property
    def has_news(self) -> bool:
        """Whether other threads are parked than when `is_parked` was asked last: what was may be written."""
        return self._can_park and self._get(_PARKED) != self._seen

    def is_parked(self, thread_id: str) -> bool:
        """Whether what was written to the thread waits, or may wait, though `applied` has passed it."""
        number = self._get(_PARKED) if self._can_park else 0
        if number & _UNTOLD:
            return True
        if number != self._seen:
            try:
                self._parked = self._read_names()
            except (OSError, orjson.JSONDecodeError):
                return True
            self._seen = number
        return thread_id in self._parked

    def _read_names(self) -> frozenset[str]:
        try:
            return frozenset(orjson.loads(self._names.read_bytes()))
        except FileNotFoundError:
            return frozenset()

    def close(self) -> None:
        """Unmap the file."""
        self._numbers.close()

    def _get(self, offset: int) -> int:
        number: int = _NUMBER.unpack_from(self._numbers, offset)[0]
        return number

    def _set(self, offset: int, number: int) -> None:
        _NUMBER.pack_into(self._numbers, offset, number)
