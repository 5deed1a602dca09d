"""Writing out another process's journal from where the database has it: each change once, and in order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from typing_extensions import override

from forebay.database.checkpoint import Position
from forebay.journal.orphan import Orphan, Record
from forebay.pipeline.batch_writer import Writer
from forebay.pipeline.cursor import Cursor
from forebay.pipeline.queue import Batch, batch_of
from forebay.telemetry.counters import Counts


class Database(Protocol):
    """What a replay needs of a store."""

    async def position(self, journal_id: str) -> Position:
        """Where a journal stands."""

    async def clear_checkpoints(self) -> None:
        """Forget journals of long ago."""


class Log(Protocol):
    """What can be replayed. Its call blocks."""

    id: str

    def read(self, after_seq: int, max_bytes: int) -> list[Record]:
        """The next changes behind `after_seq`, at least one where there is any. Raises JournalError."""


class Replay:
    """A journal on its way into the database. `read_seq`: up to where it was read and written.

    `tickets`: see `batch_of`.
    """

    def __init__(
        self,
        journal: Log,
        position: Position,
        writer: Writer,
        counts: Counts,
        clock: Callable[[], float],
        tickets: Mapping[int, tuple[Any, ...]] | None = None,
    ) -> None:
        self.journal = journal
        self.read_seq = position.seq
        self.batch: Batch | None = None  # what is being written
        self._cursor = Cursor(journal.id, position, _Pages(journal))
        self._writer = writer
        self._counts = counts
        self._clock = clock
        self._tickets = tickets

    @override
    def __repr__(self) -> str:
        return f"<Replay of {self.journal.id} up to {self.read_seq}>"

    @property
    def cursor(self) -> Cursor:
        """Where it stands. While that is held, the journal must stay."""
        return self._cursor

    async def advance(self, max_bytes: int, *, late: Callable[[], bool]) -> int:
        """Write the next changes, about `max_bytes` of them; how many, 0 at the end of what is there.

        `late`, asked at each attempt: beneath what is newer in the database.
        """
        records = await asyncio.to_thread(self.journal.read, self.read_seq, max_bytes)
        if records:
            self.batch = batch_of(records, self._clock(), self._counts, self._tickets)
            await self._writer.write(self.batch, self._cursor, late=late)
            self.read_seq, self.batch = self.batch.last_seq, None
            if self._tickets is None and late():
                self._counts.replayed += len(records)
        return len(records)


async def begin(
    journal: Orphan, database: Database, writer: Writer, counts: Counts, clock: Callable[[], float]
) -> Replay:
    """A replay of a journal that this process holds; asks the database where it stands until that answers."""
    position = await writer.until_answered(lambda: database.position(journal.id))
    return Replay(journal, position, writer, counts, clock)


class _Pages:
    """A journal that may be read again where the database goes back."""

    def __init__(self, journal: Log) -> None:
        self._journal = journal

    async def read(self, after_seq: int, max_bytes: int) -> list[Record]:
        return await asyncio.to_thread(self._journal.read, after_seq, max_bytes)

    def went_back(self, seq: int) -> None:
        """It stays as it is until it is written whole."""
