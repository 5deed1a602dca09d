"""Changes and reads -> SQL, for both databases, built from the schema.

A batch is one JSON document a table, and the database is its parser. A read is one statement that returns
one JSON document; a thread's steps come as rows behind it, since PostgreSQL makes a document of a row at twice the
price of the row. Each statement is compiled once; what comes from outside is always a parameter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.engine import Dialect
from sqlalchemy.sql.selectable import FromClause

from forebay.database.sql.dialects import REMOVED, Expression, PostgresSql, Sql, SqliteSql
from forebay.model import changes, cleaning, schema
from forebay.model.changes import Upsert
from forebay.model.rows import Row
from forebay.model.schema import (
    EXTRA,
    WRITTEN_AT,
    Kind,
    Merge,
    checkpoints,
    elements,
    feedbacks,
    garbage,
    steps,
    threads,
    tombstones,
    users,
)

NOW = "now"


@dataclass(frozen=True, slots=True)
class Inner:
    """What is in a statement's further rows: from the second column on those of `names`, some JSON (`encoded`).

    They are put into order here, by `createdAt` and `id`: the database would copy each row whole to sort them.
    Columns that are hardly ever set cost as much as others to send and to read. They come as one, an object of those
    of `seldom`, null where none of them is set. `of` names the key that holds the first document's id.
    """

    key: str
    of: str
    names: tuple[str, ...]
    encoded: tuple[str, ...]
    seldom: tuple[str, ...]

    def documents(self, owner: str, rows: Iterable[Sequence[Any]]) -> list[dict[str, Any]]:
        """The rows as documents, in their order."""
        found = []
        blank: dict[str, Any] = {self.of: owner, **dict.fromkeys(self.seldom)}
        for row in rows:
            document = blank.copy()
            document.update(zip(self.names, row[1:], strict=True))
            seldom = document.pop(_SELDOM)
            if seldom is not None:
                document.update(orjson.loads(seldom))
            for name in self.encoded:
                if type(document[name]) is str:
                    document[name] = orjson.loads(document[name])
            found.append(document)
        found.sort(key=_moment)
        return found


def _moment(document: Mapping[str, Any]) -> tuple[str, str]:
    """What has no time comes last."""
    return document["createdAt"] or "\uffff", document["id"]


_SELDOM = "seldom"


@dataclass(frozen=True, slots=True)
class Statement:
    """SQL in the driver's own form, and the order of its parameters.

    Its first row's first column is a JSON document. `inner` tells what is in further rows, where that column is null.
    """

    sql: str
    names: tuple[str, ...]
    constants: Mapping[str, Any] = field(default_factory=dict)
    inner: Inner | None = None

    def document(self, rows: Sequence[Sequence[Any]]) -> Any:
        """What it returned, parsed; None for nothing."""
        head = next((row for row in rows if row[0] is not None), None)
        if head is None:
            return None
        found = orjson.loads(head[0])
        if self.inner is not None:
            others = (row for row in rows if row is not head)
            found[self.inner.key] = self.inner.documents(found["id"], others)
        return found

    def arguments(self, parameters: Mapping[str, Any]) -> tuple[Any, ...]:
        """The parameters' values in the statement's order."""
        return tuple(
            self.constants[name] if name in self.constants else parameters[name] for name in self.names
        )


@dataclass(frozen=True, slots=True)
class Documents:
    """A run of upserts as parameters: a JSON array for each table. `partial`: a row lacks a column it needs."""

    parameters: dict[str, Any]
    tables: tuple[str, ...]
    partial: bool


def documents(upserts: Sequence[Upsert]) -> Documents:
    """A run of upserts, each row once, as the batch statement's parameters.

    Rows stand in the order of their keys, so that two writers lock in one order. Each thread that something
    is written into gets a row as well: the stub that makes it exist and moves it up in its owner's list.
    """
    rows: dict[str, dict[str, Row]] = {table.name: {} for table in schema.WRITE_ORDER}
    removed: dict[str, list[str]] = {}
    for upsert in upserts:
        rows[upsert.table][upsert.key] = upsert.row
        if upsert.removed:
            removed[upsert.key] = sorted(upsert.removed)
    now = cleaning.now()
    _add_stubs(rows, upserts, now)
    partial = any(not _MUST_HAVE[table] <= row.keys() for table in _MUST_HAVE for row in rows[table].values())
    parameters: dict[str, Any] = {table: _array(by_key) for table, by_key in rows.items()}
    parameters[REMOVED] = orjson.dumps(removed).decode()
    parameters[NOW] = now
    return Documents(parameters, tuple(table for table, by_key in rows.items() if by_key), partial)


def _add_stubs(rows: dict[str, dict[str, Row]], upserts: Iterable[Upsert], now: str) -> None:
    newest: dict[str, str | None] = {}
    for upsert in upserts:
        if upsert.table == "threads" or upsert.thread_id is None:
            continue
        created = upsert.row.get("createdAt") if upsert.table == "steps" else None
        known = newest.get(upsert.thread_id)
        newest[upsert.thread_id] = max(known, created) if known and created else known or created
    for thread_id, created in newest.items():
        stub = changes.thread_stub(thread_id, created, now)
        rows["threads"][thread_id] = {**stub, **rows["threads"].get(thread_id, {})}


def _array(by_key: dict[str, Row]) -> str:
    ordered = [by_key[key] for key in sorted(by_key)]
    return orjson.dumps(ordered, default=orjson.Fragment).decode()  # JSON is held as bytes


_MUST_HAVE: dict[str, frozenset[str]] = {
    table.name: frozenset(
        column.name
        for column in table.columns
        if schema.merge_of(column) is Merge.LAST
        and (not column.nullable or schema.default_of(column) is not None)
    )
    for table in schema.WRITE_ORDER
}


class Statements:
    """Every statement that forebay runs, in one database's SQL."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._sql: Sql = PostgresSql() if dialect.name == "postgresql" else SqliteSql()
        # One Statements lives as long as its store, and compiles each of these once.
        self.batch = cache(self._batch)
        self.page = cache(self._page)
        self.upsert = cache(self._one_table)
        self.delete = cache(self._delete)

    def compile_writes(self) -> None:
        """Compile what a batch needs now; it takes tens of milliseconds, in which the event loop would stand still."""
        for partial in (False, True):
            if self._dialect.name == "postgresql":
                self.batch(partial=partial, late=False, checkpoint=True)
            else:
                for table in schema.WRITE_ORDER:
                    self.upsert(table.name, partial=partial, late=False)

    def _compile(self, statement: sa.sql.ClauseElement, inner: Inner | None = None) -> Statement:
        compiled = statement.compile(dialect=self._dialect, compile_kwargs={"render_postcompile": True})
        assert isinstance(compiled, sa.sql.compiler.SQLCompiler)
        constants = {name: value for name, value in compiled.params.items() if value is not None}
        return Statement(compiled.string, tuple(compiled.positiontup or ()), constants, inner)

    # ---- writing

    def _batch(self, *, partial: bool, late: bool, checkpoint: bool) -> Statement:
        """All tables' upserts as one data-modifying statement: one round trip, and atomic by itself.

        `late`: beneath what is newer; `checkpoint`: with the journal's, and not at all where that is as far
        already. It returns the ids of those threads that were deleted before, whose rows it leaves out. Foreign
        keys are checked at its end, so the order of its parts does not matter. PostgreSQL only.
        """
        named = self._sql.source(threads)
        # Each thread of the batch has a row there, if only its stub.
        dead = (
            sa.select(tombstones.c.thread_id)
            .where(self._sql.among(tombstones.c.thread_id, sa.select(named.c["id"])))
            .cte("dead")
            .prefix_with("MATERIALIZED")
        )
        first = self._checkpoint().cte("w_checkpoint") if checkpoint else None
        parts = [
            self._upsert(table, partial, late, dead, first).cte(f"w_{table.name}")
            for table in schema.WRITE_ORDER
        ]
        return self._compile(sa.select(sa.cast(dead.c.thread_id, sa.Text())).add_cte(*parts))

    @cached_property
    def dead_threads(self) -> Statement:
        """Which of `ids`, a JSON array, are threads that were deleted. SQLite only."""
        ids = sa.func.json_each(_text("ids")).table_valued("value")
        return self._compile(
            sa.select(tombstones.c.thread_id).where(tombstones.c.thread_id.in_(sa.select(ids.c.value)))
        )

    def _checkpoint(self) -> Any:
        insert = self._sql.insert(checkpoints).values(
            journal_id=_text("journal_id"), applied_seq=sa.bindparam("applied_seq", type_=sa.BigInteger())
        )
        # A statement that was given up may still arrive, when it has been repeated and newer ones are in.
        return insert.on_conflict_do_update(
            index_elements=["journal_id"],
            set_={"applied_seq": insert.excluded.applied_seq},
            where=checkpoints.c.applied_seq < insert.excluded.applied_seq,
        ).returning(checkpoints.c.applied_seq)

    @cached_property
    def checkpoint(self) -> Statement:
        """Note that the journal `journal_id` is in the database up to `applied_seq`; no row when it was already."""
        return self._compile(self._checkpoint())

    @cached_property
    def applied_seq(self) -> Statement:
        """Up to where the journal `journal_id` is in the database."""
        mine = checkpoints.c.journal_id == _text("journal_id")
        return self._compile(
            sa.select(self._sql.result(self._sql.object({"applied_seq": checkpoints.c.applied_seq}))).where(
                mine
            )
        )

    @cached_property
    def forget_journal(self) -> Statement:
        """The journal `journal_id` is gone, and its checkpoint with it."""
        deleted = sa.delete(checkpoints).where(checkpoints.c.journal_id == _text("journal_id"))
        return self._compile(deleted)

    def _one_table(self, table: str, *, partial: bool, late: bool) -> Statement:
        """One table's upserts, with `late` beneath what is newer."""
        return self._compile(self._upsert(schema.TABLES[table], partial, late))

    def _upsert(
        self,
        table: sa.Table,
        partial: bool,
        late: bool,
        dead: sa.CTE | None = None,
        checkpoint: sa.CTE | None = None,
    ) -> Any:
        source = self._sql.source(table)
        selected = {column.name: self._proposed(column, source, partial) for column in table.columns}
        rows: FromClause = source
        if partial:
            rows = source.outerjoin(_stored(table), _stored(table).c["id"] == source.c["id"])
        # SQLite reads "ON" after a bare FROM as a join's; a condition keeps the two apart.
        wanted: Expression = sa.literal_column("1") == sa.literal_column("1")
        if dead is not None:
            thread_id = source.c["id" if table is threads else "threadId"]
            wanted = ~sa.exists().where(dead.c.thread_id == thread_id)
        if checkpoint is not None:
            # Not EXISTS, which the planner would join with.
            wanted &= sa.select(checkpoint.c.applied_seq).scalar_subquery().is_not(None)
        select = sa.select(*selected.values()).select_from(rows).where(wanted)
        insert = self._sql.insert(table).from_select(list(selected), select)
        merge = self._merged_late if late else self._merged
        merged = {c.name: merge(c, insert.excluded) for c in table.columns if c.name != "id"}
        return insert.on_conflict_do_update(index_elements=["id"], set_=merged)

    def _proposed(self, column: sa.Column[Any], source: FromClause, partial: bool) -> Expression:
        """What a row brings for a column, or what it must have instead."""
        if column is threads.c.userIdentifier:
            owner = sa.select(users.c.identifier).where(users.c.id == source.c["userId"])
            return sa.func.coalesce(source.c[column.name], owner.scalar_subquery())
        given: Expression = source.c[column.name]
        if column is threads.c.metadata:
            return sa.func.coalesce(given, self._sql.empty_object())
        if not partial or column.name not in _MUST_HAVE[column.table.name] or column.name == "id":
            return given
        choices = [given, _stored(column.table).c[column.name]]
        default = schema.default_of(column)
        if default is schema.NOW:
            choices.append(sa.bindparam(NOW, type_=sa.Text()))
        elif default is not None:
            choices.append(self._sql.constant(default))
        return sa.func.coalesce(*choices)

    def _merged(self, column: sa.Column[Any], proposed: Any) -> Expression:
        """What stays when the row is there already."""
        excluded = proposed[column.name]
        rule = schema.merge_of(column)
        if rule is Merge.FIRST:
            return sa.func.coalesce(column, excluded)
        if rule is Merge.MAX:
            return self._sql.greatest(column, excluded)
        if rule is Merge.KEYS:
            return self._sql.merge_keys(column, excluded, removing=column is threads.c.metadata)
        return sa.func.coalesce(excluded, column)

    def _merged_late(self, column: sa.Column[Any], proposed: Any) -> Expression:
        """What stays when the row is there already, and may be newer than what comes."""
        merged = self._merged(column, proposed)
        rule = schema.merge_of(column)
        if rule in (Merge.FIRST, Merge.MAX):
            return merged
        excluded: Expression = proposed[column.name]
        beneath: Expression = sa.func.coalesce(column, excluded)
        if rule is Merge.KEYS:
            beneath = self._sql.merge_keys(excluded, column, removing=False)
        stored_is_newer = column.table.c[WRITTEN_AT] > proposed[WRITTEN_AT]
        return sa.case((stored_is_newer, beneath), else_=merged)

    def _delete(self, table: str) -> tuple[Statement, ...]:
        """What removes a row (parameter `id`) and all that hangs on it, in this order.

        A thread leaves a tombstone, of the moment `now_us`; those from before `old_us` are cleared away.
        """
        return tuple(self._compile(statement) for statement in _deletes(self._sql)[table])

    @cached_property
    def garbage(self) -> Statement:
        """The object keys of contents that are to be deleted, at most `first`, as a JSON array."""
        found = sa.select(garbage.c.object_key).limit(sa.bindparam("first", type_=sa.Integer()))
        return self._compile(sa.select(self._sql.result(self._sql.texts(found))))

    @cached_property
    def contents(self) -> Statement:
        """The object keys that those of `elements` name, a JSON array of objects with ids, as a JSON array."""
        ids = sa.select(self._sql.source(elements).c.id)
        found = sa.select(elements.c.objectKey).where(self._sql.among(elements.c.id, ids))
        return self._compile(sa.select(self._sql.result(self._sql.texts(found))))

    @cached_property
    def forget_garbage(self) -> Statement:
        """The content of `object_key` is deleted."""
        return self._compile(sa.delete(garbage).where(garbage.c.object_key == _text("object_key")))

    @cached_property
    def create_user(self) -> Statement:
        """Insert a user or replace its metadata; returns the stored user."""
        insert = self._sql.insert(users).values(
            id=_id_parameter("id"),
            identifier=_text("identifier"),
            metadata=self._sql.json_parameter("metadata"),
            createdAt=_text("createdAt"),
        )
        merged = insert.on_conflict_do_update(
            index_elements=["identifier"], set_={"metadata": insert.excluded.metadata}
        )
        return self._compile(merged.returning(self._sql.result(self._document(users))))

    # ---- reading

    def needle(self, search: str) -> str:
        """What to pass as `needle` to look for a text."""
        return self._sql.needle(search)

    @cached_property
    def user(self) -> Statement:
        """A user by `identifier`."""
        return self._compile(
            sa.select(self._sql.result(self._document(users))).where(
                users.c.identifier == _text("identifier")
            )
        )

    @cached_property
    def thread(self) -> Statement:
        """A thread by `id`, with its steps, their newest feedback, and its elements."""
        key = _id_parameter("id")
        all_values = self._values(steps, leaving_out=("threadId",))
        columns = {
            name: _as_row(steps, name, value)
            for name, value in all_values.items()
            if name not in _SELDOM_IN_STEPS
        }
        columns[_SELDOM] = self._seldom({name: all_values[name] for name in _SELDOM_IN_STEPS})
        columns["feedback"] = self._sql.result(self._newest_feedback())
        document = self._thread_document(elements=self._of_thread(elements, elements.c.id))
        nothing = [sa.null().label(name) for name in columns]
        values = [value.label(name) for name, value in columns.items()]
        head = sa.select(self._sql.result(document).label("doc"), *nothing).where(threads.c.id == key)
        tail = sa.select(sa.null().label("doc"), *values).where(steps.c.threadId == key)
        inner = Inner("steps", "threadId", tuple(columns), ("metadata", "feedback"), _SELDOM_IN_STEPS)
        return self._compile(sa.union_all(head, tail), inner)

    def _seldom(self, values: Mapping[str, Expression]) -> Expression:
        """One column for those of a step that are hardly ever set; null where none is."""
        empty = sa.and_(*(steps.c[name].is_(None) for name in values))
        return sa.case((empty, sa.null()), else_=self._sql.result(self._sql.object(values)))

    @cached_property
    def thread_author(self) -> Statement:
        """The owner's identifier and id, by the thread's `id`."""
        author = self._sql.object(
            {"userIdentifier": threads.c.userIdentifier, "userId": self._sql.plain(threads.c.userId)}
        )
        return self._compile(sa.select(self._sql.result(author)).where(threads.c.id == _id_parameter("id")))

    @cached_property
    def step(self) -> Statement:
        """A step by `id`, with its newest feedback."""
        return self._compile(
            sa.select(self._sql.result(self._step_document())).where(steps.c.id == _id_parameter("id"))
        )

    @cached_property
    def element(self) -> Statement:
        """An element by `id` and `thread_id`."""
        mine = (elements.c.id == _id_parameter("id")) & (elements.c.threadId == _id_parameter("thread_id"))
        return self._compile(sa.select(self._sql.result(self._document(elements))).where(mine))

    @cached_property
    def favorite_steps(self) -> Statement:
        """The favourite steps of a user's (`user_id`) threads, newest first."""
        owned = steps.join(threads, threads.c.id == steps.c.threadId)
        chosen = (threads.c.userId == _id_parameter("user_id")) & self._sql.is_favorite()
        found = (
            sa.select(self._step_document().label("doc"), steps.c.createdAt, steps.c.id)
            .select_from(owned)
            .where(chosen)
            .order_by(steps.c.createdAt.desc(), steps.c.id.desc())
        )
        return self._compile(sa.select(self._sql.result(self._sql.array(found, newest_first=True))))

    def _page(self, *, after: bool, search: bool, feedback: bool, with_steps: bool) -> Statement:
        """A page of a user's (`user_id`) threads, newest activity first, at most `first` of them.

        `after`: behind the thread `cursor`; `search`: containing `needle`; `feedback`: with a feedback of
        `value`. A thread without a stored activity, which another layer wrote, gets it computed. Each comes
        with its `activity`; passed back as `position`, it holds the place of a cursor that has moved or gone.
        """
        conditions = [threads.c.userId == _id_parameter("user_id")]
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
            whole["elements"] = self._of_thread(elements, elements.c.id)
        document = self._thread_document(activity=chosen.c.activity, **whole)
        found = (
            sa.select(document.label("doc"), chosen.c.activity.label("createdAt"), threads.c.id)
            .select_from(threads.join(chosen, chosen.c.id == threads.c.id))
            .order_by(chosen.c.activity.desc(), threads.c.id.desc())
        )
        return self._compile(sa.select(self._sql.result(self._sql.array(found, newest_first=True))))

    def _behind_cursor(self, activity: Expression, key: Expression) -> Expression:
        thread = threads.alias("at")
        mine = (thread.c.id == _id_parameter("cursor")) & (thread.c.userId == _id_parameter("user_id"))
        at = self._sql.sortable(sa.func.coalesce(thread.c.updatedAt, _computed_activity(thread)))
        position = sa.func.coalesce(_text("position"), sa.select(at).where(mine).scalar_subquery())
        return sa.tuple_(activity, key) < sa.tuple_(position, _id_parameter("cursor"))

    def _matches(self) -> Expression:
        said = sa.or_(self._sql.contains(steps.c.output), self._sql.contains(steps.c.input))
        # Not EXISTS: PostgreSQL may turn that into a hash of all users' steps.
        found = sa.select(steps.c.id).where(steps.c.threadId == threads.c.id, said)
        in_steps = found.limit(sa.literal_column("1")).correlate(threads).scalar_subquery()
        return sa.or_(self._sql.contains(threads.c.name), in_steps.is_not(None))

    def _thread_document(self, **more: Expression) -> Expression:
        return self._sql.object({**self._values(threads, leaving_out=("updatedAt",)), **more})

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

    def _document(self, table: sa.Table) -> Expression:
        return self._sql.object(self._values(table))

    def _values(self, table: sa.Table, leaving_out: tuple[str, ...] = ()) -> dict[str, Expression]:
        leaving_out = (*leaving_out, WRITTEN_AT)
        return {c.name: self._sql.plain(c) for c in table.columns if c.name not in leaving_out}


