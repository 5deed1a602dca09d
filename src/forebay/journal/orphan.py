"""A journal that was left behind, or that another process appends to: found, held, read and removed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from typing_extensions import override

from forebay.errors import JournalError
from forebay.journal.log_format import FORMAT, Group
from forebay.journal.log_reader import Reader, comes_first, read_heads, segments_of
from forebay.journal.ownership import JOURNAL, LOCK, OWNER, PROGRESS, is_held, remove_files
from forebay.journal.shared_progress import Progress
from forebay.model import changes
from forebay.model.changes import Change
from forebay.primitives import posix
from forebay.primitives.planted import distrusted

logger = logging.getLogger("forebay.journal")

Record = tuple[int, Change]
NO_LIMIT = 2**63


class Orphan:
    """A journal that nobody writes to the database, held by this process. See `adopt`.

    `progress` is there where its owner, that appends to it, is another process; `owned` while that one lives. Raises
    OSError where that can't be used.
    """

    def __init__(self, path: Path, lock_file: Any, *, owned: bool = False) -> None:
        self.path = path
        self.id = path.stem
        self.progress: Progress | None = None
        self._is_end_told = False
        self._lock_file = lock_file
        self._reader = Reader(path)
        if owned and self.owned:  # or it would neither tell what may be read, nor be told what is written
            self.progress = Progress(path.with_suffix(PROGRESS))

    @override
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

    def tell_end(self) -> None:
        """Say, once, that it ends within a change, now that it is read to its end."""
        if self.torn and not self._is_end_told:
            self._is_end_told = True
            logger.warning("journal ends within a change journal=%s; that one was not acknowledged", self.id)

    @property
    def owned(self) -> bool:
        """Whether a process still appends to it."""
        return is_held(self.path.with_suffix(OWNER))

    @property
    def size(self) -> int:
        """Its bytes on the disk. Raises OSError."""
        return sum(segment.stat().st_size for segment in segments_of(self.path))

    @property
    def exists(self) -> bool:
        """False when its owner has removed it, as the database had it whole."""
        return self.path.exists()

    def read(self, after_seq: int, max_bytes: int) -> list[Record]:
        """As `Journal.read`, of what is intact; `damaged` tells whether something was not. Raises JournalError.

        Of one whose owner lives, no more than that one says is durable; of another, all that is there.
        """
        is_followed = self.progress is not None and self.owned
        up_to_seq = self.progress.durable if self.progress is not None and is_followed else NO_LIMIT
        return read_records(self._reader, after_seq, up_to_seq, max_bytes)

    def remove(self) -> None:
        """Delete it, as the database has it whole. Raises OSError, and goes on holding it."""
        remove_files(self.path)
        self.release()

    def set_aside(self) -> Path:
        """Keep a damaged file where it is not adopted again. Raises OSError, and goes on holding it."""
        aside = self.path.with_suffix(".damaged")
        self.path.rename(aside)
        posix.sync_folder(aside.parent)
        self.release()
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
    folder: Path,
    location: str | None = "",
    *,
    database_id: str | None = None,
    owned: bool = False,
    but: Sequence[str] = (),
    on_error: Callable[[str, OSError], None] | None = None,
    on_left: Callable[[str], None] = lambda _id: None,
) -> Orphan | None:
    """Take the next journal in the folder that nobody writes out; two adopters never take one.

    `database_id`: for that database only; `location`: the same, for journals that do not say the id, and None for any
    database; `owned`: also those that a living process appends to;
    `but`: not these ids; `on_error` is told the id of one that can't be taken, and the others are tried; `on_left`,
    the id of one that is not for this database. Raises OSError where the folder can't be read.
    """
    if not folder.is_dir():
        return None
    for path in journal_paths(folder):
        try:
            if path.stem in but:
                continue
            orphan = _take(path, location, database_id, on_left, owned=owned)
        except OSError as error:
            if on_error is None:
                raise
            on_error(path.stem, error)
        else:
            if orphan is not None:
                return orphan
    return None


def _take(
    path: Path,
    location: str | None,
    database_id: str | None,
    on_left: Callable[[str], None],
    *,
    owned: bool,
) -> Orphan | None:
    if not owned and is_held(path.with_suffix(OWNER)):
        return None
    lock_file = posix.lock_file(path.with_suffix(LOCK))
    if lock_file is None:
        return None
    try:
        if not path.exists():  # somebody else wrote it out in between
            path.with_suffix(LOCK).unlink(missing_ok=True)
        elif reason_left_alone(path, location, database_id) is not None:
            on_left(path.stem)
        else:
            orphan, lock_file = Orphan(path, lock_file, owned=owned), None
            return orphan
    finally:
        if lock_file is not None:
            lock_file.close()
    return None


def let_go(orphan: Orphan) -> bool:
    """End with a journal whose intact changes are all written: remove it, or set a damaged one aside.

    Raises JournalError when that can't be done; it is held still.
    """
    try:
        if orphan.damaged:
            kept_at = orphan.set_aside()
            logger.error("journal damaged kept_at=%s reason=some of its changes can't be read back", kept_at)
            return False
        orphan.tell_end()
        orphan.remove()
    except OSError as error:
        raise JournalError(
            f"a journal is in the database and can't be removed ({reason_of(error)})"
        ) from None
    return True


def journal_paths(folder: Path) -> list[Path]:
    """Every journal in the folder, in the order in which they are to be written out, whoever holds it.

    Those beside a process's own before that one, whose changes came later; then the oldest first.
    """
    return sorted(folder.glob(f"*{JOURNAL}"), key=_turn) if folder.is_dir() else []


def _turn(path: Path) -> tuple[bool, float]:
    try:
        return not comes_first(path), path.stat().st_mtime
    except OSError:  # written out in between, or whoever takes it is told
        return False, 0.0


_left_alone: set[Path] = set()  # told once


def reason_left_alone(path: Path, location: str | None, database_id: str | None) -> str | None:
    """Why a journal is not for the database, or not this release's to read, with what to type; None: it is taken.

    It is logged once.
    """
    reason = distrusted(path)
    if reason is None:
        strange = _strangeness(path, location, database_id)
        remedy = f"`forebay drain {path.parent}` with its database's URL, or with --any-database into yours"
        reason = f"{strange}; {remedy}" if strange is not None else None
    if reason is not None and path not in _left_alone:
        _left_alone.add(path)
        logger.error("journal left alone path=%s reason=%s", path, reason)
    return reason


def _strangeness(path: Path, location: str | None, database_id: str | None) -> str | None:
    """Why a journal is not this release's to read, or another database's; None for neither."""
    about, head = read_heads(path)
    if about is not None and about.format != FORMAT:
        return "another release of forebay wrote it"
    if location is None:
        return None
    if head is not None and head.database_id is not None and database_id is not None:
        if head.database_id == database_id:
            return None
        return f"it is for another database, which was at {head.location}"
    written_for = head.location if head is not None else about.database if about is not None else None
    if written_for is None:  # nothing was written, or it is damaged
        is_empty = location == "" or not Reader(path).read(0, NO_LIMIT, 1)
        return None if is_empty else "it does not say any more which database it is for"
    return None if written_for in ("", location) else f"it is for {written_for}"


def read_records(reader: Reader, after_seq: int, up_to_seq: int, max_bytes: int) -> list[Record]:
    """The next changes behind `after_seq`, each with its number. Raises JournalError."""
    try:
        return _records(reader.read(after_seq, up_to_seq, max_bytes), after_seq)
    except OSError as error:
        raise JournalError(f"a journal can't be read ({reason_of(error)})") from None
    except Exception as error:  # it was written whole, so whatever it is, another release has written it
        raise JournalError(
            f"a journal holds what this release of forebay can't read ({type(error).__name__})"
        ) from None


def reason_of(error: OSError) -> str:
    """What the system says, without a path."""
    return error.strerror or type(error).__name__


def _records(groups: Sequence[Group], after_seq: int) -> list[Record]:
    return [
        record
        for group in groups
        for record in zip(range(group.first_seq, group.last_seq + 1), changes.decode(group.body), strict=True)
        if record[0] > after_seq
    ]
