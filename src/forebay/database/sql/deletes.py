"""What deletes rows, and all that hangs on them, in their thread, and notes that they are deleted."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any

import sqlalchemy as sa
from sqlalchemy.sql.selectable import FromClause

from forebay.database.sql.dialect import Expression, Sql, literal
from forebay.database.sql.discards import note_garbage
from forebay.database.sql.statement import Compiler, Statement, id_parameter
from forebay.model import schema
from forebay.model.schema import (
    RATINGS,
    WRITTEN_AT,
    deleted,
    elements,
    feedbacks,
    steps,
    threads,
    tombstones,
    users,
)


class Deletes(Compiler):
    """Statements that delete."""

    def _delete(self, table: str) -> tuple[Statement, ...]:
        """What removes a row (parameter `id`) and all that hangs on it, in this order.

        Only in its thread, `thread_id`, unless that is null; only where it was not written after `up_to`. What is
        removed was deleted at `moment`, whenever that is noted; notes older than `kept_us` are cleared away. What one
        of them `gives` is a parameter of those after it.
        """
        statements = _deletes(self._sql)[table]
        return tuple(self._compile_one(statement) for statement in statements if statement is not None)

    def _compile_one(self, statement: sa.sql.ClauseElement) -> Statement:
        gives = tuple(statement.selected_columns.keys()) if isinstance(statement, sa.Select) else ()
        return replace(self._compile(statement), gives=gives)

    def _undone(self, table: str) -> Statement:
        """The row, in a JSON array, whose delete (parameters `id`, `thread_id` and `moment`) another process gave up.

        It is there, in its thread, and nothing notes that it was deleted at that moment or later.
        """
        there = schema.metadata.tables[table].alias("there")
        mine = sa.select(sa.cast(there.c.id, sa.Text())).where(there.c.id == id_parameter("id"))
        if table != "threads":
            mine = mine.where(_is_in(there, id_parameter("thread_id")))
        noted = sa.select(deleted.c.id).where(
            deleted.c.kind == literal(table),
            deleted.c.id == id_parameter("id"),
            deleted.c.deleted_at >= _number("moment"),
        )
        found = mine.where(~sa.exists(noted))
        return self._compile(sa.select(self._sql.result(self._sql.texts(found))))

    @cached_property
    def ghosts(self) -> Statement:
        """The ids of threads that are there though they were deleted, within the last `recent_us` microseconds."""
        both = threads.join(tombstones, tombstones.c.thread_id == threads.c.id)
        recent = tombstones.c.deleted_at > _ago(self._sql, "recent_us")
        found = sa.select(sa.cast(threads.c.id, sa.Text())).select_from(both).where(recent)
        return self._compile(found.order_by(threads.c.id).limit(_GHOSTS_AT_ONCE))


FOREVER = 2**63 - 1  # up to when what a delete means was written that does not come late
_GHOSTS_AT_ONCE: Expression = sa.literal_column("10")
# What one of the statements finds out for those after it.
_BELOW, _TREES_THREAD = "below", "trees_thread_id"
_NOTE = ("kind", "id", "deleted_at", "noted_at")


def _deletes(sql: Sql) -> dict[str, tuple[sa.sql.ClauseElement | None, ...]]:
    return {
        "steps": _delete_step(sql),
        "threads": _delete_thread(sql),
        "users": _delete_user(sql),
        "elements": _delete_element(sql),
        "feedbacks": _delete_feedback(sql),
    }


def _delete_step(sql: Sql) -> tuple[sa.sql.ClauseElement | None, ...]:
    """With all below it, which is looked for once: thousands of steps may be there, in some tables none of theirs."""
    tree = sa.select(sa.cast(sql.given(_BELOW).c.value, steps.c.id.type))
    # What came before its step, which has not come yet, hangs on it all the same; and what hung on one that was made
    # anew since.
    hung = tree.union_all(sa.select(id_parameter("id")).where(~_is_anothers(steps)))
    thread_id = id_parameter(_TREES_THREAD)

    def hangs(row: sa.Table) -> Expression:
        mine = sql.among(row.c.forId, hung) & (_written(row) <= _number("up_to"))
        return mine & (thread_id.is_(None) | row.c.threadId.is_(None) | (row.c.threadId == thread_id))

    rated, attached = hangs(feedbacks), hangs(elements)
    below = sql.among(steps.c.id, tree)
    return (
        _lock(sql, steps),
        _below(sql),
        _note_itself(sql, steps),
        _note(sql, steps, below),
        _note(sql, feedbacks, rated),
        _note(sql, elements, attached),
        sa.delete(feedbacks).where(rated),
        _discard(sql, attached),
        sa.delete(elements).where(attached),
        sa.delete(steps).where(below),
    )


def _below(sql: Sql) -> Any:
    """The ids of a step and all below it, as JSON, and their thread: parameters of the statements after this."""
    ids = sql.texts(sa.select(sa.cast(_tree().c.id, sa.Text())))
    return sa.select(sql.result(ids).label(_BELOW), _trees_thread().label(_TREES_THREAD))


def _trees_thread() -> Expression:
    """The thread of the step `id`, or the one that is named where it is not there."""
    there = steps.alias("there")
    mine = sa.select(there.c.threadId).where(there.c.id == id_parameter("id")).scalar_subquery()
    return sa.func.coalesce(mine, id_parameter("thread_id"))


def _delete_element(sql: Sql) -> tuple[sa.sql.ClauseElement | None, ...]:
    mine = _is_meant(elements)
    return (
        _lock(sql, elements),
        _note_itself(sql, elements),
        _discard(sql, mine),
        sa.delete(elements).where(mine),
    )


def _delete_feedback(sql: Sql) -> tuple[sa.sql.ClauseElement | None, ...]:
    """With those on the same step that are older, which it has stood for."""
    shown = feedbacks.alias("shown")
    with_it = sa.exists(
        sa.select(shown.c.id).where(
            _is_meant(shown),
            shown.c.forId == feedbacks.c.forId,
            shown.c.threadId == feedbacks.c.threadId,
            _written(feedbacks) <= _written(shown),
        )
    )
    step = sa.select(shown.c.forId).where(shown.c.id == id_parameter("id"))
    older = sql.among(feedbacks.c.forId, step) & with_it
    return (
        _lock(sql, feedbacks),
        _note_itself(sql, feedbacks),
        _note(sql, feedbacks, older),
        _note_older(sql),
        sa.delete(feedbacks).where(older),
    )


def _delete_thread(sql: Sql) -> tuple[sa.sql.ClauseElement | None, ...]:
    """All of it; but one that comes late leaves what was said in the thread since, as if that had been made anew."""
    key = id_parameter("id")
    is_late = _number("up_to") < sa.literal_column(str(FOREVER))
    since = steps.alias("since")
    said = sa.select(since.c.id).where(since.c.threadId == key, _written(since) > _number("up_to"))
    goes_on = is_late & sa.exists(said)

    def gone(row: sa.Table) -> Expression:
        return ~goes_on | (_written(row) <= _number("up_to"))

    in_thread = sa.select(steps.c.id).where(steps.c.threadId == key)
    of_thread = (elements.c.threadId == key) | (
        sql.among(elements.c.forId, in_thread) & elements.c.threadId.is_(None)
    )
    rated = (feedbacks.c.threadId == key) | sql.among(feedbacks.c.forId, in_thread)
    kept = _ago(sql, "kept_us")
    buried = sa.select(key, sql.moment()).where(~goes_on)
    tombstone = sql.insert(tombstones).from_select(["thread_id", "deleted_at"], buried)
    return (
        sql.locked(sa.select(key)),
        sa.delete(tombstones).where(tombstones.c.deleted_at < kept),
        sa.delete(deleted).where(deleted.c.noted_at < kept),
        tombstone.on_conflict_do_update(
            index_elements=["thread_id"], set_={"deleted_at": tombstone.excluded.deleted_at}
        ),
        _note_itself(sql, threads),
        sa.delete(feedbacks).where(rated, gone(feedbacks)),
        _discard(sql, of_thread & gone(elements)),
        sa.delete(elements).where(of_thread, gone(elements)),
        sa.delete(steps).where(steps.c.threadId == key, gone(steps)),
        sa.delete(threads).where(threads.c.id == key, ~goes_on),
    )


def _delete_user(sql: Sql) -> tuple[sa.sql.ClauseElement | None, ...]:
    """With their threads, few: whoever deletes a person deletes those one by one before. See `layer.delete_user`."""
    key = id_parameter("id")
    owned = threads.c.userId == key
    mine = sa.select(threads.c.id).where(owned)
    in_mine = sql.among(steps.c.threadId, mine)
    attached = sql.among(elements.c.threadId, mine) | (
        sql.among(elements.c.forId, sa.select(steps.c.id).where(in_mine)) & elements.c.threadId.is_(None)
    )
    found = sa.select(threads.c.id, sql.moment()).where(owned)
    tombstone = sql.insert(tombstones).from_select(["thread_id", "deleted_at"], found)
    return (
        sql.held(
            sa.select(users.c.id).where(users.c.id == key)
        ),  # who begins a thread of theirs waits, and fails
        sa.update(threads).values(createdAt=threads.c.createdAt).where(owned),
        tombstone.on_conflict_do_update(
            index_elements=["thread_id"], set_={"deleted_at": tombstone.excluded.deleted_at}
        ),
        _note(sql, threads, owned),
        sa.delete(feedbacks).where(sql.among(feedbacks.c.threadId, mine)),
        _discard(sql, attached),
        sa.delete(elements).where(attached),
        sa.delete(steps).where(in_mine),
        sa.delete(threads).where(owned),
        _note(sql, users, users.c.id == key),
        sa.delete(users).where(users.c.id == key),
    )


def _lock(sql: Sql, table: sa.Table) -> Any:
    mine = sa.select(table.c.threadId).where(_is_meant(table)).scalar_subquery()
    return sql.locked(sa.select(sa.func.coalesce(mine, id_parameter("thread_id"))))


def _note_itself(sql: Sql, table: sa.Table) -> Any:
    """Also where it is not there yet; but not where it is another thread's, whose it stays."""
    noted = sa.select(literal(table.name), id_parameter("id"), _moment(sql), sql.moment())
    return _noted(sql, noted.where(~_is_anothers(table)))


