"""Threads that nobody has used for a while, a page at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import sqlalchemy as sa

from forebay.database.sql.activity import activity
from forebay.database.store import Store
from forebay.model.schema import steps, threads, users


def is_of(identifier: str) -> sa.ColumnElement[bool]:
    """Whether a thread is this person's."""
    return threads.c.userId.in_(sa.select(users.c.id).where(users.c.identifier == identifier))


@dataclass(frozen=True)
class Outdated:
    """Threads before a time (`before`: ISO 8601, UTC): by their newest step (`activity`) or since when they are there.

    `identifier`: one person's only; `without_owner`: nobody's only; `keep_favorites`: not where a step is marked.
    """

    before: str
    by: Literal["activity", "created"] = "activity"
    identifier: str | None = None
    without_owner: bool = False
    keep_favorites: bool = False

    def _condition(self) -> sa.ColumnElement[bool]:
        moment = activity() if self.by == "activity" else threads.c.createdAt
        conditions: list[sa.ColumnElement[bool]] = [moment < self.before]
        if self.identifier is not None:
            conditions.append(is_of(self.identifier))
        if self.without_owner:
            conditions.append(threads.c.userId.is_(None))
        if self.keep_favorites:
            marked = steps.c["metadata"]["favorite"].as_string().in_(("true", "1"))
            conditions.append(~sa.exists().where(steps.c.threadId == threads.c.id, marked))
        return sa.and_(*conditions)

    async def count(self, store: Store) -> int:
        """How many there are. Raises a DatabaseError."""
        (row,) = await store.select(
            sa.select(sa.func.count().label("threads")).select_from(threads).where(self._condition())
        )
        return int(row["threads"])

    async def page(self, store: Store, after: str | None, size: int) -> list[str]:
        """The ids of the next ones behind `after`, in the order of the ids. Raises a DatabaseError."""
        statement = sa.select(threads.c.id).where(self._condition()).order_by(threads.c.id).limit(size)
        if after is not None:
            statement = statement.where(threads.c.id > after)
        return [str(row["id"]) for row in await store.select(statement)]
