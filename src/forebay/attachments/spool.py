"""Content that waits for its upload, on this machine's disk: beside the journals, and adopted as they are.

Each process has a folder of its own, and holds the lock beside it. An entry is the content and a note that says
whose it is; the note is put in place last, so content without one is what a crash left half-written. When a
process is gone, another one moves its entries into its own folder and goes on with them.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import logging
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from forebay.attachments.folder import FolderSync, copy, link_or_copy, replace, sync_file
from forebay.model.changes import decode
from forebay.primitives import posix
from forebay.primitives.planted import distrusted

logger = logging.getLogger("forebay.secured")

UPLOADS = "uploads"
_CONTENT = ".content"
_NOTE = ".json"
_LOCK = ".lock"
_DAMAGED = ".damaged"


@dataclass(frozen=True, slots=True)
class Note:
    """What an entry is: the object to store, and the element's row as `changes.encode` writes it."""

    object_key: str
    mime: str
    change: str


@dataclass(frozen=True, slots=True)
class Entry:
    """Secured content. `size` is in bytes."""

    path: Path
    note: Note
    size: int


class Held:
    """A file that is kept readable from now on, also when its name is removed: by a second name, or open."""

    def __init__(self, source: Path, target: Path, *, unchanging: bool) -> None:
        self.target = target
        self._descriptor: int | None = None
        if unchanging:
            try:
                os.link(source, target)
                self.size = target.stat().st_size
                return
            except OSError:
                pass  # another disk, or one without links
        self._descriptor = os.open(source, os.O_RDONLY | posix.CLOEXEC | getattr(os, "O_BINARY", 0))
        self.size = os.fstat(self._descriptor).st_size

    def secure(self, *, sync: bool) -> None:
        """Have it in `target` for good."""
        if self._descriptor is not None:
            copy(self._descriptor, self.target, sync=sync)
        elif sync:
            with self.target.open("rb") as file:
                sync_file(file)

    def close(self) -> None:
        """Let go of the open file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class Secured:
    """This process's folder, made when it is first needed.

    Without `sync` a crash of the machine, but not of the process, may lose what is in it. All methods touch the
    disk; those that take long say so.
    """

    def __init__(self, journal_dir: Path, *, sync: bool) -> None:
        self._root = journal_dir / UPLOADS
        self._sync = sync
        self._folder: Path | None = None
        self._lock: Any = None
        self._numbers = itertools.count()
        self._left_alone: set[Path] = set()
        self._sync_names: Callable[[], None] = lambda: None

    @property
    def folder(self) -> Path:
        """The folder. Where `journal_dir` can't be written to, one that does not outlive the process."""
        if self._folder is None:
            try:
                self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
                if (reason := distrusted(self._root)) is not None:
                    raise OSError(errno.EPERM, reason)
                name = uuid.uuid4().hex
                while (lock := posix.lock_file(self._root / f"{name}{_LOCK}")) is None:
                    name = uuid.uuid4().hex  # an adopter was quicker, and took it for one that is left behind
                self._lock, self._folder = lock, self._root / name
                self._folder.mkdir(mode=0o700)
            except OSError as error:
                logger.warning(
                    "uploads would not outlive a crash reason=%s in=%s", error.strerror, self._root
                )
                self._folder = Path(tempfile.mkdtemp(prefix="forebay-"))
            self._sync_names = FolderSync(self._folder)
        return self._folder

    @property
    def is_lasting(self) -> bool:
        """Whether another process goes on with what this one leaves here."""
        return self.folder.parent == self._root

    def place(self) -> Path:
        """Where content is to be put; names sort by time."""
        return self.folder / f"{time.time_ns():020}-{next(self._numbers):08}{_CONTENT}"

    def hold(self, source: Path, *, unchanging: bool) -> Held:
        """Keep a file readable, at once. `unchanging`: nobody writes into it, so a second name will do."""
        return Held(source, self.place(), unchanging=unchanging)

    def write(self, content: bytes | str, target: Path) -> None:
        """Content from memory."""
        with target.open("xb") as file:
            file.write(content.encode("utf-8", "replace") if isinstance(content, str) else content)
            if self._sync:
                sync_file(file)

    def keep(self, held: Held) -> None:
        """What is held, for good. It may take long."""
        held.secure(sync=self._sync)

    def enter(self, path: Path, note: Note) -> Entry:
        """Content becomes an entry that outlives this process."""
        replace(path.with_suffix(_NOTE), json.dumps(asdict(note)).encode(), sync=self._sync)
        if self._sync:
            self._sync_names()
        return Entry(path, note, path.stat().st_size)

    def forget(self, path: Path) -> None:
        """An entry is not to be gone on with, by nobody; its content stays until `remove`."""
        path.with_suffix(_NOTE).unlink(missing_ok=True)

    def remove(self, path: Path) -> None:
        """An entry is done with."""
        self.forget(path)
        path.unlink(missing_ok=True)

    def entries(self) -> list[Entry]:
        """What is in the folder, the oldest first."""
        return [*_entries(self._folder)] if self._folder is not None else []

    def adopt(self) -> list[Entry]:
        """Take what processes that are gone have left: their entries, now in this folder. It may take long."""
        moved: list[Entry] = []
        if not self._root.is_dir() or self._is_planted(self._root):
            return moved
        for lock_path in sorted(self._root.glob(f"*{_LOCK}")):
            if self._is_planted(lock_path.with_suffix("")):
                continue
            lock = posix.lock_file(lock_path)
            if lock is None:
                continue
            with lock:
                moved += self._move(lock_path.with_suffix(""))
                lock_path.unlink(missing_ok=True)
        return sorted(moved, key=lambda entry: entry.path.name)

    def _is_planted(self, path: Path) -> bool:
        """Whether another user may have put it there: its rows would be written as people's. Told once."""
        try:
            reason = distrusted(path)
        except FileNotFoundError:  # another process has adopted it meanwhile, or it never began
            return False
        if reason is not None and path not in self._left_alone:
            self._left_alone.add(path)
            logger.error("uploads left alone path=%s reason=%s", path, reason)
        return reason is not None

    def _move(self, folder: Path) -> Iterator[Entry]:
        if not folder.is_dir():  # another process has adopted it meanwhile, or it never began
            return
        for entry in _entries(folder):
            target = self.folder / entry.path.name
            target.unlink(missing_ok=True)
            link_or_copy(entry.path, target)
            entry.path.with_suffix(_NOTE).rename(target.with_suffix(_NOTE))
            yield Entry(target, entry.note, entry.size)
        for path in folder.glob(f"*{_DAMAGED}*"):
            path.rename(self._root / path.name)
        shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """Let go; the folder goes if nothing is in it."""
        if self._folder is None:
            return
        for path in self._folder.glob(f"*{_CONTENT}"):
            if not path.with_suffix(_NOTE).exists():
                path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not empty: somebody adopts it
            self._folder.rmdir()
            if self._lock is not None:
                self._lock_path.unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.close()
        self._folder = self._lock = None

    @property
    def _lock_path(self) -> Path:
        assert self._folder is not None
        return self._folder.with_name(self._folder.name + _LOCK)


