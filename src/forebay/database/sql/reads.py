"""What reads: one statement each, that returns one JSON document.

A thread's steps come as rows behind it, since PostgreSQL makes a document of a row at twice the price of the row.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import sqlalchemy as sa
from sqlalchemy.sql.selectable import FromClause

from forebay.database.sql.dialect import Expression
from forebay.database.sql.statement import (
    SELDOM,
    Compiler,
    Inner,
    Statement,
    id_parameter,
    sent_at,
    text_parameter,
)
from forebay.model import schema
from forebay.model.schema import EXTRA, WRITTEN_AT, Kind, elements, feedbacks, steps, threads, users


class Reads(Compiler):
    """Statements that read what Chainlit stores."""

    def needle(self, search: str) -> str:
        """What to pass as `needle` to look for a text."""
        return self._sql.needle(search)

    @cached_property
    def user(self) -> Statement:
        """A user by `identifier`."""
        return self._compile(
            sa.select(self._sql.result(self._document(users))).where(
                users.c.identifier == text_parameter("identifier")
            )
        )

    @cached_property
    def thread(self) -> Statement:
        """A thread by `id`, with its steps, their newest feedback, and its elements."""
        key = id_parameter("id")
        all_values = self._values(steps, leaving_out=("threadId",))
        columns = {
            name: _as_row(steps, name, value)
            for name, value in all_values.items()
            if name not in _SELDOM_IN_STEPS
        }
        columns[SELDOM] = self._seldom({name: all_values[name] for name in _SELDOM_IN_STEPS})
        columns["feedback"] = self._sql.result(self._newest_feedback())
        columns[WRITTEN_AT] = steps.c[WRITTEN_AT]
        document = self._thread_document(elements=self._of_thread(elements, sent_at(elements)))
        nothing = [sa.null().label(name) for name in columns]
        values = [value.label(name) for name, value in columns.items()]
        head = sa.select(self._sql.result(document).label("doc"), *nothing).where(threads.c.id == key)
        tail = sa.select(sa.null().label("doc"), *values).where(steps.c.threadId == key)
        inner = Inner("steps", "threadId", tuple(columns), ("metadata", "feedback"), _SELDOM_IN_STEPS)
        return self._compile_read(sa.union_all(head, tail), inner)

    def _seldom(self, values: Mapping[str, Expression]) -> Expression:
        """One column for those of a step that are hardly ever set; null where none is."""
        empty = sa.and_(*(steps.c[name].is_(None) for name in values))
        return sa.case((empty, sa.null()), else_=self._sql.result(self._sql.object(values)))

    @cached_property
    def thread_author(self) -> Statement:
        """The owner's identifier and id, by the thread's `id`."""
        author = self._sql.object(
            {"userIdentifier": _identifier(threads), "userId": self._sql.plain(threads.c.userId)}
        )
        return self._compile_read(
            sa.select(self._sql.result(author)).where(threads.c.id == id_parameter("id"))
        )

    @cached_property
    def step(self) -> Statement:
        """A step by `id`, with its newest feedback."""
        return self._compile_read(
            sa.select(self._sql.result(self._step_document())).where(steps.c.id == id_parameter("id"))
        )

    @cached_property
    def steps_below(self) -> Statement:
        """The ids of a step by `id` and of its descendants, as a JSON array."""
        below = sa.select(steps.c.id).where(steps.c.id == id_parameter("id")).cte("below", recursive=True)
        child = steps.alias("child")
        # UNION, not UNION ALL: a step that is its own ancestor ends the walk.
        tree = below.union(sa.select(child.c.id).where(child.c.parentId == below.c.id))
        ids = sa.select(sa.cast(tree.c.id, sa.Text()))
        return self._compile(sa.select(self._sql.result(self._sql.texts(ids))))

    @cached_property
    def element(self) -> Statement:
        """An element by `id` and `thread_id`."""
        mine = (elements.c.id == id_parameter("id")) & (elements.c.threadId == id_parameter("thread_id"))
        return self._compile_read(sa.select(self._sql.result(self._document(elements))).where(mine))

    def thread_of(self, table: str) -> Statement:
        """The `threadId` of a step, element or feedback by `id`."""
        rows = schema.TABLES[table]
        found = self._sql.object({"threadId": sa.cast(rows.c.threadId, sa.Text())})
        return self._compile(sa.select(self._sql.result(found)).where(rows.c.id == id_parameter("id")))

    @cached_property
    def favorite_steps(self) -> Statement:
        """The favourite steps of a user's (`user_id`) threads, newest first."""
        owned = steps.join(threads, threads.c.id == steps.c.threadId)
        chosen = (threads.c.userId == id_parameter("user_id")) & self._sql.is_favorite()
        found = (
            sa.select(self._step_document().label("doc"), steps.c.createdAt, steps.c.id)
            .select_from(owned)
            .where(chosen)
            .order_by(steps.c.createdAt.desc(), steps.c.id.desc())
        )
        return self._compile_read(sa.select(self._sql.result(self._sql.array(found, newest_first=True))))

    def _page(self, *, after: bool, search: bool, feedback: bool, with_steps: bool) -> Statement:
        """A page of a user's (`user_id`) threads, newest activity first, at most `first` of them.

        `after`: behind the thread `cursor`; `search`: containing `needle`; `feedback`: with a feedback of
        `value`. A thread without a stored activity, which another layer wrote, gets it computed. Each comes
        with its `activity`; passed back as `position`, it holds the place of a cursor that has moved or gone.
        """
        conditions = [threads.c.userId == id_parameter("user_id")]
        if search:
            conditions.append(self._matches())
        if feedback:
            conditions.append(_has_feedback())
        stored = sa.select(threads.c.id, threads.c.updatedAt.label("activity")).where(
            threads.c.updatedAt.is_not(None), *conditions
        )
        computed = sa.select(threads.c.id, self._sql.sortable(_computed_activity()).label("activity")).where(
            threads.c.updatedAt.is_(None), *conditions
        )
        if after:
            stored = stored.where(self._behind_cursor(threads.c.updatedAt, threads.c.id))
        first = sa.bindparam("first", type_=sa.Integer())
        # The ordering and the limit stand within the first part, so that it reads the index no further.
        newest = (
            stored.order_by(threads.c.updatedAt.desc(), threads.c.id.desc()).limit(first).subquery("newest")
        )
        rest = computed.subquery("rest")
        others = sa.select(rest.c.id, rest.c.activity)
        if after:
            others = others.where(self._behind_cursor(rest.c.activity, rest.c.id))
        union = sa.union_all(sa.select(newest.c.id, newest.c.activity), others).subquery("candidates")
        page = sa.select(union.c.id, union.c.activity).order_by(union.c.activity.desc(), union.c.id.desc())
        chosen = page.limit(first).subquery("chosen")
        whole: dict[str, Expression] = {}
        if with_steps:
            whole["steps"] = self._of_thread(steps, steps.c.createdAt)
            whole["elements"] = self._of_thread(elements, sent_at(elements))
        document = self._thread_document(activity=chosen.c.activity, **whole)
        found = (
            sa.select(document.label("doc"), chosen.c.activity.label("createdAt"), threads.c.id)
            .select_from(threads.join(chosen, chosen.c.id == threads.c.id))
            .order_by(chosen.c.activity.desc(), threads.c.id.desc())
        )
        return self._compile_read(sa.select(self._sql.result(self._sql.array(found, newest_first=True))))

    def _behind_cursor(self, activity: Expression, key: Expression) -> Expression:
        thread = threads.alias("at")
        mine = (thread.c.id == id_parameter("cursor")) & (thread.c.userId == id_parameter("user_id"))
        at = self._sql.sortable(sa.func.coalesce(thread.c.updatedAt, _computed_activity(thread)))
        position = sa.func.coalesce(text_parameter("position"), sa.select(at).where(mine).scalar_subquery())
        return sa.tuple_(activity, key) < sa.tuple_(position, id_parameter("cursor"))

    def _matches(self) -> Expression:
        said = sa.or_(self._sql.contains(steps.c.output), self._sql.contains(steps.c.input))
        # Not EXISTS: PostgreSQL may turn that into a hash of all users' steps.
        found = sa.select(steps.c.id).where(steps.c.threadId == threads.c.id, said)
        in_steps = found.limit(sa.literal_column("1")).correlate(threads).scalar_subquery()
        return sa.or_(self._sql.contains(threads.c.name), in_steps.is_not(None))

    def _thread_document(self, **more: Expression) -> Expression:
        values = self._values(threads, leaving_out=("updatedAt",))
        return self._sql.object({**values, "userIdentifier": _identifier(threads), **more})

    def _of_thread(self, table: sa.Table, order: Expression) -> Expression:
        document = self._step_document() if table is steps else self._document(table)
        found = (
            sa.select(document.label("doc"), order.label("createdAt"), table.c.id)
            .where(table.c.threadId == threads.c.id)
            .order_by(order, table.c.id)
            .correlate(threads)
        )
        return sa.select(self._sql.array(found)).correlate(threads).scalar_subquery()

    def _step_document(self) -> Expression:
        return self._sql.object({**self._values(steps), "feedback": self._newest_feedback()})

    def _newest_feedback(self) -> Expression:
        newest = (
            sa.select(self._document(feedbacks))
            .where(feedbacks.c.forId == steps.c.id)
            .order_by(*_NEWEST_FEEDBACK)
            .limit(sa.literal_column("1"))
            .correlate(steps)
            .scalar_subquery()
        )
        return self._sql.nested(newest)


