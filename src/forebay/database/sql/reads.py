"""What reads: one statement each, that returns one JSON document.

A thread's steps come as rows behind it, since PostgreSQL makes a document of a row at twice the price of the row.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from functools import cached_property, reduce
from typing import Any

import sqlalchemy as sa
from sqlalchemy.sql.selectable import FromClause

from forebay.database.sql.activity import activity, computed_activity
from forebay.database.sql.dialect import STORED_THREAD_ID, Expression, literal
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
from forebay.model.schema import (
    EXTRA,
    NOTES,
    SENT_AT,
    WRITTEN_AT,
    Kind,
    elements,
    feedbacks,
    steps,
    threads,
    users,
)


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
        """A thread by `id`, with its steps, their newest feedback, and its elements.

        A long one comes without them, and with its `extent`: how many there are. See `long_thread`.
        """
        return self._thread(self._extent())

    @cached_property
    def long_thread(self) -> Statement:
        """As `thread`, with the newest steps and elements: at most `most_rows` and `most_bytes`, and one, of each."""
        return self._thread(None)

    def _thread(self, extent: FromClause | None) -> Statement:
        key = id_parameter("id")
        all_values = self._values(steps, leaving_out=("threadId",))
        columns = {
            name: _as_row(steps, name, value)
            for name, value in all_values.items()
            if name not in _SELDOM_IN_STEPS
        }
        columns[SELDOM] = self._seldom({name: all_values[name] for name in _SELDOM_IN_STEPS})
        columns["feedback"] = self._sql.result(self._newest_feedback())
        columns[SENT_AT] = sent_at(steps)
        nothing = [sa.null().label(name) for name in columns]
        values = [value.label(name) for name, value in columns.items()]
        tail = sa.select(sa.null().label("doc"), *values).where(steps.c.threadId == key)
        if extent is None:
            document = self._thread_document(elements=self._of_thread(elements, bounded=True))
            tail = tail.where(steps.c.id.in_(self._newest(steps, key)))
        else:
            document = self._thread_document(**self._while_short(extent))
            tail = tail.where(_is_short(extent))
        head = sa.select(self._sql.result(document).label("doc"), *nothing).where(threads.c.id == key)
        inner = Inner("steps", "threadId", tuple(columns), ("metadata", "feedback"), _SELDOM_IN_STEPS)
        return self._compile_read(sa.union_all(head, tail), inner)

    def _seldom(self, values: Mapping[str, Expression]) -> Expression:
        """One column for those of a step that are hardly ever set; null where none is."""
        empty = sa.and_(*(steps.c[name].is_(None) for name in values))
        return sa.case((empty, sa.null()), else_=self._sql.result(self._sql.object(values)))

    def _extent(self) -> sa.CTE:
        """How many steps and elements a thread (`id`) has, and how many bytes they are."""
        s, e = (self._counted(table).subquery(f"counted_{table.name}") for table in (steps, elements))
        every = sa.select(
            s.c.rows.label("steps"), e.c.rows.label("elements"), (s.c.size + e.c.size).label("size")
        )
        return every.select_from(s.join(e, sa.true())).cte("extent")

    def _counted(self, table: sa.Table) -> sa.Select[*tuple[Any, ...]]:
        size = sa.func.coalesce(sa.func.sum(self._weight(table)), literal(0))
        found = sa.select(sa.func.count().label("rows"), size.label("size"))
        return found.select_from(table).where(table.c.threadId == id_parameter("id"))

    def _while_short(self, extent: FromClause) -> dict[str, Expression]:
        """The elements of a short thread, and the extent of a long one."""
        names = {name: extent.c[name] for name in ("steps", "elements")}
        counts = sa.select(self._sql.object(names)).select_from(extent).scalar_subquery()
        return {
            "elements": self._sql.nested(sa.case((_is_short(extent), self._of_thread(elements)))),
            "extent": self._sql.nested(sa.case((~_is_short(extent), counts))),
        }

    def _weight(self, table: sa.Table, row: FromClause | None = None) -> Expression:
        """How many bytes a row (of the table, or of an alias of it) has in the values that can be of any size."""
        of_row = table.c if row is None else row.c
        kinds = {column.name: schema.kind_of(column) for column in table.columns if column.name not in NOTES}
        weights: Iterator[Expression] = (
            sa.func.coalesce(self._sql.size(of_row[name], kind), literal(0))
            for name, kind in kinds.items()
            if kind in _OF_ANY_SIZE
        )
        return reduce(operator.add, weights)

    def _newest(self, table: sa.Table, thread_id: Expression) -> sa.Select[*tuple[Any, ...]]:
        """The ids of the newest rows of a thread: `most_rows` with `most_bytes`, or one."""
        row = table.alias("of_thread")
        order = sent_at(row) if table is elements else row.c.createdAt
        newest = (
            sa.select(row.c.id, order.label("place"), self._weight(table, row).label("size"))
            .where(row.c.threadId == thread_id)
            .order_by(order.desc())
            .limit(sa.bindparam("most_rows", type_=sa.Integer()))
            .subquery("newest")
        )
        return self._fitting(newest, newest.c.place)

    def _fitting(self, rows: sa.Subquery, place: Expression) -> sa.Select[*tuple[Any, ...]]:
        """The ids of the first rows by `place`, descending, as long as they have `most_bytes`; the first anyway."""
        order = (place.desc(), rows.c.id.desc())
        number = sa.func.row_number().over(order_by=order).label("number")
        total = sa.func.sum(rows.c.size).over(order_by=order).label("total")
        summed = sa.select(rows.c.id, number, total).subquery("summed")
        return sa.select(summed.c.id).where(_fits(summed))

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
        """The newest favourite steps of a user's (`user_id`) threads, newest first: `most_rows`, with `most_bytes`."""
        owned = steps.join(threads, threads.c.id == steps.c.threadId)
        chosen = (threads.c.userId == id_parameter("user_id")) & self._sql.is_favorite()
        newest = (
            sa.select(steps.c.id, steps.c.createdAt, self._weight(steps).label("size"))
            .select_from(owned)
            .where(chosen)
            .order_by(steps.c.createdAt.desc(), steps.c.id.desc())
            .limit(sa.bindparam("most_rows", type_=sa.Integer()))
            .subquery("newest")
        )
        found = (
            sa.select(self._step_document().label("doc"), steps.c.createdAt, steps.c.id)
            .where(self._sql.among(steps.c.id, self._fitting(newest, newest.c.createdAt)))
            .order_by(steps.c.createdAt.desc(), steps.c.id.desc())
        )
        return self._compile_read(sa.select(self._sql.result(self._sql.array(found, newest_first=True))))

    def _page(self, *, after: bool, search: bool, feedback: bool, with_steps: bool) -> Statement:
        """A page of a user's (`user_id`) threads, newest activity first, at most `first` of them, with `most_bytes`.

        `after`: behind the thread `cursor`; `search`: containing `needle`; `feedback`: with a feedback of
        `value`. A thread without a stored activity, which another layer wrote, gets it computed. Each comes
        with its `activity`; passed back as `position`, it holds the place of a cursor that has moved or gone. And
        with `followed`, whether another of the `first` comes behind it.
        """
        conditions = [threads.c.userId == id_parameter("user_id")]
        if search:
            conditions.append(self._matches())
        if feedback:
            conditions.append(_has_feedback())
        stored = sa.select(threads.c.id, threads.c.updatedAt.label("activity")).where(
            threads.c.updatedAt.is_not(None), *conditions
        )
        computed = sa.select(threads.c.id, self._sortable(computed_activity()).label("activity")).where(
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
            whole = {table.name: self._of_thread(table, bounded=True) for table in (steps, elements)}
        summed = self._summed(chosen, with_steps=with_steps)
        document = self._thread_document(activity=summed.c.activity, followed=summed.c.followed, **whole)
        found = (
            sa.select(document.label("doc"), summed.c.activity.label("createdAt"), threads.c.id)
            .select_from(threads.join(summed, summed.c.id == threads.c.id))
            .where(_fits(summed))
            .order_by(summed.c.activity.desc(), threads.c.id.desc())
        )
        return self._compile_read(sa.select(self._sql.result(self._sql.array(found, newest_first=True))))

    def _summed(self, chosen: sa.Subquery, *, with_steps: bool) -> sa.Subquery:
        """Of each thread of a page: its number, the bytes up to it, and whether another follows."""
        order = (chosen.c.activity.desc(), chosen.c.id.desc())
        size = self._weight(threads)
        for table in (steps, elements) if with_steps else ():
            inner = sa.select(sa.func.sum(self._weight(table))).where(table.c.threadId == threads.c.id)
            size = size + sa.func.coalesce(inner.correlate(threads).scalar_subquery(), literal(0))
        next_one = sa.func.lead(chosen.c.id).over(order_by=order)
        return (
            sa.select(
                chosen.c.id,
                chosen.c.activity,
                sa.func.row_number().over(order_by=order).label("number"),
                sa.func.sum(size).over(order_by=order).label("total"),
                next_one.is_not(None).label("followed"),
            )
            .select_from(threads.join(chosen, chosen.c.id == threads.c.id))
            .subquery("summed")
        )

    def _behind_cursor(self, moment: Expression, key: Expression) -> Expression:
        thread = threads.alias("at")
        mine = (thread.c.id == id_parameter("cursor")) & (thread.c.userId == id_parameter("user_id"))
        at = self._sortable(activity(thread))
        position = sa.func.coalesce(text_parameter("position"), sa.select(at).where(mine).scalar_subquery())
        return sa.tuple_(moment, key) < sa.tuple_(position, id_parameter("cursor"))

    def _sortable(self, moment: Expression) -> Expression:
        return self._sql.sortable(sa.func.coalesce(moment, sa.literal_column("''")))

    def _matches(self) -> Expression:
        said = sa.or_(self._sql.contains(steps.c.output), self._sql.contains(steps.c.input))
        # Not EXISTS: PostgreSQL may turn that into a hash of all users' steps.
        found = sa.select(steps.c.id).where(steps.c.threadId == threads.c.id, said)
        in_steps = found.limit(literal(1)).correlate(threads).scalar_subquery()
        return sa.or_(self._sql.contains(threads.c.name), in_steps.is_not(None))

    def _thread_document(self, **more: Expression) -> Expression:
        values = self._values(threads, leaving_out=("updatedAt",))
        return self._sql.object({**values, "userIdentifier": _identifier(threads), **more})

    def _of_thread(self, table: sa.Table, *, bounded: bool = False) -> Expression:
        document = (
            self._step_document(**{SENT_AT: sent_at(steps)}) if table is steps else self._document(table)
        )
        order = sent_at(table) if table is elements else table.c.createdAt
        found = sa.select(document.label("doc"), order.label("createdAt"), table.c.id)
        if bounded:
            # Not IN: SQLite would look for the newest at each row.
            newest = self._newest(table, STORED_THREAD_ID).subquery("bounded")
            found = found.select_from(table.join(newest, newest.c.id == table.c.id))
        else:
            found = found.where(table.c.threadId == threads.c.id)
        array = self._sql.array(found.order_by(order, table.c.id).correlate(threads))
        return sa.select(array).correlate(threads).scalar_subquery()

    def _step_document(self, **more: Expression) -> Expression:
        return self._sql.object({**self._values(steps), "feedback": self._newest_feedback(), **more})

    def _newest_feedback(self) -> Expression:
        newest = (
            sa.select(self._document(feedbacks))
            .where(feedbacks.c.forId == steps.c.id)
            .order_by(*_newest_first(feedbacks))
            .limit(literal(1))
            .correlate(steps)
            .scalar_subquery()
        )
        return self._sql.nested(newest)


_SELDOM_IN_STEPS = ("command", "generation", "language", "indent", "modes", "tags", EXTRA)


# A thread with more is read in two goes. Its steps are parsed in the event loop, for some milliseconds.
_SHORT_ROWS, _SHORT_BYTES = 500, 1024 * 1024
_OF_ANY_SIZE = (Kind.TEXT, Kind.LIST, Kind.OBJECT)


def _is_short(extent: FromClause) -> Expression:
    few = extent.c.steps + extent.c.elements <= literal(_SHORT_ROWS)
    return sa.select(few & (extent.c.size <= literal(_SHORT_BYTES))).select_from(extent).scalar_subquery()


def _fits(summed: FromClause) -> Expression:
    most = sa.bindparam("most_bytes", type_=sa.BigInteger())
    return (summed.c.number == literal(1)) | (summed.c.total <= most)


def _as_row(table: sa.Table, name: str, value: Expression) -> Expression:
    """Ids and JSON as text: the driver would make objects of them, one by one and with a slower parser."""
    as_text = schema.kind_of(table.columns[name]) in (Kind.ID, Kind.OBJECT)
    return sa.cast(value, sa.Text()) if as_text else value


def _identifier(thread: FromClause) -> Expression:
    """The owner's login name as it is now: it may have changed since the thread was written."""
    owner = sa.select(users.c.identifier).where(users.c.id == thread.c["userId"])
    return sa.func.coalesce(owner.correlate(thread).scalar_subquery(), thread.c["userIdentifier"])


def _has_feedback() -> Expression:
    """Whether a step of the thread has the value as its newest feedback."""
    newest = feedbacks.alias("newest")
    of_step = sa.select(newest.c.id).where(newest.c.forId == feedbacks.c.forId).correlate(feedbacks)
    return sa.exists().where(
        feedbacks.c.threadId == threads.c.id,
        feedbacks.c.value == sa.bindparam("value", type_=sa.Integer()),
        feedbacks.c.id == of_step.order_by(*_newest_first(newest)).limit(literal(1)).scalar_subquery(),
    )


def _newest_first(rated: FromClause) -> tuple[Expression, Expression]:
    """As the index has them."""
    return rated.c[WRITTEN_AT].desc().nulls_last(), rated.c["id"].desc()
