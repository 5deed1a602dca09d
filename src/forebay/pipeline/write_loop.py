"""The background worker: takes one batch after the other from the queue and has it written.

Between them it writes out what processes that are gone have left behind, a little at a time, so that new
changes are not held up.
"""

from __future__ import annotations

from collections.abc import Callable

from forebay.pipeline.alarm import Alarm
from forebay.pipeline.batch_writer import Writer
from forebay.pipeline.cursor import Cursor
from forebay.pipeline.intake import Intake
from forebay.pipeline.queue import Batch, Inbox
from forebay.pipeline.recovery import INTERVAL, Recovery


class Worker:
    """Runs until it is cancelled. `cursor`: where what the batches carry stands in the database."""

    def __init__(
        self,
        inbox: Inbox,
        intake: Intake,
        writer: Writer,
        cursor: Cursor,
        recovery: Recovery | None,
        alarm: Alarm,
        clock: Callable[[], float],
    ) -> None:
        self._inbox = inbox
        self._intake = intake
        self._writer = writer
        self._cursor = cursor
        self._recovery = recovery
        self._alarm = alarm
        self._clock = clock
        self._look_at = clock() + INTERVAL
        self._doubted = False

    def look_now(self) -> None:
        """A reader has met a database that lacks what was written: look whether it is where it was left."""
        self._doubted = True
        self._look_at = self._clock()
        self._alarm.notice(now=True)

    async def run(self) -> None:
        """Write batches as they get ready, and between them what was left behind."""
        while True:
            self._alarm.noticed = False
            if self._inbox.wants_refill:
                await self._intake.refill(self._writer)
            ready = self._inbox.poll(self._clock())
            if isinstance(ready, Batch):
                await self._writer.write(ready, self._cursor)
                self._inbox.done(ready)
                self._intake.batch_settled()
            recovered = self._recovery is not None and await self._recovery.advance()
            if not isinstance(ready, Batch) and self._clock() >= self._look_at:
                self._look_at = self._clock() + INTERVAL
                doubted, self._doubted = self._doubted, False
                await self._writer.look_back(self._cursor, doubted=doubted)
            # What came while recovery was looking around is not in what was polled before.
            if not recovered and not self._alarm.noticed and not isinstance(ready, Batch):
                await self._alarm.rest(ready, self._recovery.due if self._recovery is not None else None)
