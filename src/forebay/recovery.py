"""Writing out the journals of processes that are gone, each change once and in order."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from forebay.counts import Counts
from forebay.errors import JournalError
from forebay.inbox import Batch
from forebay.journal import Orphan, adopt
from forebay.writer import Writer

logger = logging.getLogger("forebay.recovery")


class Checkpoints(Protocol):
    """What recovery needs of a store."""

    async def applied_seq(self, journal_id: str) -> int:
        """Up to where a journal is in the database."""

    async def forget_journal(self, journal_id: str) -> None:
        """A journal is gone."""


class Recovery:
    """Takes the journals in `folder` that nobody holds and has `writer` write them, `batch_bytes` at a time."""

    def __init__(
        self,
        folder: Path,
        writer: Writer,
        checkpoints: Checkpoints,
        counts: Counts,
        clock: Callable[[], float],
        batch_bytes: int,
    ) -> None:
        self._folder = folder
        self._writer = writer
        self._checkpoints = checkpoints
        self._counts = counts
        self._clock = clock
        self._batch_bytes = batch_bytes

    async def run(self) -> None:
        """Return when all of them are in the database, however long it can't be reached."""
        try:
            orphans = await asyncio.to_thread(lambda: [*adopt(self._folder)])
        except OSError as error:
            logger.error("journals not looked for in=%s reason=%s", self._folder, error.strerror)
            return
        for orphan in orphans:
            try:
                await self._write_out(orphan)
            except JournalError as error:
                logger.error("journal damaged kept_at=%s reason=%s", orphan.set_aside(), error)

    async def _write_out(self, orphan: Orphan) -> None:
        applied_seq = await self._writer.until_answered(lambda: self._checkpoints.applied_seq(orphan.id))
        replayed = 0
        while records := await asyncio.to_thread(orphan.read, applied_seq, self._batch_bytes):
            batch = Batch(self._clock())
            for seq, change in records:
                self._counts.accepted[change.table] += 1
                batch.add(seq, change, None, self._counts)
            await self._writer.write(batch, orphan.id)
            applied_seq = batch.last_seq
            replayed += len(records)
            self._counts.replayed += len(records)
        orphan.remove()
        await self._writer.until_answered(lambda: self._checkpoints.forget_journal(orphan.id))
        logger.warning("journal recovered changes=%d journal=%s", replayed, orphan.id)
