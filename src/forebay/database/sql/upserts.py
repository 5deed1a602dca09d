"""What writes rows: a batch's tables, and a user.

A batch is one JSON document a table, and the database is its parser.
"""

from __future__ import annotations

from functools import cache, cached_property
from typing import Any

import sqlalchemy as sa
from sqlalchemy.sql.selectable import FromClause

from forebay.database.sql.batch_parameters import MUST_HAVE, NOW
from forebay.database.sql.bookkeeping import step_checkpoint
from forebay.database.sql.dialect import DISCARDED, Expression, literal
from forebay.database.sql.discards import note_garbage
from forebay.database.sql.statement import Compiler, Statement, id_parameter, sent_at, text_parameter
from forebay.model import schema
from forebay.model.moments import KEYED, PLAIN
from forebay.model.schema import (
    HANGS_ON,
    MADE_AT,
    MOMENTS,
    RATINGS,
    SENT_AT,
    WRITTEN_AT,
    Merge,
    deleted,
    elements,
    feedbacks,
    steps,
    threads,
    tombstones,
    users,
)


class Upserts(Compiler):
    """Statements that insert rows, or change those that are there."""

    def _batch(self, *, partial: bool, late: bool, checkpoint: bool, contents: bool = False) -> Statement:
        """All tables' upserts as one data-modifying statement: one round trip, and atomic by itself.

        `late`: beneath what is newer; `checkpoint`: with the journal's, and not at all where that stands
        elsewhere; `contents`: those that it replaces are noted as garbage. It returns the ids of those threads that
        were deleted before, whose rows it leaves out, and last how many rows it has written and the time on the
        database's clock. Foreign keys are checked at its end, so the order of its parts does not matter. It fails
        where a thread has changed between its beginning and its lock:
        see `dialect.MOVED`. PostgreSQL only.
        """
        first = step_checkpoint(self._sql).cte("w_checkpoint") if checkpoint else None
        parts = [
            self._upsert(table, partial, late, first).returning(*self._written(table)).cte(f"w_{table.name}")
            for table in schema.WRITE_ORDER
        ]
        written = sum((_count(part) for part in parts[1:]), _count(parts[0]))
        total = sa.select(sa.cast(sa.null(), sa.Text()), written, self._sql.moment())
        nothing = sa.cast(sa.null(), sa.BigInteger())
        dead = sa.select(sa.cast(self._buried.c.thread_id, sa.Text()), nothing, nothing)
        found = sa.union_all(
            dead.where(self._buried.c.until == _FOREVER),
            total.select_from(first) if first is not None else total,
        )
        if contents:
            now_named = parts[schema.WRITE_ORDER.index(elements)].c.objectKey
            found = found.add_cte(self._replaced(now_named, first).cte("w_garbage"))
        return self._compile(found.add_cte(*parts, self._revived.cte("w_revived")))

    def _written(self, table: sa.Table) -> tuple[Expression, ...]:
        """What is returned of each row that was written."""
        written = self._sql.arrived() if table is threads else sa.literal_column("1")
        return (written.label("written"), *([table.c.objectKey] if table is elements else []))

    # ---- contents

    def _replaced(self, now_named: Expression, checkpoint: sa.CTE | None) -> Any:
        """Note all contents that the batch's elements had or bring, but for those that its rows name then.

        What the statement sees when it begins is what its upserts meet, or it fails; see `dialect.MOVED`. A content
        that another row names all the same is left alone by whoever collects the garbage.
        """
        keys = sa.union(self._named_before, self._brought, self._discarded).subquery("discarded_keys")
        named = sa.select(now_named).where(now_named.is_not(None))
        gone: Expression = keys.c.object_key.not_in(named)
        if checkpoint is not None:
            gone &= sa.select(checkpoint.c.applied_seq).scalar_subquery().is_not(None)
        return note_garbage(self._sql, keys.c.object_key, gone)

    @cached_property
    def discard_replaced(self) -> Statement:
        """Before a batch's elements are written, note the contents that they will not name any more. SQLite only."""
        keys = sa.union(self._named_before, self._discarded).subquery("discarded_keys")
        return self._compile(note_garbage(self._sql, keys.c.object_key, sa.true()))

    @cached_property
    def discard_left_out(self) -> Statement:
        """After a batch's elements were written, note the contents of those that were left out. SQLite only."""
        keys = self._brought.distinct().subquery("discarded_keys")
        named = sa.exists(sa.select(elements.c.id).where(elements.c.objectKey == keys.c.object_key))
        return self._compile(note_garbage(self._sql, keys.c.object_key, ~named))

    @property
    def _named_before(self) -> sa.Select[Any]:
        """The contents of the batch's elements as they are stored, where the batch brings another."""
        source, stored = self._sql.source(elements), _stored(elements)
        both = source.join(stored, stored.c["id"] == source.c["id"])
        return (
            sa.select(stored.c["objectKey"].label("object_key"))
            .select_from(both)
            .where(stored.c["objectKey"] != source.c["objectKey"])
        )

    @property
    def _brought(self) -> sa.Select[Any]:
        source = self._sql.source(elements)
        return sa.select(source.c["objectKey"].label("object_key")).where(source.c["objectKey"].is_not(None))

    @property
    def _discarded(self) -> sa.Select[Any]:
        return sa.select(self._sql.given(DISCARDED).c.value.label("object_key"))

    @cached_property
    def dead_threads(self) -> Statement:
        """Which of the batch's threads were deleted and must stay so. SQLite only."""
        buried = self._buried
        return self._compile(sa.select(buried.c.thread_id).where(buried.c.until == _FOREVER))

    @cached_property
    def revive(self) -> Statement:
        """Those of the batch's threads that are made anew are deleted no longer. SQLite only."""
        return self._compile(self._revived)

    def _left_out(self, *, late: bool) -> Statement:
        """Which of a batch's rows it did not write: table, id, reason and, of a step, when it went; a row each."""
        return self._compile(sa.union_all(*(self._left_out_of(table, late) for table in schema.WRITE_ORDER)))

    def _left_out_of(self, table: sa.Table, late: bool) -> sa.Select[Any]:
        source, stored = self._sql.source(table), _stored(table)
        rows = source.outerjoin(stored, stored.c["id"] == source.c["id"])
        elsewhere = sa.false() if table is threads else _is_elsewhere(table, source, stored)
        reason = sa.case(
            (self._is_buried(table, source, late), literal("deleted_thread")),
            (elsewhere, literal("other_thread")),
            else_=literal("deleted"),
        )
        key = sa.cast(source.c["id"], sa.Text())
        left = elsewhere | ~self._is_wanted(table, source, late)
        went: Expression = sa.cast(sa.null(), sa.BigInteger())
        if table is steps:
            note = deleted.c.id.in_([source.c["id"], source.c["parentId"]]) & (
                deleted.c.kind == literal("steps")
            )
            went = (
                sa.select(sa.func.max(deleted.c.deleted_at)).where(note).correlate(source).scalar_subquery()
            )
        named = sa.cast(literal(table.name), sa.Text())
        return sa.select(named, key, reason, went).select_from(rows).where(left)

    def _one_table(self, table: str, *, partial: bool, late: bool) -> Statement:
        """One table's upserts, with `late` beneath what is newer; a row for each that is written. SQLite only."""
        upsert = self._upsert(schema.TABLES[table], partial, late)
        return self._compile(upsert.returning(sa.literal_column("1")))

    def _upsert(self, table: sa.Table, partial: bool, late: bool, checkpoint: sa.CTE | None = None) -> Any:
        source = self._sql.source(table)
        selected = {column.name: self._proposed(column, source, partial) for column in table.columns}
        rows: FromClause = source
        if partial:
            rows = source.outerjoin(_stored(table), _stored(table).c["id"] == source.c["id"])
        wanted = self._is_wanted(table, source, late)
        if checkpoint is not None:
            # Not EXISTS, which the planner would join with.
            wanted &= sa.select(checkpoint.c.applied_seq).scalar_subquery().is_not(None)
        select = sa.select(*selected.values()).select_from(rows).where(wanted)
        insert = self._sql.insert(table).from_select(list(selected), select)
        merged = {
            column.name: self._given_only(column, self._merged(column, insert.excluded), partial)
            for column in table.columns
            if column.name not in ("id", "threadId", MOMENTS)
        }
        if MOMENTS in table.columns:
            merged[MOMENTS] = self._moments(table, insert.excluded, partial, late)
        if late:
            merged[WRITTEN_AT] = self._sql.greatest(table.c[WRITTEN_AT], insert.excluded[WRITTEN_AT])
        stays = self._sql.unmoved()
        if table is not threads:
            stays = _same_thread(table, insert.excluded)
            if late:  # or what is read back once more would be written once more
                stays &= sa.or_(*(_differs(table.c[name], value) for name, value in merged.items()))
        seen = self._sql.is_seen(table) if late else None
        if seen is not None:
            stays = seen if stays is None else stays & seen
        return insert.on_conflict_do_update(index_elements=["id"], set_=merged, where=stays)

    # ---- what was deleted

    @cached_property
    def _named(self) -> sa.CTE:
        """The batch's threads: each has a row there, if only its stub."""
        source = self._sql.source(threads)
        named = sa.select(source.c["id"], source.c[MADE_AT])
        return named.cte("named").prefix_with("MATERIALIZED")

    @cached_property
    def _buried(self) -> sa.CTE:
        """Of the batch's threads those that were deleted, and up to when what was written stays out."""
        ids = sa.select(self._named.c["id"])
        dead = sa.select(tombstones.c.thread_id, _FOREVER.label("until")).where(
            self._sql.among(tombstones.c.thread_id, ids), ~self._is_made_anew
        )
        revived = sa.select(deleted.c.id, deleted.c.deleted_at).where(
            deleted.c.kind == literal("threads"), self._sql.among(deleted.c.id, ids)
        )
        return sa.union_all(dead, revived).cte("buried").prefix_with("MATERIALIZED")

    @property
    def _is_made_anew(self) -> Expression:
        """Whether the batch makes the tombstone's thread anew: after it was deleted."""
        moment = sa.select(deleted.c.deleted_at).where(
            deleted.c.kind == literal("threads"), deleted.c.id == tombstones.c.thread_id
        )
        at = sa.func.coalesce(moment.correlate(tombstones).scalar_subquery(), tombstones.c.deleted_at)
        named = self._named
        return sa.exists(
            sa.select(named.c["id"]).where(named.c["id"] == tombstones.c.thread_id, named.c[MADE_AT] > at)
        )

    @property
    def _revived(self) -> Any:
        named = self._named
        made = sa.select(named.c["id"]).where(named.c[MADE_AT].is_not(None))
        mine = self._sql.among(tombstones.c.thread_id, made)
        return sa.delete(tombstones).where(mine, self._is_made_anew)

    def _is_wanted(self, table: sa.Table, source: FromClause, late: bool) -> Expression:
        """Whether a row may be written: neither it nor its thread was deleted since it was made."""
        wanted = ~self._is_buried(table, source, late)
        if table is threads:
            return wanted
        wanted &= ~self._is_deleted(table, source, late)
        if table is feedbacks:
            wanted &= ~_is_on_anothers_step(source)
        return wanted

    def _is_buried(self, table: sa.Table, source: FromClause, late: bool) -> Expression:
        thread_id = source.c["id" if table is threads else "threadId"]
        # A stub has no moment; where its thread was made anew, it only moves that up.
        written = sa.func.coalesce(source.c[WRITTEN_AT], _LONG if table is threads else _ZERO)
        buried = self._buried
        mine = buried.c.thread_id == thread_id
        stub = source.c[WRITTEN_AT].is_(None) & (buried.c.until < _LONG)
        later = self._is_later(written, buried.c.until, late)
        let_in = stub | later if table is threads else later
        return sa.exists(sa.select(buried.c.thread_id).where(mine, ~let_in))

    def _is_deleted(self, table: sa.Table, source: FromClause, late: bool) -> Expression:
        """Whether the row, or the step that it hangs on, was deleted since the row was made.

        Who changes a row does not make it; but where somebody has made it anew, it may be changed.
        """
        anew = table.alias("anew")
        there = sa.select(anew.c["id"]).where(
            anew.c["id"] == source.c["id"], anew.c[WRITTEN_AT] > deleted.c.deleted_at
        )
        written = sa.func.coalesce(source.c[WRITTEN_AT], _ZERO)
        is_later = self._is_later(written, deleted.c.deleted_at, late)
        made = sa.func.coalesce(source.c[MADE_AT], written)
        holds = ~self._is_later(made, deleted.c.deleted_at, late) & ~(
            is_later & _found(there.correlate(deleted, source))
        )
        itself = sa.select(deleted.c.id).where(
            deleted.c.kind == literal(table.name), deleted.c.id == source.c["id"], holds
        )
        above = deleted.c.kind == literal("steps")
        if table is feedbacks:
            above |= deleted.c.kind == literal(RATINGS)
        step = sa.select(deleted.c.id).where(above, deleted.c.id == source.c[HANGS_ON[table.name]], holds)
        return _found(itself.correlate(source)) | _found(step.correlate(source))

    def _is_later(self, moment: Expression, than: Expression, late: bool) -> Expression:
        """Whether one moment is later than another.

        Of what comes late, one that has yet to come, by a clock that was ahead, is no reason against one that has been.
        Who writes at once is not asked: its clock follows the database's.
        """
        later = moment > than
        if not late:
            return later
        now = self._sql.moment() + _AHEAD_US
        return later & ~((moment > now) & (than <= now))

    def _moments(self, table: sa.Table, proposed: Any, partial: bool, late: bool) -> Expression:
        """When the parts of a row were written that a change leaves alone, and those of its own that are older than it.

        A stub, which has no moment, changes none of them.
        """
        of = self._sql.moment_of
        stored, noted = table.c[MOMENTS], proposed[MOMENTS]
        before = sa.func.coalesce(table.c[WRITTEN_AT], _ZERO)
        # What was written with the newest change needs no note.
        newest: Expression = proposed[WRITTEN_AT]
        if late:
            newest = self._sql.greatest(table.c[WRITTEN_AT], newest)
        moments: dict[str, Expression] = {}
        left: list[Expression] = [noted.is_not(None)]
        for name in PLAIN[table.name]:
            column, is_left = table.c[name], proposed[name].is_(None)
            if (
                partial and name in MUST_HAVE[table.name]
            ):  # there is a default by now, which notes that it is none
                is_left = sa.func.coalesce(of(noted, name) == self._sql.as_moment(_ZERO), sa.false())
            old = sa.func.coalesce(of(stored, name), self._sql.as_moment(sa.func.nullif(before, newest)))
            moments[name] = sa.case((~is_left, of(noted, name)), (column.is_not(None), old))
            left.append(is_left & column.is_not(None))
        for name in KEYED[table.name]:
            # By their names: a subquery would take columns of the table for its own.
            there: Expression = sa.literal_column(f'{table.name}."{name}"')
            comes: Expression = sa.literal_column(f'excluded."{name}"')
            at: Expression = sa.literal_column(f'{table.name}."{WRITTEN_AT}"')
            new_at: Expression = sa.literal_column(f'excluded."{WRITTEN_AT}"')
            at = sa.func.nullif(
                sa.func.coalesce(at, _ZERO), self._sql.greatest(at, new_at) if late else new_at
            )
            moments[name] = self._sql.key_moments(there, comes, of(stored, name), of(noted, name), at)
            left.append(table.c[name].is_not(None))
        noticed = self._sql.object_of_moments(moments)
        return sa.case((proposed[WRITTEN_AT].is_(None), stored), (sa.or_(*left), noticed))

    def _stored_rows(self, table: str) -> Statement:
        """Those of `ids`, a JSON array, that are there: the id and what `moments.Stored` needs, a row each.

        They are held until the transaction ends.
        """
        stored = schema.TABLES[table]
        ids = self._sql.given("ids")
        wanted = sa.select(sa.cast(ids.c.value, stored.c.id.type))
        objects = [*KEYED[table], *(["metadata"] if stored is steps else [])]
        moments = self._sql.plain(stored.c[MOMENTS]) if MOMENTS in stored.columns else sa.null()
        there = {name: stored.c[name].is_not(None) for name in PLAIN[table]}
        document = self._sql.object(
            {
                "written_at": sa.func.coalesce(stored.c[WRITTEN_AT], _ZERO),
                "moments": moments,
                "there": self._sql.object(there),
                "objects": self._sql.object({name: self._sql.plain(stored.c[name]) for name in objects}),
                "now": self._sql.moment(),
            }
        )
        found = sa.select(sa.cast(stored.c.id, sa.Text()).label("id"), self._sql.result(document))
        return self._compile(self._sql.held(found.where(self._sql.among(stored.c.id, wanted))))

    def _proposed(self, column: sa.Column[Any], source: FromClause, partial: bool) -> Expression:
        """What a row brings for a column, or what it must have instead."""
        if column is threads.c.userIdentifier:
            owner = sa.select(users.c.identifier).where(users.c.id == source.c["userId"])
            return sa.func.coalesce(source.c[column.name], owner.scalar_subquery())
        given: Expression = source.c[column.name]
        if column.name == SENT_AT:  # what was written once was sent then
            return sa.func.coalesce(given, source.c[WRITTEN_AT])
        if column is threads.c.metadata:
            return sa.func.coalesce(given, self._sql.empty_object())
        if not partial or column.name not in MUST_HAVE[column.table.name] or column.name == "id":
            return given
        choices = [given, _stored(column.table).c[column.name]]
        default = schema.default_of(column)
        if default is schema.NOW:
            choices.append(sa.bindparam(NOW, type_=sa.Text()))
        elif default is not None:
            choices.append(self._sql.constant(default))
        return sa.func.coalesce(*choices)

    def _given_only(self, column: sa.Column[Any], merged: Expression, partial: bool) -> Expression:
        """A default is for a new row: it does not change one that another writer has made in the meantime."""
        if not partial or column.name not in MUST_HAVE[column.table.name]:
            return merged
        lacks = self._sql.lacks(column)
        return merged if lacks is None else sa.case((lacks, column), else_=merged)

    def _merged(self, column: sa.Column[Any], proposed: Any) -> Expression:
        """What stays when the row is there already."""
        excluded = proposed[column.name]
        if column is steps.c.metadata:
            return self._sql.keep_star(column, excluded)
        if column is threads.c.userId or column is threads.c.userIdentifier:
            return self._owner(column, proposed)
        rule = schema.merge_of(column)
        if rule is Merge.FIRST:
            return sa.func.coalesce(column, excluded)
        if rule is Merge.MAX:
            return self._sql.greatest(column, excluded)
        if rule is Merge.MIN:  # where it was not noted, the row keeps the place that it is read at
            return self._sql.least(sent_at(column.table), excluded)
        if rule is Merge.KEYS:
            return self._sql.merge_keys(column, excluded, removing=column is threads.c.metadata)
        return sa.func.coalesce(excluded, column)

    def _owner(self, column: sa.Column[Any], proposed: Any) -> Expression:
        """A thread's owner stays, but for one that it is passed on to; the identifier goes with the id."""
        given: Expression = sa.func.coalesce(proposed[column.name], column)
        passes = (threads.c.userId == proposed["userId"]) | self._sql.is_passed_on()
        return sa.case(
            (threads.c.userId.is_(None) | proposed["userId"].is_(None) | passes, given), else_=column
        )

    @cached_property
    def create_user(self) -> Statement:
        """Insert a user or replace its metadata; returns the stored user.

        No row for who was deleted, which is noted as `name_id`, at `moment` or later: it is a login of before that.
        """
        values = {
            "id": id_parameter("id"),
            "identifier": text_parameter("identifier"),
            "metadata": self._sql.json_parameter("metadata"),
            "createdAt": text_parameter("createdAt"),
        }
        gone = sa.select(deleted.c.id).where(
            deleted.c.kind == literal("users"),
            deleted.c.id == id_parameter("name_id"),
            deleted.c.deleted_at >= sa.bindparam("moment", type_=sa.BigInteger()),
        )
        found = sa.select(*values.values()).where(~sa.exists(gone))
        insert = self._sql.insert(users).from_select(list(values), found)
        merged = insert.on_conflict_do_update(
            index_elements=["identifier"], set_={"metadata": insert.excluded.metadata}
        )
        return self._compile(merged.returning(self._sql.result(self._document(users))))


