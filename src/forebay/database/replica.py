"""A standby of the PostgreSQL server, which answers reads for as long as it has what this process wrote.

After each commit the primary says how long its log (WAL) is. The standby is asked how far it has replayed it, and
only then, in another statement, for the rows: a statement sees what was there when it began. The answer is kept
with the connection, since a URL may lead each connection to another standby.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

import anyio

from forebay.database.connections.drivers import Driver
from forebay.database.connections.endpoint import Endpoint
from forebay.database.connections.pool import Connections
from forebay.database.sql.statement import Statement
from forebay.database.translation import translated
from forebay.errors import DatabaseError, RowError, StatementError, TransientError

logger = logging.getLogger("forebay.replica")

# Where the log ends, with what is not yet on the disk: with synchronous_commit=off that includes commits.
# Behind a record that ends with its page, PostgreSQL tells the place behind the next page's header (24 bytes; 40 at the
# start of a segment), which a standby reaches only with the next record.
WRITTEN = Statement(
    "SELECT place - CASE WHEN place % segment = 40 THEN 40 WHEN place % page = 24 THEN 24 ELSE 0 END FROM ("
    "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint AS place,"
    " current_setting('wal_block_size')::bigint AS page,"
    " pg_size_bytes(current_setting('wal_segment_size')) AS segment) AS log",
    (),
)
# After a promotion PostgreSQL goes on telling the last position that it has replayed.
_REPLAYED = Statement(
    "SELECT CASE WHEN pg_is_in_recovery() THEN pg_wal_lsn_diff(pg_last_wal_replay_lsn(), '0/0')::bigint END",
    (),
)
_TRUSTED = 1.0  # seconds; a standby that was promoted, or hangs, is noticed by then
_RETRY = 5.0  # seconds in which a standby that failed is left alone
_REMINDER = 30.0  # seconds
# The primary is there to answer instead, so there is less patience than with it. Seconds.
_CHECK_TIMEOUT = 2.0
_READ_TIMEOUT = 10.0
_SEEN = "forebay_replayed"


class _Seen(NamedTuple):
    position: int
    at: float


class Replica:
    """A standby. `reads` counts by outcome; `ask_primary` tells how long the primary's log is."""

    def __init__(
        self,
        endpoint: Endpoint,
        statement_timeout: float,
        ask_primary: Callable[[], Awaitable[int]],
        most_connections: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.engine = endpoint.engine
        self.location = endpoint.location
        self._connections = Connections(endpoint, most_connections, _CHECK_TIMEOUT)
        self.reads: Counter[str] = Counter()
        self._read_timeout = min(statement_timeout, _READ_TIMEOUT)
        self._ask_primary = ask_primary
        self._clock = clock
        self._asking = anyio.Lock()
        self._used = False
        # The commits of this process are numbered; up to `_known` they are within `_position` bytes of the log.
        # The first stands for what a process before this one wrote.
        self._commits = 1
        self._known = 0
        self._position = 0
        self._failing_since: float | None = None
        self._reminded = 0.0
        self._retry_at = 0.0

    def __repr__(self) -> str:
        return f"<Replica {self.location} {'failing' if self._failing_since is not None else 'working'}>"

    # ---- what the primary has

    async def committed(self, driver: Driver) -> None:
        """Something was committed on this connection of the primary's: ask it how long the log is."""
        self._commits += 1
        if not self._used:
            return
        commit = self._commits
        # It is committed, whatever comes now; where there is no answer, the next read asks.
        with contextlib.suppress(DatabaseError), translated(self.location, sends_rows=False):
            self._learn(commit, (await driver.fetch(WRITTEN, {}))[0][0])

    def committed_elsewhere(self) -> None:
        """Something was committed, or may have been, on a connection that can't be asked."""
        self._commits += 1

    def _learn(self, commit: int, position: int) -> None:
        self._known = max(self._known, commit)
        self._position = max(self._position, position)

    async def _position_to_reach(self) -> int:
        if self._known < self._commits:
            async with self._asking:
                commit = self._commits
                if self._known < commit:
                    self._learn(commit, await self._ask_primary())
        return self._position

    # ---- reading

    async def fetch(self, statement: Statement, parameters: Mapping[str, Any]) -> list[Any] | None:
        """The statement's rows, or None where the primary must be asked."""
        self._used = True
        if not self._may_try():
            self.reads["failed"] += 1
            return None
        try:
            position = await self._position_to_reach()
        except DatabaseError:  # the primary will say it to the caller
            self.reads["behind"] += 1
            return None
        try:
            rows = await self._fetch(statement, parameters, position)
        except (RowError, StatementError):  # it is about this read, and the primary will say the same
            self.reads["failed"] += 1
            return None
        except DatabaseError as error:
            self.reads["failed"] += 1
            self._fail(error)
            return None
        self.reads["behind" if rows is None else "replica"] += 1
        self._recovered()
        return rows

    async def _fetch(
        self, statement: Statement, parameters: Mapping[str, Any], position: int
    ) -> list[Any] | None:
        with translated(self.location), anyio.fail_after(_CHECK_TIMEOUT) as scope:
            async with self._connections.held(_CHECK_TIMEOUT + self._read_timeout) as held:
                if not await self._has_replayed(held.driver, position):
                    return None
                scope.deadline = anyio.current_time() + self._read_timeout
                return await held.driver.fetch(statement, parameters)
        raise AssertionError("unreachable")

    async def _has_replayed(self, driver: Driver, position: int) -> bool:
        seen: _Seen | None = driver.info.get(_SEEN)
        if seen is None or seen.position < position or self._clock() - seen.at > _TRUSTED:
            at = self._clock()
            replayed = (await driver.fetch(_REPLAYED, {}))[0][0]
            if replayed is None:
                raise TransientError("the server of FOREBAY_READ_URL is no standby; it must name one")
            seen = driver.info[_SEEN] = _Seen(replayed, at)
        return seen.position >= position

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
        await self._connections.close()

    def forget_connections(self) -> None:
        """Drop connections whose event loop is gone; they can't be closed any more."""
        self._connections = self._connections.renewed()