def waiting_keys(journal_dir: Path) -> set[str]:
    """The object keys of everything that waits for its upload, of whichever process."""
    keys: set[str] = set()
    for path in (journal_dir / UPLOADS).glob(f"*/*{_NOTE}"):
        with contextlib.suppress(OSError, ValueError, TypeError):  # done with meanwhile, or damaged
            keys.add(_read_note(path).object_key)
    return keys


def threads_in_spool(journal_dir: Path) -> set[str]:
    """The threads of everything that waits for its upload, of whichever process."""
    found: set[str] = set()
    for path in (journal_dir / UPLOADS).glob(f"*/*{_NOTE}"):
        with contextlib.suppress(OSError, ValueError, TypeError):  # done with meanwhile, or damaged
            (change,) = decode(_read_note(path).change.encode())
            found.add(change.thread_id or change.key)
    return found


def _read_note(path: Path) -> Note:
    return Note(**json.loads(path.read_bytes()))


def _entries(folder: Path) -> Iterator[Entry]:
    for path in sorted(folder.glob(f"*{_NOTE}")):
        content = path.with_suffix(_CONTENT)
        try:
            yield Entry(content, _read_note(path), content.stat().st_size)
        except (OSError, ValueError, TypeError) as error:
            logger.error("upload left alone path=%s reason=%s", path, type(error).__name__)
            for part in (path, content):
                with contextlib.suppress(OSError):
                    part.rename(part.with_name(f"{path.stem}{_DAMAGED}{part.suffix}"))
