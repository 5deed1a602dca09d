"""What stands between what was written and who reads it: readers of a thread, and `flush`, wait until it is in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from typing_extensions import override

from forebay.database.sql.statement import Statement
from forebay.database.store import Store
from forebay.errors import ForebayError, ThreadHeldUp, TransientError
from forebay.pipeline.alarm import Alarm
from forebay.pipeline.home import Home
from forebay.pipeline.lanes import Lanes
from forebay.pipeline.own_journal import OwnJournal
from forebay.pipeline.queue import Inbox
from forebay.pipeline.recovery import Recovery
from forebay.pipeline.waiters import Waiters
from forebay.telemetry.collector import Metrics

_NEVER = 2**63  # no change has this number


class Barrier:
    """Lets a read through when what was written before it is in the database.

    `failure`: why nothing is written at present, for which reads fail at once; None while it is.
    """

    def __init__(
        self,
        inbox: Inbox,
        own: OwnJournal,
        lanes: Lanes,
        recovery: Recovery | None,
        store: Store,
        home: Home,
        alarm: Alarm,
        metrics: Metrics,
        clock: Callable[[], float],
    ) -> None:
        self.failure: ForebayError | None = None
        self._inbox = inbox
        self._own = own
        self._lanes = lanes
        self._recovery = recovery
        self._store = store
        self._home = home
        self._alarm = alarm
        self._metrics = metrics
        self._clock = clock
        self._readers = Waiters()
        self._flushes = Waiters()

    @override
    def __repr__(self) -> str:
        return f"<Barrier {len(self._readers)} readers, {len(self._flushes)} flushes>"

    # ---- who comes to it

    async def settle(self, thread_id: str | None) -> None:
        """Return when everything that was queued for the thread (None: for any) is in the database.

        Raises TransientError at once while the database can't be written to, and ThreadHeldUp while it holds this
        thread up. Who reads of many does not wait for what is held up.
        """
        self._home.ensure()
        if self._recovery is not None and not self._recovery.done_once.is_set():
            await self._wait_for(self._recovery)
        seq = self._inbox.ticket_for(thread_id)
        if seq is not None:
            if self.failure is not None:
                raise _unreadable(self.failure)
            started = self._clock()
            await self._applied(seq, self._readers)
            self._metrics.settle_duration.observe(self._clock() - started)
        if thread_id is not None and (self._lanes.open or self._own.is_external):
            await self._pass_lanes(thread_id)

    async def settle_step(self, step_id: str) -> None:
        """As `settle`, for who reads one step and does not know its thread."""
        await self.settle(None)
        await self._lanes.settle_step(step_id)

    async def _pass_lanes(self, thread_id: str) -> None:
        progress = self._own.journal.progress if self._own.journal is not None else None
        if progress is not None:
            if progress.has_news:
                self._store.committed_elsewhere()
            if progress.is_parked(thread_id):
                raise ThreadHeldUp("`forebay drain` can't write this thread at present, others it can")
        await self._lanes.settle(thread_id)

    async def _wait_for(self, recovery: Recovery) -> None:
        """What a process before this one has acknowledged should be seen, but a long journal must not block."""
        if self.failure is not None:
            raise _unreadable(self.failure)
        patience = recovery.patience()
        if patience <= 0:
            return
        recovered = asyncio.ensure_future(recovery.done_once.wait())
        failed = self._readers.add(_NEVER, self._home.ensure())
        try:
            await asyncio.wait((recovered, failed), timeout=patience, return_when=asyncio.FIRST_COMPLETED)
            if failed.done():
                failed.result()
        finally:
            recovered.cancel()
            failed.cancel()

    async def flush(self, *, leaves_held_up: bool = False) -> None:
        """Return when everything that was accepted is in the database, or given up as a refused row.

        `leaves_held_up`: but for what the database does not take of threads that it holds up.
        """
        self._home.ensure()
        if self._inbox.applied_seq < self._inbox.accepted_seq:
            await self._applied(self._inbox.accepted_seq, self._flushes)
        if self._lanes.open:
            await (self._lanes.tried() if leaves_held_up else self._lanes.written())

    async def _applied(self, seq: int, waiters: Waiters) -> None:
        done = waiters.add(seq, self._home.ensure())
        self._inbox.hurry()
        self._alarm.notice(now=True)
        await done

    async def read(self, statement: Statement, **parameters: Any) -> Any:
        """Run a read. Raises a DatabaseError."""
        self._home.ensure()
        return await self._store.read(statement, **parameters)

    async def write_now(self, statement: Statement, **parameters: Any) -> Any:
        """Run a write that nothing queued depends on, and that returns what it stored."""
        self._home.ensure()
        return await self._store.write(statement, **parameters)

    # ---- who opens it

    def reached(self, applied_seq: int) -> None:
        """Everything up to here is written, or given up."""
        self._readers.reached(applied_seq)
        self._flushes.reached(applied_seq)

    def note(self, failure: ForebayError | None) -> None:
        """Nothing is written at present, or, with None, it is again. Readers fail at once; `flush` goes on waiting."""
        self.failure = failure
        if failure is not None:
            self._readers.fail(_unreadable(failure))

    def rebind(self) -> None:
        """Go on in another event loop; nobody waits in the one before."""
        self._readers, self._flushes = Waiters(), Waiters()

    def close(self, error: ForebayError) -> None:
        """Nothing is written any more: whoever waits is told."""
        self._readers.fail(error)
        self._flushes.fail(error)


def _unreadable(error: ForebayError) -> TransientError:
    return TransientError(
        f"what was written before can't be read yet: {error}", location=getattr(error, "location", None)
    )
