"""What deletes rows, and all that hangs on them."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from forebay.database.sql.dialect import Expression, Sql
from forebay.database.sql.statement import Compiler, Statement, id_parameter
from forebay.model.schema import elements, feedbacks, garbage, steps, threads, tombstones


class Deletes(Compiler):
    """Statements that delete."""

    def _delete(self, table: str) -> tuple[Statement, ...]:
        """What removes a row (parameter `id`) and all that hangs on it, in this order.

        A thread leaves a tombstone, of the moment `now_us`; those from before `old_us` are cleared away.
        """
        return tuple(self._compile(statement) for statement in _deletes(self._sql)[table])


def _deletes(sql: Sql) -> dict[str, tuple[sa.sql.ClauseElement, ...]]:
    key = id_parameter("id")
    in_tree = _tree()
    in_thread = sa.select(steps.c.id).where(steps.c.threadId == key)
    of_tree = sql.among(elements.c.forId, in_tree)
    of_thread = (elements.c.threadId == key) | sql.among(elements.c.forId, in_thread)
    of_one = elements.c.id == key
    tombstone = (
        sql.insert(tombstones)
        .values(thread_id=key, deleted_at=sa.bindparam("now_us", type_=sa.BigInteger()))
        .on_conflict_do_nothing()
    )
    old = tombstones.c.deleted_at < sa.bindparam("old_us", type_=sa.BigInteger())
    return {
        "steps": (
            sa.delete(feedbacks).where(sql.among(feedbacks.c.forId, in_tree)),
            _discard(sql, of_tree),
            sa.delete(elements).where(of_tree),
            sa.delete(steps).where(sql.among(steps.c.id, in_tree)),
        ),
        "threads": (
            sa.delete(tombstones).where(old),
            tombstone,
            sa.delete(feedbacks).where(
                (feedbacks.c.threadId == key) | sql.among(feedbacks.c.forId, in_thread)
            ),
            _discard(sql, of_thread),
            sa.delete(elements).where(of_thread),
            sa.delete(steps).where(steps.c.threadId == key),
            sa.delete(threads).where(threads.c.id == key),
        ),
        "elements": (_discard(sql, of_one), sa.delete(elements).where(of_one)),
        "feedbacks": (sa.delete(feedbacks).where(feedbacks.c.id == key),),
    }


def _tree() -> sa.Select[Any]:
    """The ids of a step and of all below it."""
    tree = sa.select(steps.c.id).where(steps.c.id == id_parameter("id")).cte("tree", recursive=True)
    # UNION, not UNION ALL: a step that is its own ancestor ends the walk.
    tree = tree.union(sa.select(steps.c.id).where(steps.c.parentId == tree.c.id))
    return sa.select(tree.c.id)


def _discard(sql: Sql, which: Expression) -> Any:
    """Note the contents of these elements, in the transaction that deletes their rows."""
    found = sa.select(elements.c.objectKey).where(elements.c.objectKey.is_not(None), which)
    return sql.insert(garbage).from_select(["object_key"], found).on_conflict_do_nothing()
