"""Writing out the journals in a folder from outside: what `forebay drain` does, once or as a daemon.

Journals of processes that are gone are written out and removed. With `watch`, those of living processes with
`writer=external` are followed as well, and their owners see how far it has come.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from forebay.database.store import Store
from forebay.errors import DatabaseError, JournalError, LayerClosed
from forebay.journal.dead_letters import DeadLetters
from forebay.journal.journals import Journals
from forebay.journal.orphan import Orphan, journal_paths, let_go, reason_of
from forebay.journal.side_journal import SideJournal
from forebay.pipeline.batch_writer import Writer
from forebay.pipeline.kept_journals import KeptJournals
from forebay.pipeline.lanes import Lanes
from forebay.pipeline.letterbox import Letterbox
from forebay.pipeline.queue import Batch
from forebay.pipeline.replay import Replay, begin
from forebay.pipeline.tombstones import Tombstones
from forebay.settings import Settings
from forebay.telemetry.collector import Metrics
from forebay.telemetry.counters import Counts

logger = logging.getLogger("forebay.drain")

# Seconds between two looks: at the journals that are followed, and for new ones.
_POLL_BUSY, _POLL_IDLE = 0.002, 0.01
_BUSY_FOR = 5.0
_LOOK_FOR_JOURNALS = 0.25
_LOOK_FOR_OWNER = 0.5
_LOOK_FOR_LETTERS = 5.0


@dataclass(slots=True)
class _Followed:
    """A journal that this process writes out. `owned`: its owner was alive when that was looked at last.

    `told_seq`: up to where its owner has been told before that it is written. `ended`: it is read to its end.
    """

    journal: Orphan
    replay: Replay
    owned: bool
    told_seq: int = 0
    looked: float = 0.0
    ended: bool = False

    def is_left(self) -> bool:
        """Whether its owner has ended, now that this is asked; who has does not come back."""
        self.owned = self.owned and self.journal.owned
        return not self.owned

    def tell(self) -> None:
        """Let its owner know how far it is written, and what has to stay: also what is being written once more."""
        progress, at, read_seq = self.journal.progress, self.replay.cursor, self.replay.read_seq
        must_stay = at.is_held or read_seq < self.told_seq
        if progress is not None and progress.hold(at.at.seq if must_stay else None):
            progress.applied = read_seq

    @property
    def has_more(self) -> bool:
        """Whether there may be something to read."""
        progress = self.journal.progress
        return not self.owned or progress is None or progress.durable > self.replay.read_seq


class Drain:
    """Writes the journals in `folder` to the store's database.

    `any_database`: also those that were made for another one. `journals` and `changes` count what it has
    written out; `failure` is why it can't at present.
    """

    def __init__(
        self,
        folder: Path,
        store: Store,
        settings: Settings,
        metrics: Metrics,
        *,
        any_database: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.journals = 0
        self.changes = 0
        self.counts = Counts()
        self._folder = folder
        self._journals = Journals(folder, clock)
        self._store = store
        self._batch_bytes = settings.batch_max_bytes
        self._location = None if any_database else store.label
        self.letterbox = Letterbox(
            DeadLetters(folder, settings.dead_letters_max_bytes),
            store,
            self.counts,
            clock,
            make_log=self._new_log,
        )
        self._clock = clock
        self._followed: dict[str, _Followed] = {}
        self._writer = Writer(
            store,
            self.counts,
            metrics,
            Tombstones(self.counts),
            clock,
            keep=self.letterbox.keep,
            keep_is_vital=True,
            pending=lambda: self.pending,
            on_failure=lambda error: self._tell_owners(failing=error is not None),
        )
        self._keeps = False  # what is written out, for a while
        self._kept = KeptJournals(store, settings.journal_keep, settings.journal_keep_bytes, clock)
        self._lanes = self._writer.lanes = Lanes(
            self._new_log,
            self._kept,
            store,
            self._writer,
            self.counts,
            clock,
            max_bytes=settings.journal_max_bytes // 4,
            on_change=self._tell_what_is_parked,
        )
        metrics.observe(self.counts, self, lambda: self.failure is None, clock, lanes=self._lanes)

    def _new_log(self) -> SideJournal:
        return SideJournal(self._folder, self._store.label, self._store.database_id)

    @property
    def failure(self) -> DatabaseError | JournalError | None:
        """Why nothing is written at present; None while it is."""
        return self._writer.failure

    async def run(self, stop: asyncio.Event | None = None) -> None:
        """Return when nothing is left that could be written out.

        With `stop`, watch the folder until that is set and the processes that are followed have ended. Raises a
        DatabaseError when the database can't be used at the start.
        """
        await self._store.prepare()
        self._keeps = stop is not None
        try:
            await (self._once() if stop is None else self._watch(stop))
        finally:
            for followed in self._followed.values():
                followed.journal.release()
            self._followed.clear()
            await self._lanes.close(LayerClosed("the journals are not written out any more"))
            await self.letterbox.close()
            await self._kept.close()

    async def _once(self) -> None:
        while await self._adopt_all(owned=False):
            while self._followed:
                wrote = [await self._advance(followed) for followed in list(self._followed.values())]
                if self._followed and not any(wrote):
                    await self._give_back()
        await self._lanes.tried()  # what is held up stays for another time, in a journal of its own

    async def _give_back(self) -> None:
        """What is written out but for a row that was refused and can't be kept stays for another time."""
        for followed in [followed for followed in self._followed.values() if followed.ended]:
            await self._park(followed, f"a row that was refused can't be kept: {self.letterbox.failure}")

    async def _watch(self, stop: asyncio.Event) -> None:
        looked = worked = counted = 0.0
        while self._followed or not stop.is_set():
            now = self._clock()
            if now - looked >= _LOOK_FOR_JOURNALS:
                await self._adopt_all(owned=True)
                looked = now
            if now - counted >= _LOOK_FOR_LETTERS:
                await self.letterbox.count()
                counted = now
            wrote = [await self._advance(followed) for followed in list(self._followed.values())]
            if any(wrote):
                worked = self._clock()
            else:
                if stop.is_set():
                    await self._give_back()
                await asyncio.sleep(_POLL_BUSY if now - worked < _BUSY_FOR else _POLL_IDLE)

    async def _adopt_all(self, *, owned: bool) -> bool:
        """Take every journal that nobody writes out; whether there was one."""
        found = False
        while True:
            held = tuple(self._followed)
            journal = await asyncio.to_thread(
                self._journals.adopt, self._location, self._store.database_id, owned=owned, but=held
            )
            self._count()
            if journal is None:
                return found
            found = True
            await self._follow(journal)

    def _count(self) -> None:
        self.counts.journals_parked = len(self._journals.parked)
        self.counts.journals_left_alone = len(self._journals.left_alone)

    async def _follow(self, journal: Orphan) -> None:
        replay = await begin(journal, self._store, self._writer, self.counts, self._clock)
        is_owned = journal.owned
        told_seq = journal.progress.applied if journal.progress is not None and is_owned else 0
        followed = self._followed[journal.id] = _Followed(journal, replay, is_owned, told_seq)
        followed.tell()
        if journal.progress is not None:
            journal.progress.failing = False
            journal.progress.park(self._lanes.threads)
        logger.info("journal adopted journal=%s owned=%s", journal.id, is_owned)

    async def _advance(self, followed: _Followed) -> bool:
        """Write one batch of a journal, if there is one; whether there was. One that can't be read is parked."""
        try:
            return await self._advance_one(followed)
        except JournalError as error:
            reason = str(error)
        except OSError as error:
            reason = f"a journal can't be looked at ({reason_of(error)})"
        await self._park(followed, reason)
        return True

    async def _park(self, followed: _Followed, reason: str) -> None:
        self._followed.pop(followed.journal.id, None)
        await asyncio.to_thread(self._journals.park, followed.journal, reason)
        self._count()

    async def _advance_one(self, followed: _Followed) -> bool:
        if followed.ended:
            if not followed.replay.cursor.is_held:
                await self._finish(followed)
            return False
        if not followed.has_more:
            followed.tell()
            self._look_for_owner(followed)
            return False
        # What an owner left behind goes beneath what has been written since: its threads may go on elsewhere.
        is_left = followed.is_left()
        written = await followed.replay.advance(self._batch_bytes, late=followed.is_left)
        if written:
            self.changes += written
            followed.tell()
        elif is_left:
            followed.ended = True
            return await self._advance_one(followed)
        return bool(written)

    def _look_for_owner(self, followed: _Followed) -> None:
        now = self._clock()
        if now - followed.looked < _LOOK_FOR_OWNER:
            return
        followed.looked = now
        if not followed.journal.exists:  # closed in good order, with nothing left
            followed.journal.release()
            del self._followed[followed.journal.id]
            self.journals += 1
        else:
            followed.owned = followed.journal.owned

    async def _finish(self, followed: _Followed) -> None:
        journal_id = followed.journal.id
        is_gone = not followed.journal.damaged
        if self._keeps:
            await self._kept.add(followed.journal, followed.replay.cursor)
        else:
            await asyncio.to_thread(let_go, followed.journal)
        del self._followed[journal_id]
        self._journals.finished(followed.journal)
        self._count()
        if not is_gone:
            return
        self.journals += 1
        logger.warning("journal written out journal=%s", journal_id)
        await self._writer.until_answered(self._store.clear_checkpoints)

    @property
    def parked(self) -> dict[str, str]:
        """Why a journal could not be dealt with, by its id."""
        return {journal_id: parked.reason for journal_id, parked in self._journals.parked.items()}

    def left(self) -> list[Path]:
        """The journals that are still in the folder, in use or not, and those that were damaged."""
        return [*journal_paths(self._folder), *sorted(self._folder.glob("*.damaged"))]

    # ---- what the metrics read, as off an inbox

    size = 0
    max_bytes = 0

    @property
    def pending(self) -> int:
        """Rows that are being written."""
        return sum(len(batch.ops) for batch in self._in_flight())

    def oldest(self) -> float | None:
        """When the oldest of them was read."""
        return min((batch.oldest for batch in self._in_flight()), default=None)

    def _in_flight(self) -> list[Batch]:
        return [followed.replay.batch for followed in self._followed.values() if followed.replay.batch]

    def _tell_owners(self, *, failing: bool) -> None:
        for followed in self._followed.values():
            if followed.journal.progress is not None:
                followed.journal.progress.failing = failing

    def _tell_what_is_parked(self) -> None:
        for followed in self._followed.values():
            if followed.journal.progress is not None:
                followed.journal.progress.park(self._lanes.threads)

    async def close(self) -> None:
        """Disconnect."""
        with contextlib.suppress(DatabaseError):
            await self._store.close()
