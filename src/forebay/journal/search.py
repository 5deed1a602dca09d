"""What is still in a folder of certain threads: in journals, whoever writes them, and in dead letters."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from forebay.journal.dead_letters import DeadLetters, Letter
from forebay.journal.log_reader import Reader
from forebay.journal.orphan import NO_LIMIT, journal_paths, read_records, reason_left_alone
from forebay.model.changes import Change, Upsert

_READ_BYTES = 1024 * 1024


def threads_in_journals(folder: Path, location: str, database_id: str | None) -> dict[Path, set[str]]:
    """By journal for this database, the threads that it has something of. Blocks; raises JournalError."""
    return {
        path: _threads_in(path)
        for path in journal_paths(folder)
        if reason_left_alone(path, location, database_id) is None
    }


def _threads_in(path: Path) -> set[str]:
    reader, after_seq, found = Reader(path), 0, set[str]()
    while records := read_records(reader, after_seq, NO_LIMIT, _READ_BYTES):
        # A delete holds nothing but ids.
        found.update(thread_of(change) for _, change in records if isinstance(change, Upsert))
        after_seq = records[-1][0]
    return found


def thread_of(change: Change) -> str:
    """The thread of a change, or its row where it names none."""
    return change.thread_id or change.key


def damaged_in(folder: Path) -> list[Path]:
    """Files that nobody can read any more, of journals and of what waits for its upload."""
    return [*sorted(folder.glob("*.damaged")), *sorted(folder.glob("uploads/*.damaged*"))]


def letters_for(folder: Path, location: str, database_id: str | None) -> list[Letter]:
    """The dead letters of this database. Blocks; raises JournalError."""
    return [one for one in DeadLetters(folder).find() if one.is_for(location, database_id)]


def discard(folder: Path, letters: Collection[Letter], which: Callable[[Change], bool]) -> int:
    """Remove those whose change is meant; how many. Blocks; raises JournalError."""
    meant = [letter for letter in letters if which(letter.change)]
    for letter in meant:
        DeadLetters(folder).remove(letter.id)
    return len(meant)
