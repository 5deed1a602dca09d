"""Lending connections: at most so many, in the order in which they were asked for, and only those that are fit."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import anyio
from sqlalchemy.ext.asyncio import AsyncConnection

from forebay.database import error_codes
from forebay.database.connections.drivers import Driver
from forebay.database.connections.endpoint import DRIVER, Endpoint
from forebay.database.connections.opening import end_soon
from forebay.database.sql.statement import Statement
from forebay.database.translation import IN_USE, is_lost, sqlstate_of, translate
from forebay.errors import DatabaseError, TransientError

# The database has no room for another connection: how long nobody asks for one, in seconds.
_NO_ROOM = 1.0
_TRIES_FOR_ROOM = 10  # within that time, where no connection exists that could be waited for


@dataclass(slots=True, eq=False)
class Held:
    """A connection as SQLAlchemy has it, and the driver's own below it."""

    connection: AsyncConnection
    driver: Driver


class Connections:
    """At most `most` connections to an endpoint.

    One is kept at hand: fetching it from the pool costs half as much as a read. While somebody waits, a connection
    goes straight from hand to hand: each turn of a busy event loop in which it lies idle is one in which nobody reads.
    Where the database has no room for another one, those that exist are waited for.
    """

    def __init__(self, endpoint: Endpoint, most: int, patience: float) -> None:
        self.endpoint = endpoint
        self.lent = 0  # those that are being opened included
        self.on_shortage: Callable[[], None] = lambda: None  # called when somebody waits for those that exist
        self._most = self._room = most
        self._opening = 0
        self._shortage: DatabaseError | None = None  # why there are no more, for a moment
        self._patience = patience  # seconds that somebody waits for a connection
        self._spare: Held | None = None
        self._waiting: deque[asyncio.Future[Held | None]] = deque()
        self._is_postgres = endpoint.engine.dialect.name == "postgresql"
        self._closed = False

    async def take(self) -> Held:
        """A connection that is the caller's until it gives or drops it. Raises a DatabaseError."""
        if self.lent < self._room:
            self.lent += 1
            held, self._spare = self._spare, None
        else:
            held = await self._handed_over()
        if held is not None:
            if self.endpoint.fitness.is_fit(held.driver):
                return held
            await self._discard(held)
        return await self._opened()

    async def give(self, held: Held) -> None:
        """Give back a connection that nothing runs on any more."""
        if self.offer(held):
            return
        await held.connection.close()

    def offer(self, held: Held) -> bool:
        """As `give`, at once; whether it is taken care of, and has not to be closed."""
        if self._hand_over(held):
            return True
        self.lent -= 1
        if self._spare is None and not self._closed:
            self._spare = held
            return True
        return False

    async def drop(self, held: Held) -> None:
        """Give back a connection that may be of no use any more."""
        try:
            await self._discard(held)
        finally:
            self._leave()

    def is_fit(self, held: Held) -> bool:
        """Whether a connection that nothing has run on for a while may be used."""
        return self.endpoint.fitness.is_fit(held.driver)

    @property
    def is_short(self) -> bool:
        """Whether somebody waits, and the database has no room for more."""
        return self._shortage is not None and bool(self._waiting)

    async def _discard(self, held: Held) -> None:
        """End it, on PostgreSQL without waiting for that. Its place in SQLAlchemy's pool is free at once."""
        if self._is_postgres and not held.connection.invalidated:
            forget(held)
            end_soon(held.driver.raw)
        else:  # a file's may be used on; SQLAlchemy's own statements have ended theirs
            await held.connection.close()

    async def _opened(self) -> Held:
        """Another one, in a place that is the caller's already."""
        for is_last in (*[False] * _TRIES_FOR_ROOM, True):
            self._opening += 1
            try:
                connection = await self.endpoint.engine.connect()
            except Exception as error:  # what goes wrong here is never a row's fault
                known = translate(error, self.endpoint.location, sends_rows=False)
            except BaseException:
                self._opening -= 1
                self._leave()
                raise
            else:
                self._opening -= 1
                self._invite()
                return Held(connection, _driver_of(connection))
            self._opening -= 1
            if known.sqlstate == error_codes.TOO_MANY and self.lent - self._opening > 1:
                return await self._one_that_exists(known)
            if known.sqlstate != error_codes.TOO_MANY or is_last:
                self._leave()
                raise known
            await self._pause()
        raise AssertionError("unreachable")

    async def _pause(self) -> None:
        """One that has just been ended may still have its place at the server."""
        try:
            await asyncio.sleep(_NO_ROOM / _TRIES_FOR_ROOM)
        except BaseException:
            self._leave()
            raise

    async def _one_that_exists(self, shortage: DatabaseError) -> Held:
        """There is no room for another one at present; or another, when there is again."""
        self.lent -= 1
        if self._shortage is None:
            asyncio.get_running_loop().call_later(_NO_ROOM, self._look_for_room)
        self._shortage = shortage
        self._room = max(1, self.lent - self._opening)
        held = await self._handed_over(again=True)
        return held if held is not None else await self._opened()

    def _look_for_room(self) -> None:
        self._shortage, self._room = None, self._most
        self._invite()

    def _invite(self) -> None:
        """Let the next who waits open one, if there is room."""
        if self.lent < self._room and self._hand_over(None):
            self.lent += 1

    async def _handed_over(self, *, again: bool = False) -> Held | None:
        """What the next one gives back: a connection, or the room to open one."""
        handed: asyncio.Future[Held | None] = asyncio.get_running_loop().create_future()
        (self._waiting.appendleft if again else self._waiting.append)(handed)
        if self._shortage is not None:
            self.on_shortage()
        try:
            with anyio.fail_after(self._patience):
                return await handed
        except BaseException as error:
            if handed.cancelled() or not handed.done():
                self._waiting.remove(handed)
            elif (held := handed.result()) is not None:
                with anyio.CancelScope(shield=True):
                    await self.give(held)
            else:
                self._leave()
            if isinstance(error, TimeoutError):
                raise (self._shortage or TransientError(IN_USE)) from None
            raise

    def _hand_over(self, held: Held | None) -> bool:
        for handed in self._waiting:
            if not handed.done():
                self._waiting.remove(handed)
                handed.set_result(held)
                return True
        return False

    def _leave(self) -> None:
        if not self._hand_over(None):
            self.lent -= 1

    async def fetch(
        self,
        statement: Statement,
        parameters: Mapping[str, Any],
        limit: float,
        meet: Callable[[Driver], Awaitable[None]] | None = None,
    ) -> list[Any]:
        """A statement's rows, within `limit` seconds, of which waiting for a connection is a part.

        It must not write: where its connection is lost, it is asked again on another one. `meet` is called first on
        one on which it has not succeeded. Raises TimeoutError, the driver's errors, what `meet` raises, and a
        DatabaseError where there is no connection.
        """
        with self._condemning(limit):
            async with asyncio.timeout(limit):
                for is_last in (False, True):
                    held = await self.take()
                    try:
                        if meet is not None and not held.driver.met:
                            await meet(held.driver)
                            held.driver.met = True
                        rows = await held.driver.fetch(statement, parameters)
                    except BaseException as error:
                        await self.give_after(held, error)
                        if is_last or not isinstance(error, Exception) or not is_lost(error):
                            raise
                    else:
                        await self.give(held)
                        return rows
        raise AssertionError("unreachable")

    @asynccontextmanager
    async def held(self, limit: float, *, own_statement: bool = False) -> AsyncIterator[Held]:
        """A connection, for at most `limit` seconds, of which waiting for it is a part. Raises TimeoutError.

        Where a statement on it fails, or is given up, it is used no more, unless it has answered.
        """
        with self._condemning(limit):
            async with asyncio.timeout(limit):
                held = await self.take()
                try:
                    yield held
                except BaseException as error:
                    await self.give_after(held, error, own_statement=own_statement)
                    raise
                await self.give(held)

    @contextmanager
    def _condemning(self, limit: float) -> Iterator[None]:
        try:
            yield
        except TimeoutError:
            # What was idle for as long may be forgotten as well.
            self.endpoint.fitness.condemn(time.monotonic() - limit)
            raise

    async def give_after(self, held: Held, error: BaseException, *, own_statement: bool = False) -> None:
        """Give back or drop a connection after an error, as that tells; its siblings may be done for with it."""
        with anyio.CancelScope(shield=True):
            if self.is_usable_after(held, error, own_statement=own_statement):
                await self.give(held)
            else:
                await self.drop(held)

    def is_usable_after(self, held: Held, error: BaseException, *, own_statement: bool = False) -> bool:
        """Whether it has answered, and is what it was. Notes what an error tells of its siblings."""
        if not self._is_postgres or not isinstance(error, Exception):
            return False
        fitness = self.endpoint.fitness
        sqlstate = sqlstate_of(error)
        if is_lost(error):
            # An end of the server's is all sessions'; silence is of those that were silent for as long.
            fitness.condemn(None if sqlstate.startswith("57P") else held.driver.asked_at)
            return False
        if not sqlstate:
            return False
        if error_codes.ends_all(sqlstate, own_statement=own_statement):
            fitness.condemn()
            return False
        return not error_codes.ends_session(sqlstate)

    async def release(self) -> None:
        """Let the engine have the one at hand, for those who ask it for connections themselves."""
        if self._spare is not None:
            spare, self._spare = self._spare, None
            await spare.connection.close()

    async def close(self) -> None:
        """Close every connection."""
        self._closed = True
        await self.release()
        await self.endpoint.close()

    def renewed(self) -> Connections:
        """For another event loop: the connections of this one's are dropped, whatever holds them."""
        if self._spare is not None:
            forget(self._spare)
            self._spare = None
        self.endpoint.forget_connections()
        return Connections(self.endpoint, self._most, self._patience)


def forget(held: Held) -> None:
    """Keep the pool from closing a connection: its place in it is free at once."""
    if held.connection.sync_connection is not None:
        held.connection.sync_connection.detach()


def _driver_of(connection: AsyncConnection) -> Driver:
    assert connection.sync_connection is not None
    driver: Driver = connection.sync_connection.info[DRIVER]
    return driver