_FOREVER: Expression = sa.cast(sa.literal_column(str(2**63 - 1)), sa.BigInteger())
_LONG: Expression = sa.cast(sa.literal_column(str(2**63 - 2)), sa.BigInteger())
_ZERO: Expression = sa.literal_column("0")
# What is further ahead than this is not a clock's difference. 5 s.
_AHEAD_US: Expression = sa.literal_column("5000000")


def _is_elsewhere(table: sa.Table, source: FromClause, stored: FromClause) -> Expression:
    """Whether the row is there in another thread, or is a feedback on a step of another."""
    moves = stored.c["id"].is_not(None) & ~_same_thread(table, source, stored)
    return moves | _is_on_anothers_step(source) if table is feedbacks else moves


def _is_on_anothers_step(source: FromClause) -> Expression:
    step = steps.alias("rated")
    there = (step.c["id"] == source.c["forId"]) & (step.c["threadId"] != source.c["threadId"])
    return _found(sa.select(step.c["id"]).where(there))


def _same_thread(table: sa.Table, proposed: Any, stored: FromClause | None = None) -> Expression:
    """Whether a row that comes is in the thread of the one that is there; one that names none is."""
    given, there = _of(proposed, "threadId"), (table if stored is None else stored).c["threadId"]
    return given.is_(None) | there.is_not_distinct_from(given)


def _differs(column: sa.Column[Any], value: Expression) -> Expression:
    if schema.kind_of(column) is schema.Kind.OBJECT:  # not every kind of JSON can be compared
        return sa.cast(column, sa.Text()).is_distinct_from(sa.cast(value, sa.Text()))
    return column.is_distinct_from(value)


def _of(row: Any, name: str) -> Expression:
    found: Expression = row.c[name] if isinstance(row, FromClause) else row[name]
    return found


def _found(rows: sa.Select[Any]) -> Expression:
    """Whether there is one. Not EXISTS, which the planner would join with, reading a table through."""
    return rows.limit(sa.literal_column("1")).scalar_subquery().is_not(None)


def _count(part: sa.CTE) -> Any:
    return sa.select(sa.func.count()).select_from(part).scalar_subquery()


@cache
def _stored(table: sa.Table) -> FromClause:
    return table.alias("stored")
