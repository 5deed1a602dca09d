"""A journal that was left behind, or that another process appends to: found, held, read and removed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from forebay.journal.log_format import FORMAT, Group
from forebay.journal.log_reader import Reader, read_about
from forebay.journal.ownership import JOURNAL, LOCK, OWNER, PROGRESS, is_held, lock, remove_files
from forebay.journal.shared_progress import Progress
from forebay.model import changes
from forebay.model.changes import Change

logger = logging.getLogger("forebay.journal")

Record = tuple[int, Change]
NO_LIMIT = 2**63


class Orphan:
    """A journal that nobody writes to the database, held by this process. See `adopt`.

    `progress` is there where its owner, that appends to it, is another process; `owned` while that one lives.
    """

    def __init__(self, path: Path, lock_file: Any, *, owned: bool = False) -> None:
        self.path = path
        self.id = path.stem
        self.progress: Progress | None = None
        self._lock_file = lock_file
        self._reader = Reader(path)
        if path.with_suffix(PROGRESS).exists() and owned:
            self.progress = Progress(path.with_suffix(PROGRESS))

    def __repr__(self) -> str:
        return f"<Orphan {self.id}>"

    @property
    def damaged(self) -> bool:
        """Whether something could not be read."""
        return self._reader.damaged

    @property
    def torn(self) -> bool:
        """Whether it ends within a group, which was never acknowledged, unless the file was cut."""
        return self._reader.torn

    @property
    def owned(self) -> bool:
        """Whether a process still appends to it."""
        return is_held(self.path.with_suffix(OWNER))

    @property
    def exists(self) -> bool:
        """False when its owner has removed it, as the database had it whole."""
        return self.path.exists()

    def read(self, after_seq: int, max_bytes: int) -> list[Record]:
        """As `Journal.read`, of what is intact; `damaged` tells whether something was not."""
        up_to_seq = self.progress.durable if self.progress is not None else NO_LIMIT
        return records_of(self._reader.read(after_seq, up_to_seq, max_bytes), after_seq)

    def remove(self) -> None:
        """The database has it whole."""
        self._disconnect()
        remove_files(self.path)
        self._lock_file.close()

    def set_aside(self) -> Path:
        """Keep a damaged file where it is not adopted again."""
        self._disconnect()
        aside = self.path.with_suffix(".damaged")
        self.path.rename(aside)
        self._lock_file.close()
        return aside

    def release(self) -> None:
        """Leave it to the next who adopts it."""
        self._disconnect()
        self._lock_file.close()

    def _disconnect(self) -> None:
        if self.progress is not None:
            self.progress.close()
            self.progress = None


def adopt(
    folder: Path, location: str | None = "", *, owned: bool = False, but: Sequence[str] = ()
) -> Orphan | None:
    """Take the oldest journal in the folder that nobody writes out; two adopters never take one.

    `location`: for that database only, None for any; `owned`: also those that a living process appends to;
    `but`: not these ids. Raises OSError where the folder can't be read.
    """
    if not folder.is_dir():
        return None
    for path in sorted(folder.glob(f"*{JOURNAL}"), key=_age):
        if path.stem in but or (not owned and is_held(path.with_suffix(OWNER))):
            continue
        lock_file = lock(path.with_suffix(LOCK))
        if lock_file is None:
            continue
        if not path.exists():  # somebody else wrote it out in between
            path.with_suffix(LOCK).unlink(missing_ok=True)
        elif _is_for(path, location):
            return Orphan(path, lock_file, owned=owned)
        lock_file.close()
    return None


def let_go(orphan: Orphan) -> bool:
    """End with a journal whose intact changes are all written: remove it, or set a damaged one aside."""
    if orphan.damaged:
        kept_at = orphan.set_aside()
        logger.error("journal damaged kept_at=%s reason=some of its changes can't be read back", kept_at)
        return False
    if orphan.torn:
        logger.warning("journal ends within a change journal=%s; that one was not acknowledged", orphan.id)
    orphan.remove()
    return True


def journal_paths(folder: Path) -> list[Path]:
    """Every journal in the folder, the oldest first, whoever holds it."""
    return sorted(folder.glob(f"*{JOURNAL}"), key=_age) if folder.is_dir() else []


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # written out in between
        return 0.0


_left_alone: set[Path] = set()  # told once


def _is_for(path: Path, location: str | None) -> bool:
    """Whether the journal can be read by this release and is for the database. One that doesn't say so is."""
    about = read_about(path)
    if about is None:
        return True
    if about.format != FORMAT:
        reason = "another release of forebay wrote it"
    elif location is not None and about.database not in ("", location):
        reason = f"it is for {about.database}"
    else:
        return True
    if path not in _left_alone:
        _left_alone.add(path)
        logger.error("journal left alone path=%s reason=%s", path, reason)
    return False


def records_of(groups: Sequence[Group], after_seq: int) -> list[Record]:
    """The changes in these groups behind `after_seq`, each with its number."""
    return [
        record
        for group in groups
        for record in zip(range(group.first_seq, group.last_seq + 1), changes.decode(group.body), strict=True)
        if record[0] > after_seq
    ]
