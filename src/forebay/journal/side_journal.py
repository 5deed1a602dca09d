"""A journal beside the process's own, for changes that have to wait by themselves while the others go on.

On the disk it is a journal like any other: who finds it without its process writes it out.
"""

from __future__ import annotations

import threading
import uuid
import weakref
import zlib
from collections.abc import Sequence
from pathlib import Path

from typing_extensions import override

from forebay.errors import JournalError
from forebay.journal.log import Log
from forebay.journal.log_format import FORMAT, About, make_folder
from forebay.journal.orphan import Orphan, Record, read_records, reason_of
from forebay.journal.ownership import JOURNAL, LOCK, beginning
from forebay.model import changes
from forebay.model.changes import Change
from forebay.primitives import posix


class SideJournal(Orphan):
    """A journal that its process appends to and reads back itself. Its calls block, and may come from any thread.

    Raises JournalError when the folder can't be used.
    """

    def __init__(self, folder: Path, location: str, database_id: str | None) -> None:
        path = folder / f"{uuid.uuid4().hex}{JOURNAL}"
        try:
            make_folder(folder)
            with beginning(path) as begun:
                # The log last: whoever finds it looks for the lock.
                lock_file = begun.enter_context(posix.lock_file(path.with_suffix(LOCK)))
                self._log = Log(path, About(FORMAT, path.stem, location), database_id, beside=True)
        except OSError as error:
            raise _unusable(error) from None
        super().__init__(path, lock_file)
        self._durable_seq = 0
        self._one_at_a_time = threading.Lock()
        _held.add(self)

    def append(self, first_seq: int, added: Sequence[Change]) -> None:
        """Add changes, numbered from `first_seq` on; they are on the disk when this returns. Raises JournalError."""
        line = changes.encode(added)
        last_seq = first_seq + len(added) - 1
        with self._one_at_a_time:
            try:
                self._log.append(first_seq, last_seq, [line], zlib.crc32(line))
            except OSError as error:
                raise _unusable(error) from None
            self._durable_seq = last_seq

    @override
    def read(self, after_seq: int, max_bytes: int) -> list[Record]:
        """See `Orphan.read`."""
        with self._one_at_a_time:
            return read_records(self._reader, after_seq, self._durable_seq, max_bytes)

    @override
    def remove(self) -> None:
        """See `Orphan.remove`."""
        with self._one_at_a_time:
            self._log.close()
        super().remove()

    @override
    def release(self) -> None:
        """See `Orphan.release`."""
        with self._one_at_a_time:
            self._log.close()
        super().release()

    def forked(self) -> None:
        """In a forked child: let go of what is the parent's."""
        self._lock_file.close()


def _unusable(error: OSError) -> JournalError:
    return JournalError(
        f"changes of a thread that is held up can't be journaled ({reason_of(error)}); see the disk that holds"
        " FOREBAY_JOURNAL_DIR"
    )


_held: weakref.WeakSet[SideJournal] = weakref.WeakSet()


def _after_fork() -> None:
    for journal in list(_held):
        journal.forked()


posix.after_fork(_after_fork)
