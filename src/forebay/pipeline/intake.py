"""Where changes come in: each gets its place at once, in the queue or in the journal alone, or is refused.

Everything up to the queue is synchronous, so that the order of the calls is the order of the writes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import chain
from typing import Any

import anyio
from typing_extensions import override

from forebay.errors import ForebayError, JournalError, QueueFull, RowError
from forebay.journal.journal import Journal
from forebay.model.changes import Change
from forebay.pipeline.alarm import Alarm
from forebay.pipeline.barrier import Barrier
from forebay.pipeline.batch_writer import Writer
from forebay.pipeline.home import Home
from forebay.pipeline.lanes import Lanes
from forebay.pipeline.own_journal import OwnJournal
from forebay.pipeline.queue import Inbox, Waiting
from forebay.pipeline.quotas import LARGE, Quotas
from forebay.pipeline.refusals import Refusals
from forebay.pipeline.tombstones import Tombstones
from forebay.pipeline.waiters import Commits
from forebay.primitives.awaitables import NOTHING, Deferred
from forebay.primitives.futures import fail, quiet_future, settle, settle_with
from forebay.settings import Settings
from forebay.telemetry.collector import Metrics
from forebay.telemetry.counters import Counts

logger = logging.getLogger("forebay.engine")

_Durable = asyncio.Future[None] | None  # None: there is nothing to wait for
_Tickets = tuple[asyncio.Future[None], ...]


class Intake:
    """Takes changes for `inbox`, as durable as the settings say, within their bounds."""

    def __init__(
        self,
        settings: Settings,
        inbox: Inbox,
        own: OwnJournal,
        lanes: Lanes,
        tombstones: Tombstones,
        barrier: Barrier,
        home: Home,
        alarm: Alarm,
        refusals: Refusals,
        counts: Counts,
        metrics: Metrics,
        clock: Callable[[], float],
        whose: Callable[[], str],
    ) -> None:
        self.settings = settings
        self._inbox = inbox
        self._own = own
        self._lanes = lanes
        self._tombstones = tombstones
        self._barrier = barrier
        self._home = home
        self._alarm = alarm
        self._refusals = refusals
        self._counts = counts
        self._metrics = metrics
        self._clock = clock
        self._quotas = Quotas(settings, whose, journaled=own.kept)
        self._commits = Commits()
        self._spilled_tickets: dict[int, _Tickets] = {}

    @override
    def __repr__(self) -> str:
        return f"<Intake of {self._inbox!r}>"

    # ---- a change comes

    async def write(self, change: Change, *, committed: bool = False) -> bool:
        """Queue a change; its place is fixed before the first await. False: its thread was deleted before.

        Returns when it is as durable as the settings say, or, with `committed`, when its transaction has
        committed. Raises QueueFull, JournalError, and with `committed` or `durability=commit` the RowError of
        a row that the database refuses.
        """
        self._home.ensure()
        if self._tombstones.drops(change):
            return False
        await self._take(change, committed=committed)
        return True

    def submit(self, change: Change, *, committed: bool = False) -> Awaitable[None]:
        """As `write`, with the place fixed when this returns; who waits for it gets None. To be called at home.

        What waits for the journal is then the caller alone. Each coroutine more has to be fetched from memory
        when it goes on, which costs as much as to queue the change.
        """
        try:
            self._home.ensure()
        except ForebayError as error:
            self._refusals.note(error)
            raise
        return NOTHING if self._tombstones.drops(change) else self._take(change, committed=committed)

    def _take(self, change: Change, *, committed: bool) -> Awaitable[None]:
        enter = self._enter if change.size < LARGE else self._enter_large
        if not committed and self.settings.durability != "commit":
            return enter(change)
        ticket = quiet_future(self._home.ensure())
        entered = enter(change, (ticket,), now=committed)
        return Deferred(partial(_both, entered, ticket))

    def _enter_large(self, change: Change, tickets: _Tickets = (), *, now: bool = False) -> Awaitable[None]:
        """As `_enter`, within what one person may have on its way."""
        is_idle = not self._inbox.waiting and self._inbox.applied_seq >= self._inbox.accepted_seq
        if is_idle and self._own.is_quiet:
            self._quotas.clear()  # whatever was forgotten, say in an event loop that has ended
        try:
            held = self._quotas.hold(change, self._home.ensure())
        except QueueFull as error:
            raise self._refusals.note_full(change, error, "person_full") from None
        try:
            return held.until(self._enter(change, (*tickets, held.written), now=now))
        except BaseException:
            held.end()
            raise

    def _enter(self, change: Change, tickets: _Tickets = (), *, now: bool = False) -> Awaitable[None]:
        """Queue a change, at once; to be awaited until it is as durable as the settings say, but for `commit`."""
        started = self._clock()
        taken, durable = self._accept(change, started, tickets)
        if not taken:
            waiting = self._stand(change, tickets)
            return Deferred(partial(self._enter_late, waiting, started, now=now))
        self._entered(started, now=now)
        return durable if durable is not None else NOTHING

    async def _enter_late(self, waiting: Waiting, started: float, *, now: bool) -> None:
        durable = await self._wait_for_room(waiting)
        self._entered(started, now=now)
        if durable is not None:
            await durable

    def _entered(self, started: float, *, now: bool) -> None:
        self._metrics.enqueue_duration.observe(self._clock() - started)
        if now:
            self._inbox.hurry()
        self._alarm.notice(now=now or self._inbox.has_ready_batch)

    # ---- its place

    def _accept(self, change: Change, now: float, tickets: _Tickets) -> tuple[bool, _Durable]:
        """Take a change, if there is room: whether it is taken, and the future of its being durable."""
        if self._lanes.is_full and self._lanes.refuses(change):
            error = QueueFull("the database holds its thread up, and no more that waits for it is kept")
            raise self._refusals.note_full(change, error, "thread_held_up")
        journal = (self._own.journal or self._open_journal()) if self._own.kept else None
        if not self._own.is_external:
            seq = self._inbox.offer(change, now, tickets)
            if seq is not None:
                return True, self._journaled(seq, change)
        if journal is None or self._inbox.waiting or not self._has_room(change):
            return False, None
        return True, self._spilled(self._inbox.spill(change), change, tickets)

    def _open_journal(self) -> Journal:
        try:
            return self._own.open(self._not_journaled, self._journal_answered)
        except JournalError as error:
            self._refusals.note(error)
            raise

    def _has_room(self, change: Change) -> bool:
        return self._own.has_room(change, self._lanes.size)

    def _journaled(self, seq: int, change: Change) -> _Durable:
        """Put a change that is queued on the disk; where that has no room or stalls, the database makes it last."""
        journal = self._own.journal
        if journal is None:
            return None
        if self._own.has_room(change, self._lanes.size):
            return journal.append(seq, change)
        waiter = quiet_future(self._home.ensure())
        self._commits.join(seq, change.key, waiter)
        return waiter

    def _spilled(self, seq: int, change: Change, tickets: _Tickets) -> _Durable:
        """Keep a change in the journal alone, until `refill` or until another process has written it."""
        assert self._own.journal is not None
        if not self._own.is_external:
            self._counts.spilled += 1
        if tickets:
            self._spilled_tickets[seq] = tickets
        return self._own.journal.append(seq, change)

    # ---- at the door of a full queue

    def _stand(self, change: Change, tickets: _Tickets) -> Waiting:
        """Take a place at the door of a full queue. Raises QueueFull where too many stand there."""
        try:
            return self._inbox.wait(change, tickets, self._home.ensure().create_future())
        except QueueFull as error:
            raise self._refusals.note_full(change, error) from None

    async def _wait_for_room(self, waiting: Waiting) -> _Durable:
        try:
            with anyio.fail_after(self.settings.queue_timeout):
                durable: _Durable = await waiting.token
        except TimeoutError:
            self._inbox.give_up(waiting)
            error = QueueFull("the queue stayed full; the database is too slow or unreachable")
            raise self._refusals.note_full(waiting.change, error) from None
        except asyncio.CancelledError:
            if waiting.seq is None:
                self._inbox.give_up(waiting)
                self._refusals.note_cancelled()
            raise
        return durable

    def _admit(self) -> None:
        for waiting in self._inbox.admit(self._clock(), self._has_room, spill_only=self._own.is_external):
            assert waiting.seq is not None
            durable: _Durable = None
            if waiting.spilled:
                durable = self._spilled(waiting.seq, waiting.change, waiting.tickets)
            else:
                durable = self._journaled(waiting.seq, waiting.change)
            # A future as the result of a future: what the caller waits for next.
            settle_with(waiting.token, durable)

    # ---- what becomes of it

    def batch_settled(self) -> None:
        """More of what was taken is written, or given up: there is room, and whoever waits for it goes on."""
        self._own.trim(self._inbox.applied_seq)
        if self._inbox.waiting:
            self._admit()
        self._reached()

    def _reached(self) -> None:
        applied_seq = self._inbox.applied_seq
        self._barrier.reached(applied_seq)
        self._commits.reached(applied_seq)
        if self._own.journal is not None:
            self._own.journal.written(applied_seq)
        if self._own.is_external:
            for seq in [seq for seq in self._spilled_tickets if seq <= applied_seq]:
                for ticket in self._spilled_tickets.pop(seq):
                    settle(ticket, None)

    def _journal_answered(self) -> None:
        """The disk has taken something, or given up: whoever stands at the door may come in."""
        if self._own.is_quiet:
            self._commits.answered()
        if self._inbox.waiting:
            self._admit()
            self._alarm.notice(now=self._inbox.has_ready_batch)

    def _not_journaled(
        self, seq: int, key: str, waiter: asyncio.Future[None] | None, error: JournalError
    ) -> None:
        """The disk has not taken a change: it is made all the same where it is queued too, and lost elsewhere."""
        if seq > self._inbox.queued_seq:
            self._lose(seq)
            if waiter is not None:
                fail(waiter, error)
        elif waiter is not None:
            self._commits.join(seq, key, waiter)
        self._reached()

    def not_kept(self, change: Change, error: RowError) -> None:
        """No letter holds a row that was refused: where the journal has it not either, it was not made."""
        batch_seq = self._inbox.in_flight_seq
        if batch_seq is not None:
            self._commits.refused(change.key, batch_seq, error, is_quiet=self._own.is_quiet)

    async def refill(self, writer: Writer) -> None:
        """Bring spilled changes back into the queue; `writer` tells while the disk does not give them back."""
        journal = self._own.journal
        assert journal is not None
        # A little at a time: in memory a change takes up several times what it does on the disk.
        room = max(1, (self.settings.queue_max_bytes - self._inbox.size) // 8)
        durable_seq = journal.durable_seq
        # A disk that does not give them back may yet do so, and what comes after them must not overtake.
        records = await writer.until_answered(partial(journal.read, self._inbox.queued_seq, room))
        for seq, change in records:
            self._lose_unreadable(seq - 1)
            self._inbox.refill(seq, change, self._clock(), self._spilled_tickets.pop(seq, ()))
        if not records:
            self._lose_unreadable(durable_seq)
            self._inbox.queued_seq = max(self._inbox.queued_seq, durable_seq)
            await journal.synced()  # what is spilled is on its way to the disk

    def _lose_unreadable(self, last_seq: int) -> None:
        """The disk does not give back what was spilled up to here."""
        first_seq = self._inbox.queued_seq + 1
        missing = [seq for seq in range(first_seq, last_seq + 1) if not self._inbox.is_lost(seq)]
        if missing:
            logger.critical(
                "journal damaged changes=%d; see the disk that holds FOREBAY_JOURNAL_DIR", len(missing)
            )
        for seq in missing:
            self._lose(seq)
        self._reached()

    def _lose(self, seq: int) -> None:
        """A spilled change is nowhere any more; whoever waits for it is told."""
        for ticket in self._spilled_tickets.pop(seq, ()):
            fail(ticket, JournalError("the journal does not give the change back"))
        self._inbox.lose(seq)

    # ---- its end

    def rebind(self) -> None:
        """Go on in another event loop with what was queued; nobody waits in the one before."""
        self._inbox.take_back()
        self._commits.rebind()
        self._quotas.clear()

    def close(self, error: ForebayError) -> None:
        """Nothing is written any more: whoever waits for a row, for the disk or at the door is told."""
        self._commits.fail(error)
        waiting: chain[Any] = chain(
            self._inbox.abandon(), chain.from_iterable(self._spilled_tickets.values())
        )
        for future in waiting:
            fail(future, error)


async def _both(entered: Awaitable[None], ticket: asyncio.Future[None]) -> None:
    await entered
    # The change stays queued whatever becomes of the caller.
    await asyncio.shield(ticket)
