"""The journals' folder: writable, on a local disk, fast, with room; and what was left in it."""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from forebay.doctor.findings import Finding, error, note, ok, warning
from forebay.errors import JournalError
from forebay.journal.dead_letters import DeadLetters
from forebay.journal.orphan import journal_paths, reason_left_alone
from forebay.journal.ownership import is_owned, is_written_out
from forebay.settings import MIB, Settings

# Locks and shared memory, which SQLite's write-ahead log needs, do not work on these, or only seem to.
_REMOTE = (
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "smbfs",
    "9p",
    "ceph",
    "glusterfs",
    "lustre",
    "afs",
    "beegfs",
    "gpfs",
)
_VOLATILE = ("tmpfs", "ramfs")
_LAYERED = ("overlay", "aufs")
_MOUNTS = Path("/proc/self/mounts")
_SYNCS = 15
_SLOW_SYNC = 0.02  # seconds


def check_disk(settings: Settings, location: str | None, database_id: str | None) -> Iterator[Finding]:
    """Everything about the folder. Writes a small file into it, and removes it.

    `location` and `database_id`: of the app's database, as far as they are known; None: any.
    """
    folder = settings.journal_dir
    if settings.durability != "journal":
        yield note("journal", f"durability={settings.durability}: no journal is written")
        if not folder.is_dir():
            return
    yield from check_file_system("journal folder", folder)
    if settings.durability == "journal":
        yield from _check_writing(settings)
    yield from _check_journals(folder, location, database_id)
    yield _check_letters(folder)


def check_file_system(check: str, folder: Path) -> Iterator[Finding]:
    """Whether a folder, or the one that it will be made in, is on a local disk that outlives the process."""
    kind = file_system(_existing(folder))
    if kind is None:
        yield note(check, f"{folder}: which file system it is on can't be told here; it must be a local one")
    elif kind in _REMOTE or kind.startswith("fuse"):
        yield error(
            check, f"{folder} is on {kind}, which is not local", _elsewhere("a folder on a local disk")
        )
    elif kind in _VOLATILE:
        yield warning(check, f"{folder} is on {kind}: it is gone at the next boot", _elsewhere("a disk"))
    elif kind in _LAYERED:
        yield warning(
            check,
            f"{folder} is on {kind}: what is in it is gone with the container",
            _elsewhere("a volume that outlives the container"),
        )
    else:
        yield ok(check, f"{folder} is on {kind}")


def file_system(path: Path, mounts: str | None = None) -> str | None:
    """The type of the file system that a path is on, by the longest mount point above it. None: not known."""
    if mounts is None:
        try:
            mounts = _MOUNTS.read_text()
        except OSError:
            return None
    found: tuple[int, str] | None = None
    resolved = path.resolve()
    for line in mounts.splitlines():
        _, point, kind, *_ = line.split(" ")
        mounted_at = Path(point.encode().decode("unicode_escape"))  # a space is \040
        if resolved.is_relative_to(mounted_at) and (found is None or len(mounted_at.parts) >= found[0]):
            found = (len(mounted_at.parts), kind)
    return found[1] if found is not None else None


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def _elsewhere(where: str) -> str:
    return f"set FOREBAY_JOURNAL_DIR to {where}"


def _check_writing(settings: Settings) -> Iterator[Finding]:
    folder = settings.journal_dir
    existing = _existing(folder)
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        yield error(
            "journal folder",
            f"{folder} can't be written by this user",
            f"give it to the user that the app runs as, or {_elsewhere('another folder')}",
        )
        return
    if existing == folder.absolute():
        yield from _check_privacy(folder)
    try:
        took = time_sync(existing)
    except OSError as failed:
        yield error(
            "journal sync", f"{folder} can't be synced ({failed.strerror})", _elsewhere("another folder")
        )
        return
    said = f"a sync takes {took * 1000:.2g} ms"
    if took > _SLOW_SYNC:
        remedy = f"{_elsewhere('a faster disk')}; each acknowledged write waits for a share of one sync"
        yield warning("journal sync", said, remedy)
    else:
        yield ok("journal sync", said)
    yield _check_space(existing, settings.journal_max_bytes)


def _check_privacy(folder: Path) -> Iterator[Finding]:
    mode = folder.stat().st_mode & 0o077
    if mode:
        yield warning(
            "journal folder",
            f"others than its owner may look into {folder}, where chats are",
            f"chmod 700 {folder}",
        )


def time_sync(folder: Path) -> float:
    """The median time that writing 4 KiB and syncing them takes, in seconds. Raises OSError."""
    took = []
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".forebay-doctor-") as file:
        for _ in range(_SYNCS):
            started = time.perf_counter()
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
            took.append(time.perf_counter() - started)
    return statistics.median(took)


def _check_space(folder: Path, wanted: int) -> Finding:
    free = shutil.disk_usage(folder).free
    said = f"{free // MIB:,} MiB are free, FOREBAY_JOURNAL_MAX_BYTES is {wanted // MIB:,} MiB"
    if free < wanted:
        return warning("journal space", said, "make room, or lower FOREBAY_JOURNAL_MAX_BYTES")
    return ok("journal space", said)


def _check_journals(folder: Path, location: str | None, database_id: str | None) -> Iterator[Finding]:
    journals = journal_paths(folder)
    left = [path for path in journals if not is_written_out(path) and not is_owned(path)]
    reasons = {path: reason_left_alone(path, location, database_id) for path in left}
    orphans = [path for path, reason in reasons.items() if reason is None]
    for path, reason in reasons.items():
        if reason is not None:
            yield warning("journals", f"{path.name} is left alone", reason)
    unattended = [path for path in journals if not is_written_out(path) and is_owned(path)]
    drain = f"forebay drain {folder}"
    if orphans:
        yield warning(
            "journals",
            f"{len(orphans)} of processes that are gone: what they hold is not in the database",
            f"a process that runs on this folder takes them within seconds; if none does: {drain}",
        )
    if unattended:
        yield error(
            "journals",
            f"{len(unattended)} of processes with FOREBAY_WRITER=external, which nobody writes out",
            f"{drain} --watch",
        )
    if not (left or unattended):
        yield ok("journals", f"{len(journals)} in use, none left behind")
    damaged = sorted(folder.glob("*.damaged")) if folder.is_dir() else []
    if damaged:
        yield warning(
            "journals",
            f"{len(damaged)} damaged, set aside: {', '.join(path.name for path in damaged)}",
            "what could be read is in the database; look at the disk, then delete them",
        )


def _check_letters(folder: Path) -> Finding:
    try:
        count = DeadLetters(folder).count()
    except JournalError as failed:
        return error("dead letters", str(failed), _elsewhere("another folder"))
    if count:
        return warning(
            "dead letters",
            f"{count} rows that the database refused",
            f"forebay dead-letters list --journal-dir {folder}, then retry or discard them",
        )
    return ok("dead letters", "none")
