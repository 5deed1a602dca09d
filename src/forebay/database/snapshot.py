"""All rows as they are at one moment, while others go on writing, a page of threads at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from forebay.database.outdated import is_of
from forebay.database.queries import Row, rows_of
from forebay.database.sql.activity import activity
from forebay.database.store import Store
from forebay.database.translation import translated
from forebay.model.schema import elements, feedbacks, steps, threads, users

# A thread's steps may be long; a page of them is held in memory.
_THREADS_A_PAGE = 50
_USERS_A_PAGE = 1000


@dataclass(frozen=True)
class Chosen:
    """Which threads: of a user with this `identifier`, by their `thread_ids`, active `since` a time (ISO 8601, UTC)."""

    identifier: str | None = None
    thread_ids: Sequence[str] = ()
    since: str | None = None

    def condition(self) -> sa.ColumnElement[bool]:
        """As SQL."""
        conditions: list[sa.ColumnElement[bool]] = [sa.true()]
        if self.identifier is not None:
            conditions.append(is_of(self.identifier))
        if self.thread_ids:
            conditions.append(threads.c.id.in_(self.thread_ids))
        if self.since is not None:
            conditions.append(activity() >= self.since)
        return sa.and_(*conditions)


class Snapshot:
    """Reads within one transaction, rows in the order of their ids."""

    def __init__(self, connection: AsyncConnection, chosen: Chosen, location: str) -> None:
        self._connection = connection
        self._chosen = chosen.condition()
        self._location = location

    async def count(self) -> int:
        """How many threads there are."""
        statement = sa.select(sa.func.count().label("threads")).select_from(threads).where(self._chosen)
        (row,) = await self._rows(statement)
        return int(row["threads"])

    async def users(self) -> AsyncIterator[Row]:
        """Who owns one of the threads; with all threads chosen, everybody."""
        chosen: sa.ColumnElement[bool] = sa.true()
        if not isinstance(self._chosen, sa.sql.elements.True_):
            chosen = users.c.id.in_(sa.select(threads.c.userId).where(self._chosen))
        async for page in self._pages(sa.select(users).where(chosen), users.c.id, _USERS_A_PAGE):
            for row in page:
                yield row

    async def threads(self) -> AsyncIterator[tuple[Row, dict[str, list[Row]]]]:
        """Each thread with its steps, feedback and elements, by table."""
        async for page in self._pages(sa.select(threads).where(self._chosen), threads.c.id, _THREADS_A_PAGE):
            ids = [row["id"] for row in page]
            inner = {table.name: await self._of_threads(table, ids) for table in (steps, feedbacks, elements)}
            for row in page:
                yield row, {name: found.get(row["id"], []) for name, found in inner.items()}

    async def _pages(
        self, statement: sa.Select[Any], key: sa.Column[Any], size: int
    ) -> AsyncIterator[Sequence[Row]]:
        after = None
        while True:
            behind = statement if after is None else statement.where(key > after)
            page = await self._rows(behind.order_by(key).limit(size))
            if page:
                yield page
            if len(page) < size:
                return
            after = page[-1]["id"]

    async def _of_threads(self, table: sa.Table, ids: Sequence[str]) -> dict[str, list[Row]]:
        found: dict[str, list[Row]] = {}
        statement = sa.select(table).where(table.c.threadId.in_(ids)).order_by(table.c.id)
        for row in await self._rows(statement):
            found.setdefault(row["threadId"], []).append(row)
        return found

    async def _rows(self, statement: sa.Select[Any]) -> list[Row]:
        with translated(self._location, sends_rows=False):
            return await rows_of(self._connection, statement)


@asynccontextmanager
async def snapshot(store: Store, chosen: Chosen) -> AsyncIterator[Snapshot]:
    """A snapshot of the database. Raises a DatabaseError."""
    await store.prepare()
    with translated(store.location, sends_rows=False):
        connection = await store.engine.connect()
    try:
        with translated(store.location, sends_rows=False):
            await _begin(connection)
        yield Snapshot(connection, chosen, store.location)
    finally:
        await connection.close()


async def _begin(connection: AsyncConnection) -> None:
    if connection.dialect.name == "postgresql":
        await connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    else:
        await connection.exec_driver_sql("BEGIN")  # its driver begins a transaction for a write only
