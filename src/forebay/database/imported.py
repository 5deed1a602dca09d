"""What an import that is repeated has taken of a source, kept in the database that it went into.

There it is as old as the rows themselves: a database that went back is filled again. The table is made by the first
import and goes with the last.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from forebay.database.store import Store
from forebay.database.translation import translated

_table = sa.Table(
    "forebay_imported",
    sa.MetaData(),  # of its own: no deployment needs it but while it changes over
    sa.Column("source", sa.Text(), primary_key=True),
    sa.Column("thread", sa.Text(), primary_key=True),
    sa.Column("fingerprint", sa.Text(), nullable=False),
    sa.Column("copies", sa.BigInteger(), nullable=False),
    sa.Column("newest", sa.BigInteger(), nullable=False),
    sa.Column("rows", sa.JSON(), nullable=False),
)


@dataclass(frozen=True)
class Taken:
    """A thread as it was copied: its fingerprint, how often it was, the newest moment and the ids of its rows."""

    thread: str
    fingerprint: str
    copies: int = 0
    newest: int = 0
    rows: Mapping[str, Sequence[str]] = field(default_factory=dict)


class Imported:
    """What was taken of one source. Every method raises a DatabaseError."""

    def __init__(self, store: Store, source: str) -> None:
        self._store = store
        self._source = source

    async def prepare(self) -> None:
        """Make the table, unless it is there."""
        async with self._transaction() as connection:
            await connection.run_sync(_table.metadata.create_all)

    async def known(self, threads: Sequence[str]) -> dict[str, Taken]:
        """These threads, as they were taken."""
        columns = [column for column in _table.columns if column is not _table.c.source]
        async with self._transaction() as connection:
            rows = await connection.execute(sa.select(*columns).where(self._are(threads)))
            return {row.thread: Taken(**row._mapping) for row in rows}

    async def note(self, taken: Sequence[Taken]) -> None:
        """Remember them as taken."""
        async with self._transaction() as connection:
            await connection.execute(sa.delete(_table).where(self._are([one.thread for one in taken])))
            await connection.execute(
                sa.insert(_table), [{"source": self._source, **asdict(one)} for one in taken]
            )

    async def page(self, after: str, size: int) -> Sequence[str]:
        """The next threads behind one, in the order of their ids."""
        mine = sa.select(_table.c.thread).where(_table.c.source == self._source, _table.c.thread > after)
        async with self._transaction() as connection:
            return (await connection.execute(mine.order_by(_table.c.thread).limit(size))).scalars().all()

    async def count(self) -> int:
        """How many threads were taken."""
        mine = sa.select(sa.func.count()).select_from(_table).where(_table.c.source == self._source)
        async with self._transaction() as connection:
            return (await connection.execute(mine)).scalar_one()

    async def forget(self, threads: Sequence[str]) -> None:
        """Forget some."""
        async with self._transaction() as connection:
            await connection.execute(sa.delete(_table).where(self._are(threads)))

    async def end(self) -> None:
        """Forget the source, and the table when nothing is in it."""
        async with self._transaction() as connection:
            await connection.execute(sa.delete(_table).where(_table.c.source == self._source))
            if (await connection.execute(sa.select(_table.c.source).limit(1))).first() is None:
                await connection.run_sync(_table.metadata.drop_all)

    def _are(self, threads: Sequence[str]) -> sa.ColumnElement[bool]:
        return sa.and_(_table.c.source == self._source, _table.c.thread.in_(threads))

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[AsyncConnection]:
        with translated(self._store.location, sends_rows=False):
            async with self._store.engine.begin() as connection:
                yield connection
