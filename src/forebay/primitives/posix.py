"""What only POSIX systems have, so that forebay imports elsewhere too: locks on files, forks, synced folders."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    _flock: Callable[[int, int], None] | None = None
    _EXCLUSIVE = _SHARED = 0
else:
    _flock = fcntl.flock
    _EXCLUSIVE, _SHARED = fcntl.LOCK_EX | fcntl.LOCK_NB, fcntl.LOCK_SH | fcntl.LOCK_NB

CLOEXEC = getattr(os, "O_CLOEXEC", 0)  # elsewhere no child inherits a descriptor


def has_journals() -> bool:
    """Whether a journal can be kept: its owner is told by a lock, and each write waits for the disk."""
    return _flock is not None and hasattr(os, "O_DSYNC") and hasattr(os, "pwritev")


def require_locks() -> None:
    """Raise OSError where files can't be locked."""
    if _flock is None:
        raise OSError(errno.ENOSYS, "this system has no locks on files as POSIX has them")


def lock(descriptor: int, *, shared: bool = False) -> None:
    """Lock an open file for as long as it is open. Raises OSError where another process holds it."""
    require_locks()
    assert _flock is not None
    _flock(descriptor, _SHARED if shared else _EXCLUSIVE)


def lock_file(path: Path) -> Any:
    """The file at `path`, which it makes, held until it is closed; None when another process holds it.

    Whoever holds it may remove it. Raises OSError where that file can't be used.
    """
    require_locks()
    while True:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | CLOEXEC, 0o600)
        try:
            if not _is_free(descriptor):
                os.close(descriptor)
                return None
            if _is_at(descriptor, path):
                return os.fdopen(descriptor, "w")
        except BaseException:  # or it would be held for as long as this process lives
            os.close(descriptor)
            raise
        os.close(descriptor)  # somebody has removed it in between


def _is_free(descriptor: int) -> bool:
    try:
        lock(descriptor)
    except OSError:
        return False
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False


def user() -> int:
    """The id of the user that this process is; 0, as of every file, where there is none."""
    return os.geteuid() if hasattr(os, "geteuid") else 0


def is_root() -> bool:
    """Whether this process may do everything."""
    return hasattr(os, "geteuid") and os.geteuid() == 0


def after_fork(act: Callable[[], None]) -> None:
    """Have it called in each child that is forked off, where there is such a thing."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=act)


def sync_folder(folder: Path) -> None:
    """Put the names of new files in it on the disk, or a crash of the machine could forget them.

    Elsewhere a folder can't be opened, and the file system keeps its names by itself.
    """
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
