"""The background worker: takes one batch after the other from the inbox and gets it into the database.

A transient error repeats the same batch, for ever and with backoff: nothing overtakes it. A row that the
database refuses is found by halving the batch in order, and only that row is given up.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar

import anyio

from forebay.changes import Change
from forebay.counts import Counts
from forebay.errors import DatabaseError, RowError
from forebay.inbox import Batch, Inbox, Op
from forebay.retry import Backoff
from forebay.store import Checkpoint

logger = logging.getLogger("forebay.writer")

_Answer = TypeVar("_Answer")

# An outage is told when it begins and ends, and this often in between, in seconds.
_REMINDER = 30.0


class Applies(Protocol):
    """What the writer needs of a store."""

    async def apply(self, changes: Sequence[Change], checkpoint: Checkpoint | None) -> list[list[str]]:
        """Write changes in order, all or none; the object keys that each deleted."""

    async def applied_seq(self, journal_id: str) -> int:
        """Up to where a journal is in the database."""


class Observer(Protocol):
    """Who is told how it goes; see the engine."""

    @property
    def journal_id(self) -> str | None:
        """Whose checkpoint the batches carry."""

    async def recover(self) -> None:
        """Before the first batch: what was left behind by a process that is gone."""

    async def refill(self) -> None:
        """Bring spilled changes back into the inbox."""

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
        """Write what was left behind, and then batches as they get ready."""
        await self._observer.recover()
        while True:
            if self._inbox.wants_refill:
                await self._observer.refill()
            ready = self._inbox.poll(self._clock())
            if isinstance(ready, Batch):
                await self.write(ready, self._observer.journal_id)
                self._inbox.done(ready)
                self._observer.batch_settled(ready)
            else:
                await self._rest(ready)

    async def _rest(self, due: float | None) -> None:
        self._sleep, self._due = anyio.Event(), due
        with anyio.move_on_after(None if due is None else max(0.0, due - self._clock())):
            await self._sleep.wait()
        self._sleep = None

    async def write(self, batch: Batch, journal_id: str | None) -> None:
        """Write a batch, however long it takes, and give up the rows that the database refuses."""
        checkpoint = Checkpoint(journal_id, batch.last_seq) if journal_id and batch.last_seq else None
        try:
            deleted = await self._apply(batch, checkpoint)
        except RowError as error:
            await self._isolate(batch, error, journal_id)
            return
        for op, keys in zip(batch.ops, deleted, strict=True):
            self._counts.written[op.change.table] += 1
            self._observer.op_settled(op, keys)

    async def _isolate(self, batch: Batch, error: RowError, journal_id: str | None) -> None:
        if len(batch.ops) > 1:
            for half in batch.halves():
                await self.write(half, journal_id)
            return
        (op,) = batch.ops
        self._counts.dead_lettered[op.change.table, error.sqlstate or "encoding"] += 1
        logger.error("row refused table=%s reason=%s", op.change.table, error)
        self._observer.op_settled(op, error)

    async def _apply(self, batch: Batch, checkpoint: Checkpoint | None) -> list[list[str]]:
        """Try until the database answers yes, or no to a row. Raises RowError for the latter."""

        async def attempt() -> list[list[str]]:
            if checkpoint is not None and self.failure is not None and await self._is_in(checkpoint):
                return [[] for _ in batch.ops]
            started = self._clock()
            deleted = await self._store.apply([op.change for op in batch.ops], checkpoint)
            self._observer.batch_written(batch, self._clock() - started)
            return deleted

        return await self.until_answered(attempt)

    async def until_answered(self, attempt: Callable[[], Awaitable[_Answer]]) -> _Answer:
        """Repeat an attempt for as long as the database can't answer. Raises RowError."""
        while True:
            try:
                answer = await attempt()
            except RowError:
                self._recovered()
                raise
            except DatabaseError as error:
                await self._wait_after(error)
                continue
            self._recovered()
            return answer

    async def _is_in(self, checkpoint: Checkpoint) -> bool:
        """Whether a commit whose answer was lost has happened."""
        return await self._store.applied_seq(checkpoint.journal_id) >= checkpoint.applied_seq

    async def _wait_after(self, error: DatabaseError) -> None:
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
                "writes deferred pending=%d for=%.0fs reason=%s",
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
