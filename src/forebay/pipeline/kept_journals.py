"""Journals that the database has whole, kept for a while: it may go back, as one does after a failover or a restore."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from typing_extensions import override

from forebay.database.checkpoint import Position
from forebay.errors import DatabaseError, JournalError
from forebay.journal.orphan import Orphan, let_go, reason_of
from forebay.pipeline.cursor import Cursor

logger = logging.getLogger("forebay.recovery")

_LOOK = 5.0  # seconds between two looks


class Database(Protocol):
    """What is asked whether it has a journal still."""

    async def position(self, journal_id: str) -> Position:
        """Where a journal stands. Raises a DatabaseError."""


@dataclass(slots=True, eq=False)
class _Kept:
    journal: Orphan
    cursor: Cursor  # where the database stood when it was whole
    size: int
    until: float  # on the clock


class KeptJournals:
    """Journals that are written out, held by this process for `keep` seconds more, at most `keep_bytes` of them.

    Then it is looked whether the database has them still. One that it lacks something of is let go of, so that whoever
    adopts it, this process too, writes that again. One whose cursor is held stays until it is not.
    """

    def __init__(self, database: Database, keep: float, keep_bytes: int, clock: Callable[[], float]) -> None:
        self._database = database
        self._keep = keep
        self._keep_bytes = keep_bytes
        self._clock = clock
        self._kept: list[_Kept] = []
        self._task: asyncio.Task[None] | None = None

    @override
    def __repr__(self) -> str:
        return f"<KeptJournals {len(self._kept)}>"

    async def add(self, journal: Orphan, cursor: Cursor) -> None:
        """Keep a journal that is written out. Raises JournalError where it can be neither kept nor removed."""
        if cursor.is_held or (self._keep > 0 and not journal.damaged):
            try:
                size = await asyncio.to_thread(lambda: journal.size)
            except OSError as error:
                raise JournalError(f"a journal can't be read ({reason_of(error)})") from None
            journal.tell_end()
            self._kept.append(_Kept(journal, cursor, size, self._clock() + self._keep))
            self._start()
        else:
            await asyncio.to_thread(let_go, journal)

    def _start(self) -> None:
        if self._task is None or self._task.done():
            # An empty context: whoever wrote a change has one that holds a Chainlit session.
            self._task = asyncio.get_running_loop().create_task(
                self._run(), name="forebay-kept", context=contextvars.Context()
            )

    async def _run(self) -> None:
        while self._kept:
            await self.sweep()
            await asyncio.sleep(min(_LOOK, self._keep) or _LOOK)

    async def sweep(self) -> None:
        """Remove what was kept for long enough, or is too much, the oldest first."""
        size = sum(kept.size for kept in self._kept)
        for kept in list(self._kept):
            is_due = self._clock() >= kept.until or size > self._keep_bytes
            if is_due and not kept.cursor.is_held and await self._end(kept):
                size -= kept.size

    async def _end(self, kept: _Kept) -> bool:
        try:
            position = await self._database.position(kept.cursor.journal_id)
        except DatabaseError:
            return False
        if kept not in self._kept:  # the database has gone back, as somebody has noticed meanwhile
            return True
        self._kept.remove(kept)
        if position == kept.cursor.at:
            await _remove(kept.journal)
        else:
            logger.critical(
                "database gone back journal=%s stored=%d known=%d; what it lacks is written again",
                *(kept.journal.id, position.seq, kept.cursor.at.seq),
            )
            kept.journal.release()
        return True

    def went_back(self) -> None:
        """The database has gone back: whoever looks for journals finds these, and writes what it lacks of them."""
        self._leave(held=False)

    def _leave(self, *, held: bool) -> None:
        for kept in [kept for kept in self._kept if held or not kept.cursor.is_held]:
            self._kept.remove(kept)
            kept.journal.release()

    def rebind(self) -> None:
        """Go on in the loop that runs now; the one before has ended."""
        self._task = None
        if self._kept:
            self._start()

    async def close(self) -> None:
        """Remove what is kept, but for what is held: another process goes on with that."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        while self._kept and not all(kept.cursor.is_held for kept in self._kept):
            kept = next(kept for kept in self._kept if not kept.cursor.is_held)
            self._kept.remove(kept)
            await _remove(kept.journal)
        self._leave(held=True)


async def _remove(journal: Orphan) -> None:
    try:
        await asyncio.to_thread(let_go, journal)
    except JournalError as error:  # whoever adopts it finds that the database has it
        logger.error("journal left behind journal=%s reason=%s", journal.id, error)
        journal.release()
