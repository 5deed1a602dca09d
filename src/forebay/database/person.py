"""One person's chats, and how much is in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from forebay.database.outdated import is_of
from forebay.database.store import Store
from forebay.model.schema import TABLES, threads, users


@dataclass(frozen=True)
class Person:
    """Who has the login name `identifier`, or had it with these `ids`: the threads that they own, and those of nobody
    that say the name.
    """

    identifier: str
    ids: Sequence[str] | None = None

    def _owned(self) -> sa.ColumnElement[bool]:
        nobodys = threads.c.userId.is_(None) & (threads.c.userIdentifier == self.identifier)
        mine = is_of(self.identifier) if self.ids is None else threads.c.userId.in_(self.ids)
        return mine | nobodys

    async def count(self, store: Store) -> dict[str, int]:
        """How many rows there are of them, by table. Raises a DatabaseError."""
        mine = sa.select(threads.c.id).where(self._owned())
        counts = {
            "users": sa.select(sa.func.count()).where(users.c.identifier == self.identifier),
            "threads": sa.select(sa.func.count()).select_from(threads).where(self._owned()),
        }
        for name in ("steps", "elements", "feedbacks"):
            table = TABLES[name]
            counts[name] = sa.select(sa.func.count()).select_from(table).where(table.c.threadId.in_(mine))
        columns = [found.scalar_subquery().label(name) for name, found in counts.items()]
        (row,) = await store.select(sa.select(*columns))
        return {name: int(row[name]) for name in counts}

    async def page(self, store: Store, after: str | None, size: int) -> list[str]:
        """The ids of the next threads behind `after`, in the order of the ids. Raises a DatabaseError."""
        statement = sa.select(threads.c.id).where(self._owned()).order_by(threads.c.id).limit(size)
        if after is not None:
            statement = statement.where(threads.c.id > after)
        return [str(row["id"]) for row in await store.select(statement)]
