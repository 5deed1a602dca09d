"""What only POSIX systems have, so that forebay imports elsewhere too: locks on files, forks, synced folders."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

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
