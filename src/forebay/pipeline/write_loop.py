"""The background worker: takes one batch after the other from the inbox and has it written.

Between them it writes out what processes that are gone have left behind, a little at a time, so that new
changes are not held up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from forebay.pipeline.batch_writer import Writer
from forebay.pipeline.cursor import Cursor
from forebay.pipeline.queue import Batch, Inbox
from forebay.pipeline.recovery import INTERVAL, Recovery


class Owner(Protocol):
    """Whose changes the worker writes; see the engine."""

    @property
    def cursor(self) -> Cursor:
        """Where what the batches carry stands in the database."""

    async def look_back(self) -> None:
        """Now and then, while nothing is written: is the database still where it was left?"""

    async def refill(self) -> None:
        """Bring spilled changes back into the inbox."""

    def batch_settled(self) -> None:
        """Every row of a batch that the inbox gave out is written or given up."""


class Worker:
    """Runs until it is cancelled."""

    def __init__(
        self,
        inbox: Inbox,
        writer: Writer,
        recovery: Recovery | None,
        owner: Owner,
        clock: Callable[[], float],
    ) -> None:
        self._inbox = inbox
        self._writer = writer
        self._recovery = recovery
        self._owner = owner
        self._clock = clock
        self._sleep: asyncio.Future[None] | None = None
        self._due: float | None = None
        self._noticed = False
        self._look_at = clock() + INTERVAL

    def notice(self, *, now: bool) -> None:
        """Something was queued; `now`: a batch is ready, so the linger must not be slept through."""
        self._noticed = True
        if now or self._due is None:
            self._wake()

    def look_now(self) -> None:
        """The database is not where it was left, as it seems."""
        self._look_at = self._clock()
        self._noticed = True
        self._wake()

    async def run(self) -> None:
        """Write batches as they get ready, and between them what was left behind."""
        while True:
            self._noticed = False
            if self._inbox.wants_refill:
                await self._owner.refill()
            ready = self._inbox.poll(self._clock())
            if isinstance(ready, Batch):
                await self._writer.write(ready, self._owner.cursor)
                self._inbox.done(ready)
                self._owner.batch_settled()
            recovered = self._recovery is not None and await self._recovery.advance()
            if not isinstance(ready, Batch) and self._clock() >= self._look_at:
                self._look_at = self._clock() + INTERVAL
                await self._owner.look_back()
            # What came while recovery was looking around is not in what was polled before.
            if not recovered and not self._noticed and not isinstance(ready, Batch):
                await self._rest(ready)

    async def _rest(self, due: float | None) -> None:
        loop = asyncio.get_running_loop()
        self._sleep, self._due = loop.create_future(), due
        if self._recovery is not None:
            due = min(due, self._recovery.due) if due is not None else self._recovery.due
        alarm = loop.call_later(max(0.0, due - self._clock()), self._wake) if due is not None else None
        try:
            await self._sleep
        finally:
            self._sleep = None
            if alarm is not None:
                alarm.cancel()

    def _wake(self) -> None:
        if self._sleep is not None and not self._sleep.done():
            self._sleep.set_result(None)
