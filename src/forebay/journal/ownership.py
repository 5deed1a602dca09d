"""Who appends to a journal, and who writes it to the database: locks on files that lie beside it.

What belongs to one journal, by suffix: `.journal`, the folder with the log; `.lock`, held by whoever writes it
to the database; and where that is not the process that appends, `.owner`, held by the latter, `.progress`, and
`.parked`, what waits by itself.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from forebay.primitives import posix
from forebay.primitives.posix import sync_folder

JOURNAL, LOCK, OWNER, PROGRESS, PARKED = ".journal", ".lock", ".owner", ".progress", ".parked"
_REMOVED = ".removed"
_STRAY = (".new", PROGRESS, PARKED, OWNER, LOCK)


def is_written_out(path: Path) -> bool:
    """Whether a process has taken it on itself to write the journal at `path` to the database."""
    return is_held(path.with_suffix(LOCK))


def is_owned(path: Path) -> bool:
    """Whether a process appends to the journal at `path` that another one is to write to the database."""
    return is_held(path.with_suffix(OWNER))


def is_held(path: Path) -> bool:
    """Whether a process, this one too, holds a lock file, or may do so: the disk does not say."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        posix.lock(descriptor, shared=True)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def remove_files(path: Path) -> None:
    """Delete a journal with all that belongs to it. Raises OSError when it stays where it was.

    It gets another name first: of a log that is removed in part, a crash could leave what looks like damage. What
    then can't be deleted is `sweep`'s.
    """
    gone = path.with_suffix(_REMOVED)
    with contextlib.suppress(FileNotFoundError):
        path.rename(gone)
        sync_folder(path.parent)
    _delete(gone)
    for suffix in (PROGRESS, PARKED, OWNER, LOCK):
        with contextlib.suppress(OSError):
            path.with_suffix(suffix).unlink()


@contextlib.contextmanager
def beginning(path: Path) -> Iterator[contextlib.ExitStack]:
    """While a journal is begun at `path`: where that fails, nothing of it stays, and what is pushed is closed."""
    with contextlib.ExitStack() as undo:
        undo.callback(_forget, path)
        yield undo
        undo.pop_all()


def _forget(path: Path) -> None:
    with contextlib.suppress(OSError):
        _delete(path.with_suffix(".new"))
        remove_files(path)


def sweep(folder: Path) -> None:
    """Delete what belongs to no journal: what a crash has left of one that was begun or removed."""
    for gone in folder.glob(f"*{_REMOVED}"):
        _delete(gone)
    for path in [path for suffix in _STRAY for path in folder.glob(f"*{suffix}")]:
        if not path.with_suffix(JOURNAL).exists():
            _remove_stray(path)


def _remove_stray(path: Path) -> None:
    locks = [path.with_suffix(suffix) for suffix in (LOCK, OWNER)]
    held = [posix.lock_file(path) for path in locks if path.exists()]
    try:
        # Whoever begins a journal holds one of them before there is one.
        if all(held) and not path.with_suffix(JOURNAL).exists():
            _delete(path.with_suffix(".new"))
            for suffix in (PROGRESS, PARKED, OWNER, LOCK):
                path.with_suffix(suffix).unlink(missing_ok=True)
    finally:
        for file in filter(None, held):
            file.close()


def _delete(folder: Path) -> None:
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            with contextlib.suppress(OSError):
                path.unlink()
        folder.rmdir()