def _is_anothers(table: sa.Table) -> Expression:
    """Whether the row is there, in another thread than the one that is named."""
    there = table.alias("there")
    thread_id = there.c["id" if table is threads else "threadId"]
    elsewhere = (there.c["id"] == id_parameter("id")) & (thread_id != id_parameter("thread_id"))
    return sa.exists(sa.select(there.c["id"]).where(elsewhere))


def _note_older(sql: Sql) -> Any:
    """That the step's feedbacks up to this one are deleted: an older one may have yet to come."""
    found = sa.select(literal(RATINGS), feedbacks.c.forId, _written(feedbacks), sql.moment())
    return _noted(sql, found.where(_is_meant(feedbacks)))


def _note(sql: Sql, table: sa.Table, which: Expression) -> Any:
    found = sa.select(literal(table.name), table.c.id, _moment(sql), sql.moment()).where(which)
    return _noted(sql, found)


def _noted(sql: Sql, found: sa.Select[Any]) -> Any:
    insert = sql.insert(deleted).from_select(list(_NOTE), found)
    return insert.on_conflict_do_update(
        index_elements=["kind", "id"],
        set_={
            "deleted_at": sql.greatest(deleted.c.deleted_at, insert.excluded.deleted_at),
            "noted_at": insert.excluded.noted_at,
        },
    )


