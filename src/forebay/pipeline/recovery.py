"""Writing out the journals of processes that are gone, each change once, in order, and beneath what is newer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol

from typing_extensions import override

from forebay.errors import JournalError
from forebay.journal.journals import Journals
from forebay.journal.orphan import Orphan
from forebay.pipeline import replay
from forebay.pipeline.batch_writer import Writer
from forebay.pipeline.cursor import Cursor
from forebay.pipeline.kept_journals import KeptJournals
from forebay.pipeline.replay import Replay, begin
from forebay.primitives import threads
from forebay.telemetry.counters import Counts

logger = logging.getLogger("forebay.recovery")

INTERVAL = 10.0  # seconds between two looks into the folder
# How long the first reads wait for what a process before this one has left: a process's, not a read's, or a long
# journal would hold each of them up. Seconds.
_PATIENCE = 5.0
# Small, since new changes wait while one is written.
_BATCH_BYTES = 256 * 1024


class Database(replay.Database, Protocol):
    """What recovery needs of a store."""

    async def own_id(self) -> str | None:
        """The database's own id."""


class Recovery:
    """Adopts the journals for `database` in `folder` that nobody holds, and has `writer` write them.

    Those that do not say the id of the database that they are for must be for `location`. `kept` gets what is written
    out.
    """

    def __init__(
        self,
        folder: Path,
        location: str,
        writer: Writer,
        database: Database,
        kept: KeptJournals,
        counts: Counts,
        clock: Callable[[], float],
    ) -> None:
        self.due = 0.0  # when to look again, on the clock
        self.done_once = asyncio.Event()
        self._folder = folder
        self._journals = Journals(folder, clock)
        self._location = location
        self._writer = writer
        self._database = database
        self._counts = counts
        self._clock = clock
        self._orphan: Orphan | None = None
        self._replay: Replay | None = None
        self._replayed = 0
        self._kept = kept
        self._patient_until: float | None = None  # when reads cease to wait, on the clock

    @override
    def __repr__(self) -> str:
        return f"<Recovery in {self._folder}, {'working' if self._orphan else 'idle'}>"

    async def advance(self) -> bool:
        """Write one batch of what was left behind. False when there is nothing to do before `due`."""
        if self._orphan is None and self._clock() < self.due:
            return False
        if self._orphan is None:
            await self._adopt_next()
        if self._orphan is None:
            if not self.done_once.is_set():
                self.done_once.set()
            self.due = self._clock() + INTERVAL
            return False
        try:
            await self._write_some(self._orphan)
        except JournalError as error:
            orphan, self._orphan = self._orphan, None
            await self._park(orphan, error)
        return True

    async def _park(self, orphan: Orphan, error: JournalError) -> None:
        """One journal's trouble is its own: the others, and new changes, go on."""
        await asyncio.to_thread(self._journals.park, orphan, str(error))
        self._count()

    async def _adopt_next(self) -> None:
        if await asyncio.to_thread(self._journals.are_there):
            database_id = await self._writer.until_answered(self._database.own_id)
            adopt = partial(self._journals.adopt, self._location, database_id)
            self._orphan = await threads.taken(adopt, _release)
        else:
            self._journals.left_alone = frozenset()
        self._count()
        self._replay, self._replayed = None, 0

    def _count(self) -> None:
        self._counts.journals_parked = len(self._journals.parked)
        self._counts.journals_left_alone = len(self._journals.left_alone)

    async def _write_some(self, orphan: Orphan) -> None:
        if self._replay is None:
            self._replay = await begin(orphan, self._database, self._writer, self._counts, self._clock)
        replayed = await self._replay.advance(_BATCH_BYTES, late=lambda: True)
        self._replayed += replayed
        if not replayed:
            await self._finish(orphan, self._replay.cursor)
            self._orphan = None

    async def _finish(self, orphan: Orphan, cursor: Cursor) -> None:
        is_damaged = orphan.damaged
        await self._kept.add(orphan, cursor)
        self._journals.finished(orphan)
        self._count()
        if is_damaged:
            return
        logger.warning("journal recovered changes=%d journal=%s", self._replayed, orphan.id)
        await self._writer.until_answered(self._database.clear_checkpoints)

    def patience(self) -> float:
        """For how many seconds a read may still wait until it is done once; that begins when the first one asks."""
        if self._patient_until is None:
            self._patient_until = self._clock() + _PATIENCE
        return self._patient_until - self._clock()

    def begin_again(self) -> None:
        """What this process had written has to be written again: reads wait for that as for what others have left."""
        self.done_once.clear()
        self.due, self._patient_until = 0.0, None

    def rebind(self) -> None:
        """Go on in another event loop, the one before having ended: who waits there waits no more."""
        done, self.done_once = self.done_once, asyncio.Event()
        if done.is_set():
            self.done_once.set()

    def release(self) -> None:
        """Let go of the journal that is being written out; another process may go on with it."""
        if self._orphan is not None:
            self._orphan.release()
            self._orphan = None


def _release(orphan: Orphan | None) -> None:
    if orphan is not None:
        orphan.release()
