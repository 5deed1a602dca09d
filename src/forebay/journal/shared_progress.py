"""How far a journal has come, shared with the process that writes it out: two numbers in a mapped file.

The one who appends says what is durable, the one who writes says what the database has. Both are on one
machine, so a look at the other's number costs neither a system call nor the disk.

It is a hint between two that live. Nobody syncs it, so after a crash of the machine it may say anything.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
from pathlib import Path

# Native and aligned, so that each number is read and written whole.
_NUMBER = struct.Struct("@Q")
_DURABLE, _APPLIED, _FAILING = 0, 8, 16
_SIZE = 24


class Progress:
    """The numbers of one journal. Raises OSError where the file can't be used."""

    def __init__(self, path: Path, *, create: bool = False) -> None:
        descriptor = os.open(path, os.O_RDWR | (os.O_CREAT | os.O_EXCL if create else 0), 0o600)
        try:
            if create:
                os.truncate(descriptor, _SIZE)
            if os.fstat(descriptor).st_size < _SIZE:
                raise OSError(errno.EINVAL, "it is too short")
            self._numbers = mmap.mmap(descriptor, _SIZE)
        finally:
            os.close(descriptor)

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

    def close(self) -> None:
        """Unmap the file."""
        self._numbers.close()

    def _get(self, offset: int) -> int:
        number: int = _NUMBER.unpack_from(self._numbers, offset)[0]
        return number

    def _set(self, offset: int, number: int) -> None:
        _NUMBER.pack_into(self._numbers, offset, number)
