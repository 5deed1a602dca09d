"""The background worker: takes one batch after the other from the inbox and gets it into the database.

A transient error repeats the same batch, for ever and with backoff: nothing overtakes it. A row that the
database refuses is found by halving the batch in order, and only that row is given up.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import anyio

from forebay.changes import Change
from forebay.counts import Counts
from forebay.errors import DatabaseError, RowError
from forebay.inbox import Batch, Inbox, Op
from forebay.retry import Backoff

logger = logging.getLogger("forebay.writer")

# An outage is told when it begins and ends, and this often in between, in seconds.
_REMINDER = 30.0


class Applies(Protocol):
    """What the writer needs of a store."""

    async def apply(self, changes: Sequence[Change]) -> list[list[str]]:
        """Write changes in order, all or none; the object keys that each deleted."""


class Observer(Protocol):
    """Who is told how it goes; see the engine."""

    def batch_written(self, batch: Batch, seconds: float) -> None:
        """An attempt succeeded."""

    def batch_settled(self, batch: Batch) -> None:
        """Every row of a batch that the inbox gave out is written or given up."""

    def op_settled(self, op: Op, result: list[str] | DatabaseError) -> None:
        """A row is written (with the object keys that it deleted) or given up."""

    def batch_failed(self, error: DatabaseError) -> None:
        """An attempt failed and will be repeated."""


class Writer:
    """Runs until it is cancelled. `failure` is why the last attempt failed, None while it works."""

    def __init__(
        self,
        inbox: Inbox,
        store: Applies,
        observer: Observer,
        counts: Counts,
        clock: Callable[[], float],
        backoff: Backoff | None = None,
    ) -> None:
        self.failure: DatabaseError | None = None
        self._inbox = inbox
        self._store = store
        self._observer = observer
        self._counts = counts
        self._clock = clock
        self._backoff = backoff or Backoff()
        self._failing_since = 0.0
        self._reminded = 0.0
        self._sleep: anyio.Event | None = None
        self._due: float | None = None

    def __repr__(self) -> str:
        return f"<Writer {'failing' if self.failure else 'working'}>"

    def notice(self, *, now: bool) -> None:
        """Something was queued; `now`: a batch is ready, so the linger must not be slept through."""
        if self._sleep is not None and (now or self._due is None):
            self._sleep.set()

    async def run(self) -> None:
        """Write batches as they get ready."""
        while True:
            ready = self._inbox.poll(self._clock())
            if isinstance(ready, Batch):
                await self._write(ready)
                self._inbox.done(ready)
                self._observer.batch_settled(ready)
            else:
                await self._rest(ready)

    async def _rest(self, due: float | None) -> None:
        self._sleep, self._due = anyio.Event(), due
        with anyio.move_on_after(None if due is None else max(0.0, due - self._clock())):
            await self._sleep.wait()
        self._sleep = None

    async def _write(self, batch: Batch) -> None:
        try:
            deleted = await self._apply(batch)
        except RowError as error:
            await self._isolate(batch, error)
            return
        for op, keys in zip(batch.ops, deleted, strict=True):
            self._counts.written[op.change.table] += 1
            self._observer.op_settled(op, keys)

    async def _isolate(self, batch: Batch, error: RowError) -> None:
        if len(batch.ops) > 1:
            for half in batch.halves():
                await self._write(half)
            return
        (op,) = batch.ops
        self._counts.dead_lettered[op.change.table, error.sqlstate or "encoding"] += 1
        logger.error("row refused table=%s reason=%s", op.change.table, error)
        self._observer.op_settled(op, error)

    async def _apply(self, batch: Batch) -> list[list[str]]:
        """Try until the database answers yes, or no to a row. Raises RowError for the latter."""
        while True:
            started = self._clock()
            try:
                deleted = await self._store.apply([op.change for op in batch.ops])
            except RowError:
                self._recovered()
                raise
            except DatabaseError as error:
                await self._wait_after(error, batch)
                continue
            self._recovered()
            self._observer.batch_written(batch, self._clock() - started)
            return deleted

    async def _wait_after(self, error: DatabaseError, batch: Batch) -> None:
        now = self._clock()
        if self.failure is None:
            self._failing_since = now
        self.failure = error
        self._counts.retries[type(error).__name__] += 1
        self._observer.batch_failed(error)
        delay = self._backoff.next_delay()
        if self._backoff.attempts == 1 or now - self._reminded >= _REMINDER:
            self._reminded = now
            logger.error(
                "writes deferred rows=%d pending=%d for=%.0fs reason=%s",
                len(batch.ops),
                self._inbox.pending,
                now - self._failing_since,
                error,
            )
        await anyio.sleep(delay)

    def _recovered(self) -> None:
        if self.failure is not None:
            logger.warning("writes resumed after=%.1fs", self._clock() - self._failing_since)
        self.failure = None
        self._backoff.reset()


def settle_tickets(tickets: Iterable[Any], result: list[str] | DatabaseError) -> None:
    """Tell the futures that wait for a row what became of it."""
    for ticket in tickets:
        if ticket.done():
            continue
        if isinstance(result, DatabaseError):
            ticket.set_exception(result)
        else:
            ticket.set_result(result)
