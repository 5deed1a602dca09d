"""This process's own journal: whether it keeps one, made at the first write, and what room there is in it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from typing_extensions import override

from forebay.database.store import Store
from forebay.errors import JournalError, SettingsError
from forebay.journal.journal import Journal
from forebay.journal.orphan import Record
from forebay.model.changes import Change
from forebay.pipeline.cursor import Cursor
from forebay.primitives import posix
from forebay.settings import Settings
from forebay.telemetry.collector import Metrics

logger = logging.getLogger("forebay.engine")

# What the disk has not answered for may take as much as the queue, and so much where that is small. Bytes.
_UNSYNCED = 32 * 1024 * 1024


class OwnJournal:
    """`journal` is None until something is written, and for ever where none is `kept`.

    `is_external`: another process writes it to the database. `cursor` is where it stands there; it can be read again
    by it, and `on_going_back` is called when that has to be done.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        metrics: Metrics,
        cursor: Cursor,
        on_going_back: Callable[[], None],
    ) -> None:
        # What is in memory alone ends with the process; there is nothing to keep it for.
        self.kept = settings.durability == "journal" and not store.in_memory
        if self.kept and not posix.has_journals():
            raise SettingsError(
                "FOREBAY_DURABILITY=journal needs a POSIX system, for locks on files and writes that wait for the disk:"
                " set memory (a crash loses what is queued) or commit (each write waits for the database)"
            )
        self.is_external = self.kept and settings.writer == "external"
        self.journal: Journal | None = None
        self._settings = settings
        self._store = store
        self._metrics = metrics
        self._cursor = cursor
        self._on_going_back = on_going_back

    @override
    def __repr__(self) -> str:
        return f"<OwnJournal {self.journal!r}>"

    def open(
        self,
        on_failure: Callable[[int, str, asyncio.Future[None] | None, JournalError], None],
        on_answer: Callable[[], None],
    ) -> Journal:
        """Make it, in the loop that runs now; see `Journal` for what is called. Raises JournalError."""
        self.journal = Journal(
            self._settings.journal_dir,
            asyncio.get_running_loop(),
            self._store.label,
            database_id=self._store.database_id,
            external=self.is_external,
            keep=self._settings.journal_keep,
            keep_bytes=self._settings.journal_keep_bytes,
            on_commit=self._metrics.journal_commit_duration.observe,
            on_failure=on_failure,
            on_answer=on_answer,
        )
        self._cursor.journal_id = self.journal.id
        self._cursor.source = _Pages(self.journal, self._on_going_back)
        return self.journal

    def has_room(self, change: Change, parked_bytes: int) -> bool:
        """Whether it may take a change, beside what is parked: what the disk has not answered for is in memory."""
        journal, most = self.journal, self._settings
        if journal is None or journal.size + parked_bytes + change.size > most.journal_max_bytes:
            return False
        return journal.unsynced + change.size <= max(most.queue_max_bytes, _UNSYNCED)

    @property
    def is_quiet(self) -> bool:
        """Whether the disk has answered for all that it was given."""
        return self.journal is None or self.journal.is_quiet

    @property
    def is_held(self) -> bool:
        """Whether it has to stay, though the database has it whole: a refused row is in it that nothing else holds."""
        return self._cursor.is_held or self._held_seq is not None

    @property
    def _held_seq(self) -> int | None:
        """Up to where it may be trimmed, as the process says that writes it; None: as far as it is written."""
        progress = self.journal.progress if self.journal is not None else None
        return progress.held if progress is not None else None

    def trim(self, applied_seq: int) -> None:
        """The database has everything up to here; what a refused row is in that nothing else holds yet stays."""
        journal, database_id, held_seq = self.journal, self._store.database_id, self._held_seq
        if journal is None:
            return
        if held_seq is not None:
            journal.trim(min(held_seq, applied_seq))
        elif not self._cursor.is_held:
            journal.trim(applied_seq)
        if journal.database_id is None and database_id is not None:
            journal.name(database_id)


class _Pages:
    """The journal as what can be read again."""

    def __init__(self, journal: Journal, went_back: Callable[[], None]) -> None:
        self._journal = journal
        self._went_back = went_back

    async def read(self, after_seq: int, max_bytes: int) -> list[Record]:
        """What can't be read back is told, and does not keep what comes after it from being written."""
        try:
            return await self._journal.read(after_seq, max_bytes)
        except JournalError as error:
            logger.critical("journal not read again reason=%s", error)
            return []

    def went_back(self, seq: int) -> None:
        self._journal.trim(seq)
        self._went_back()
