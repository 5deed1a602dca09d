"""Who appends to a journal, and who writes it to the database: locks on files that lie beside it.

What belongs to one journal, by suffix: `.journal`, the folder with the log; `.lock`, held by whoever writes it
to the database; and where that is not the process that appends, `.owner`, held by the latter, and `.progress`.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Any

from forebay.journal import log_reader

JOURNAL, LOCK, OWNER, PROGRESS = ".journal", ".lock", ".owner", ".progress"


def is_written_out(path: Path) -> bool:
    """Whether a process has taken it on itself to write the journal at `path` to the database."""
    return is_held(path.with_suffix(LOCK))


def is_owned(path: Path) -> bool:
    """Whether a process appends to the journal at `path` that another one is to write to the database."""
    return is_held(path.with_suffix(OWNER))


def lock(path: Path) -> Any:
    """The lock file, held; None when another process holds it. It is removed together with its journal."""
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return os.fdopen(descriptor, "w")


def is_held(path: Path) -> bool:
    """Whether a process, this one too, holds a lock file."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def remove_files(path: Path) -> None:
    """Delete a journal with all that belongs to it."""
    # The journal first: what is left of the others then belongs to nothing.
    log_reader.remove(path)
    for suffix in (PROGRESS, OWNER, LOCK):
        path.with_suffix(suffix).unlink(missing_ok=True)
