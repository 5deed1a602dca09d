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
    # What came before its step, which has not come yet, hangs on it all the same.
    there = steps.alias("there")
    itself = sa.select(id_parameter("id")).where(
        ~sa.exists(sa.select(there.c.id).where(there.c.id == id_parameter("id")))
    )
    hung = tree.union_all(itself)
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
    tree = _tree()
    mine = sa.select(tree.c.threadId).limit(sa.literal_column("1")).scalar_subquery()
    ids = sql.texts(sa.select(sa.cast(tree.c.id, sa.Text())))
    return sa.select(
        sql.result(ids).label(_BELOW), sa.func.coalesce(mine, id_parameter("thread_id")).label(_TREES_THREAD)
    )


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
        sa.delete(feedbacks).where(older),
    )


def _delete_thread(sql: Sql) -> tuple[sa.sql.ClauseElement | None, ...]:
    key = id_parameter("id")
    in_thread = sa.select(steps.c.id).where(steps.c.threadId == key)
    of_thread = (elements.c.threadId == key) | (
        sql.among(elements.c.forId, in_thread) & elements.c.threadId.is_(None)
    )
    kept = _ago(sql, "kept_us")
    tombstone = sql.insert(tombstones).values(thread_id=key, deleted_at=sql.moment())
    return (
        sql.locked(sa.select(key)),
        sa.delete(tombstones).where(tombstones.c.deleted_at < kept),
        sa.delete(deleted).where(deleted.c.noted_at < kept),
        tombstone.on_conflict_do_update(
            index_elements=["thread_id"], set_={"deleted_at": tombstone.excluded.deleted_at}
        ),
        _note_itself(sql, threads),
        sa.delete(feedbacks).where((feedbacks.c.threadId == key) | sql.among(feedbacks.c.forId, in_thread)),
        _discard(sql, of_thread),
        sa.delete(elements).where(of_thread),
        sa.delete(steps).where(steps.c.threadId == key),
        sa.delete(threads).where(threads.c.id == key),
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
    return sql.locked(sa.select(table.c.threadId).where(_is_meant(table)))


def _note_itself(sql: Sql, table: sa.Table) -> Any:
    """Also where it is not there yet; but not where it is another thread's, whose it stays."""
    there = table.alias("there")
    key = id_parameter("id")
    thread_id = there.c["id" if table is threads else "threadId"]
    elsewhere = (there.c["id"] == key) & (thread_id != id_parameter("thread_id"))
    noted = sa.select(literal(table.name), key, _number("moment"), sql.moment())
    return _noted(sql, noted.where(~sa.exists(sa.select(there.c["id"]).where(elsewhere))))


def _note(sql: Sql, table: sa.Table, which: Expression) -> Any:
    found = sa.select(literal(table.name), table.c.id, _number("moment"), sql.moment()).where(which)
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


def _ago(sql: Sql, name: str) -> Any:
    """So long ago, by the database's clock; a query of its own, so that it is asked once and an index serves."""
    return sa.select(sql.moment() - _number(name)).scalar_subquery()


def _number(name: str) -> sa.BindParameter[Any]:
    return sa.bindparam(name, type_=sa.BigInteger())


def _tree() -> sa.CTE:
    """A step and all below it, in its thread."""
    tree = sa.select(steps.c.id, steps.c.threadId).where(_is_meant(steps)).cte("tree", recursive=True)
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