_SELDOM_IN_STEPS = ("command", "generation", "language", "indent", "modes", "tags", EXTRA)
_NEWEST_FEEDBACK = (feedbacks.c[WRITTEN_AT].desc().nulls_last(), feedbacks.c.id.desc())


def _as_row(table: sa.Table, name: str, value: Expression) -> Expression:
    """Ids and JSON as text: the driver would make objects of them, one by one and with a slower parser."""
    as_text = schema.kind_of(table.columns[name]) in (Kind.ID, Kind.OBJECT)
    return sa.cast(value, sa.Text()) if as_text else value


def statements_of(dialect: Dialect) -> Statements:
    """Those of a database's kind; they are compiled once a process, as their SQL depends on nothing else."""
    known = _STATEMENTS.get(dialect.name)
    return known or _STATEMENTS.setdefault(dialect.name, Statements(dialect))


_STATEMENTS: dict[str, Statements] = {}


def _text(name: str) -> sa.BindParameter[Any]:
    return sa.bindparam(name, type_=sa.Text())


def _id_parameter(name: str) -> sa.BindParameter[Any]:
    return sa.bindparam(name, type_=threads.c.id.type)


@cache
def _stored(table: sa.Table) -> FromClause:
    return table.alias("stored")


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


def _deletes(sql: Sql) -> dict[str, tuple[sa.sql.ClauseElement, ...]]:
    key = _id_parameter("id")
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
    tree = sa.select(steps.c.id).where(steps.c.id == _id_parameter("id")).cte("tree", recursive=True)
    # UNION, not UNION ALL: a step that is its own ancestor ends the walk.
    tree = tree.union(sa.select(steps.c.id).where(steps.c.parentId == tree.c.id))
    return sa.select(tree.c.id)


def _discard(sql: Sql, which: Expression) -> Any:
    """Note the contents of these elements, in the transaction that deletes their rows."""
    found = sa.select(elements.c.objectKey).where(elements.c.objectKey.is_not(None), which)
    return sql.insert(garbage).from_select(["object_key"], found).on_conflict_do_nothing()
