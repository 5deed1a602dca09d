"""A standby of the PostgreSQL server, which answers reads for as long as it has what this process wrote.

The read itself asks for the checkpoints of this process, in its own snapshot: so it is right whichever server answers,
one that lags, was restored, has gone ways of its own or is another cluster. What it does not have, the primary answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import secrets
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from typing_extensions import override

from forebay.database import error_codes
from forebay.database.bookmarks import Bookmarks
from forebay.database.checkpoint import TOKEN_BITS, Checkpoint, CheckpointMoved, Position
from forebay.database.connections.endpoint import Endpoint
from forebay.database.connections.pool import Connections
from forebay.database.sql.statement import BOOKMARKS, Statement
from forebay.database.translation import translated
from forebay.errors import DatabaseError, RowError, StatementError, TransientError
from forebay.model.changes import Change

logger = logging.getLogger("forebay.replica")

_RETRY = 5.0  # seconds in which a standby that failed is left alone
_REMINDER = 30.0  # seconds
# The primary is there to answer instead, so there is less patience than with it. Seconds.
_CONNECT_TIMEOUT = 2.0  # also for whoever looks whether a standby that failed is back
_READ_TIMEOUT = 10.0
# A standby that was behind for so long may wait for what is nowhere any more. Seconds.
_DOUBT = 10.0


class Primary(Protocol):
    """What is needed of the primary. See `store`."""

    async def apply(
        self, changes: Sequence[Change], checkpoint: Checkpoint | None = None, *, apart: bool = False
    ) -> object:
        """Write them. Raises CheckpointMoved, or a DatabaseError."""

    async def position(self, journal_id: str) -> Position:
        """Where a journal stands. Raises a DatabaseError."""


class Replica:
    """A standby. `reads` counts by outcome; `bookmarks` says what it must have."""

    def __init__(
        self,
        endpoint: Endpoint,
        statement_timeout: float,
        bookmarks: Bookmarks,
        primary: Primary,
        most_connections: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.engine = endpoint.engine
        self.location = endpoint.location
        self.reads: Counter[str] = Counter()
        self._connections = Connections(endpoint, most_connections, _CONNECT_TIMEOUT)
        self._read_timeout = min(statement_timeout, _READ_TIMEOUT)
        self._bookmarks = bookmarks
        self._primary = primary
        self._clock = clock
        self._mark = uuid.uuid4().hex, Position()  # a checkpoint of no journal, and where it stands
        self._marking: asyncio.Task[None] | None = None
        self._behind_since: float | None = None
        self._failing_since: float | None = None
        self._reminded = 0.0
        self._retry_at = 0.0

    @override
    def __repr__(self) -> str:
        return f"<Replica {self.location} {'failing' if self._failing_since is not None else 'working'}>"

    # ---- reading

    async def fetch(self, statement: Statement, parameters: Mapping[str, Any]) -> list[Any] | None:
        """The statement's rows, or None where the primary must be asked."""
        if not self._may_try():
            self.reads["failed"] += 1
            return None
        if not self._bookmarks.complete:
            self._behind()
            return None
        try:
            rows = await self._fetch(statement, {**parameters, BOOKMARKS: self._bookmarks.encoded()})
        except (RowError, StatementError):  # it is about this read, and the primary will say the same
            self.reads["failed"] += 1
            return None
        except DatabaseError as error:
            self.reads["failed"] += 1
            if not error_codes.is_passing(error):  # as what a standby ends, to go on replaying
                self._fail(error)
            return None
        self._recovered()
        if rows is None:
            self._behind()
            return None
        self.reads["replica"] += 1
        self._behind_since = None
        return rows

    async def _fetch(self, statement: Statement, parameters: Mapping[str, Any]) -> list[Any] | None:
        """The rows; None where it has not all of the bookmarks. Raises a DatabaseError."""
        assert statement.on_standby is not None
        limit = self._read_timeout if self._failing_since is None else _CONNECT_TIMEOUT
        with translated(self.location):
            async with (
                asyncio.timeout(_CONNECT_TIMEOUT) as scope,
                self._connections.held(_CONNECT_TIMEOUT + limit) as held,
            ):
                scope.reschedule(None)  # it is held for so long only
                rows = await held.driver.fetch(statement.on_standby, parameters)
        has_all = rows[0][-1]
        if has_all is None:
            self._connections.endpoint.fitness.condemn()  # its name may lead elsewhere by now
            raise TransientError("the server of FOREBAY_READ_URL is no standby; it must name one")
        return [tuple(row)[:-1] for row in rows] if has_all else None

    # ---- marks

    def _behind(self) -> None:
        """The primary answers; where no checkpoint tells from when on the standby may, there is to be one."""
        self.reads["behind"] += 1
        now = self._clock()
        if self._behind_since is None:
            self._behind_since = now
        if self._bookmarks.lack_one or now - self._behind_since >= _DOUBT:
            self._behind_since = now
            self._mark_soon()

    def _mark_soon(self) -> None:
        loop = asyncio.get_running_loop()
        if self._marking is None or self._marking.done() or self._marking.get_loop() is not loop:
            # An empty context: the reader's would keep its Chainlit session alive.
            self._marking = loop.create_task(
                self._mark_if_needed(), name="forebay-mark", context=contextvars.Context()
            )

    async def _mark_if_needed(self) -> None:
        with contextlib.suppress(DatabaseError):  # a later read has it tried again
            if self._bookmarks.lack_one or await self._are_gone():
                await self._move_mark()

    async def _are_gone(self) -> bool:
        """Whether even the primary does not stand where it did: no standby will."""
        for journal_id, position in self._bookmarks.positions.items():
            if (await self._primary.position(journal_id)).seq < position.seq:
                return True
        return False

    async def _move_mark(self) -> None:
        for _ in range(2):
            journal_id, before = self._mark
            step = Checkpoint(journal_id, before, Position(before.seq + 1, secrets.randbits(TOKEN_BITS) + 1))
            try:
                await self._primary.apply([], step, apart=True)
            except CheckpointMoved:  # an answer was lost, or the database has gone back
                self._mark = uuid.uuid4().hex, Position()
            else:
                self._mark = journal_id, step.after
                return

    # ---- failing

    def _may_try(self) -> bool:
        if self._failing_since is None:
            return True
        now = self._clock()
        if now < self._retry_at:
            return False
        self._retry_at = now + _RETRY  # one looks whether it is back; the others don't wait for that
        return True

    def _fail(self, error: DatabaseError) -> None:
        now = self._clock()
        begins = self._failing_since is None
        if begins:
            self._failing_since = now
        self._retry_at = now + _RETRY
        if begins or now - self._reminded >= _REMINDER:
            self._reminded = now
            logger.warning("replica not used, the primary answers reads reason=%s", error)

    def _recovered(self) -> None:
        if self._failing_since is not None:
            logger.warning("replica used again after=%.1fs", self._clock() - self._failing_since)
            self._failing_since = None

    # ---- life

    async def close(self) -> None:
        """Close every connection."""
        if self._marking is not None:
            self._marking.cancel()
            await asyncio.wait([self._marking])
        await self._connections.close()

    def forget_connections(self) -> None:
        """Drop connections whose event loop is gone; they can't be closed any more."""
        self._marking = None
        self._connections = self._connections.renewed()
