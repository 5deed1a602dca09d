"""`threads."updatedAt"`, the newest `createdAt` of the thread's steps: filled where it is still null."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from forebay.model.schema import steps, threads

# Threads that one statement fills, and whose rows it locks, on PostgreSQL.
PAGE_ROWS = 1000


def is_behind(connection: sa.Connection, *, has_column: bool = True) -> bool:
    """Whether a thread with steps has no `updatedAt`; `has_column` tells whether there is such a column."""
    missing = _is_unfilled() if has_column else _has_steps()
    return bool(connection.scalar(sa.select(sa.select(threads.c.id).where(missing).exists())))


def fill_statement(dialect: sa.Dialect) -> sa.Update:
    """The one statement that fills every thread. Threads without steps keep null."""
    return sa.update(threads).where(_is_unfilled()).values(updatedAt=_newest_step(dialect))


def fill(connection: sa.Connection) -> int:
    """Fill every thread; returns how many there were.

    On PostgreSQL the connection must be in autocommit: each page of threads is then a transaction of its own,
    so that no writer waits for longer than one page takes.
    """
    if connection.dialect.name != "postgresql":
        return connection.execute(fill_statement(connection.dialect)).rowcount
    filled = 0
    after: str | None = None
    while True:
        page = list(connection.scalars(_page_statement(connection.dialect, after)))
        filled += len(page)
        if len(page) < PAGE_ROWS:
            return filled
        after = page[-1]


def _page_statement(dialect: sa.Dialect, after: str | None) -> sa.Select[tuple[Any]]:
    wanted = sa.select(threads.c.id).where(_is_unfilled()).order_by(threads.c.id).limit(PAGE_ROWS)
    if after is not None:
        wanted = wanted.where(threads.c.id > after)
    # Locked in the order of the ids, as a batch writes them, so that the two can't deadlock.
    page = wanted.with_for_update(key_share=True).cte("page")
    update = sa.update(threads).where(threads.c.id == page.c.id).values(updatedAt=_newest_step(dialect))
    filled = update.returning(threads.c.id).cte("filled")
    return sa.select(page.c.id).order_by(page.c.id).add_cte(filled)


def _newest_step(dialect: sa.Dialect) -> sa.ScalarSelect[Any]:
    created: sa.ColumnElement[Any] = steps.c.createdAt
    if dialect.name == "postgresql":  # where text sorts by the database's language unless told otherwise
        created = sa.collate(created, "C")
    newest = sa.select(sa.func.max(created)).where(steps.c.threadId == threads.c.id)
    return newest.correlate(threads).scalar_subquery()


def _is_unfilled() -> sa.ColumnElement[bool]:
    return sa.and_(threads.c.updatedAt.is_(None), _has_steps())


def _has_steps() -> sa.ColumnElement[bool]:
    is_dated = sa.and_(steps.c.threadId == threads.c.id, steps.c.createdAt.is_not(None))
    return sa.select(steps.c.threadId).where(is_dated).correlate(threads).exists()