def _is_meant(row: FromClause) -> Expression:
    """The row `id`, in the thread that is named, and not written after `up_to`."""
    mine = (row.c["id"] == id_parameter("id")) & (_written(row) <= _number("up_to"))
    return mine & _is_in(row, id_parameter("thread_id"))


def _is_in(row: FromClause, thread_id: Expression) -> Expression:
    return thread_id.is_(None) | (row.c["threadId"] == thread_id)


def _written(row: FromClause) -> Expression:
    return sa.func.coalesce(row.c[WRITTEN_AT], literal(0))


def _moment(sql: Sql) -> Expression:
    """When it was deleted, which has been: a clock that was ahead must not keep out what is made from now on."""
    return sql.least(_number("moment"), sql.moment() + literal(5_000_000))


def _ago(sql: Sql, name: str) -> Any:
    """So long ago, by the database's clock; a query of its own, so that it is asked once and an index serves."""
    return sa.select(sql.moment() - _number(name)).scalar_subquery()


def _number(name: str) -> sa.BindParameter[Any]:
    return sa.bindparam(name, type_=sa.BigInteger())


def _tree() -> sa.CTE:
    """A step and all below it, in its thread; what is below it also where it is not there, or was made anew since."""
    top = (steps.c.id == id_parameter("id")) | (steps.c.parentId == id_parameter("id"))
    beside = _trees_thread()
    mine = (
        top
        & (_written(steps) <= _number("up_to"))
        & (beside.is_(None) | (steps.c.threadId == beside)).is_(sa.true())
        & ~_is_anothers(steps)
    )
    tree = sa.select(steps.c.id, steps.c.threadId).where(mine).cte("tree", recursive=True)
    child = steps.alias("child")
    below = sa.select(child.c.id, child.c.threadId).where(
        # IS TRUE keeps the planner off the thread's index, in which each step would meet all of its thread.
        child.c.parentId == tree.c.id,
        (child.c.threadId == tree.c.threadId).is_(sa.true()),
    )
    # UNION, not UNION ALL: a step that is its own ancestor ends the walk.
    return tree.union(below)


def _discard(sql: Sql, which: Expression) -> Any:
    """Note the contents of these elements, in the transaction that deletes their rows."""
    named = sa.select(elements.c.objectKey).where(elements.c.objectKey.is_not(None), which).distinct()
    return note_garbage(sql, named.subquery("discarded").c.objectKey, sa.true())