_SELDOM_IN_STEPS = ("command", "generation", "language", "indent", "modes", "tags", EXTRA)
_NEWEST_FEEDBACK = (feedbacks.c[WRITTEN_AT].desc().nulls_last(), feedbacks.c.id.desc())


def _as_row(table: sa.Table, name: str, value: Expression) -> Expression:
    """Ids and JSON as text: the driver would make objects of them, one by one and with a slower parser."""
    as_text = schema.kind_of(table.columns[name]) in (Kind.ID, Kind.OBJECT)
    return sa.cast(value, sa.Text()) if as_text else value


def _identifier(thread: FromClause) -> Expression:
    """The owner's login name as it is now: it may have changed since the thread was written."""
    owner = sa.select(users.c.identifier).where(users.c.id == thread.c["userId"])
    return sa.func.coalesce(owner.correlate(thread).scalar_subquery(), thread.c["userIdentifier"])


def _computed_activity(thread: FromClause = threads) -> Expression:
    newest = sa.select(sa.func.max(steps.c.createdAt)).where(steps.c.threadId == thread.c["id"])
    return sa.func.coalesce(newest.scalar_subquery(), thread.c["createdAt"], sa.literal_column("''"))


def _written_at(row: FromClause) -> Expression:
    return sa.func.coalesce(row.c[WRITTEN_AT], sa.literal_column("0"))


def _has_feedback() -> Expression:
    """Whether a step of the thread has the value as its newest feedback."""
    newer = feedbacks.alias("newer")
    later = sa.tuple_(_written_at(newer), newer.c.id) > sa.tuple_(_written_at(feedbacks), feedbacks.c.id)
    return sa.exists().where(
        feedbacks.c.threadId == threads.c.id,
        feedbacks.c.value == sa.bindparam("value", type_=sa.Integer()),
        ~sa.exists().where(newer.c.forId == feedbacks.c.forId, later),
    )
