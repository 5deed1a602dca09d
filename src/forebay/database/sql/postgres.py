"""PostgreSQL's way of saying what `dialect.Sql` asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.sql.selectable import FromClause

from forebay.database.sql.dialect import (
    LACKING,
    LOCK_PATIENCE_MS,
    MOVED,
    NEEDLE,
    PASSED_ON,
    REMOVED,
    SEEN,
    STORED_THREAD_ID,
    Expression,
    literal,
    pairs,
)
from forebay.model import schema
from forebay.model.changes import STAR
from forebay.model.schema import MADE_AT, Kind, threads


class PostgresSql:
    """PostgreSQL 12 and later."""

    def source(self, table: sa.Table) -> FromClause:
        """`json_to_recordset`: the database parses the document, by the schema's types."""
        columns = [sa.column(c.name, c.type) for c in table.columns]
        columns.append(sa.column(MADE_AT, sa.BigInteger()))
        parsed = sa.func.json_to_recordset(self._json(table.name, postgresql.JSON()))
        return parsed.table_valued(*columns).render_derived(with_types=True)

    def given(self, name: str) -> FromClause:
        """`json_array_elements_text`."""
        texts = sa.func.json_array_elements_text(self._json(name, postgresql.JSON()))
        return texts.table_valued(sa.column("value", sa.Text())).render_derived()

    def digest(self, text: Expression) -> Expression:
        """`sha256`; `md5` is refused where a server keeps to FIPS."""
        encoded = sa.func.sha256(sa.func.convert_to(text, literal("UTF8")))
        return sa.func.encode(encoded, literal("hex"))

    def insert(self, table: sa.Table) -> Any:
        """PostgreSQL's INSERT."""
        return postgresql.insert(table)

    def constant(self, value: Any) -> Expression:
        """A literal; text is typed, or it would be of an unknown type."""
        return sa.cast(literal(value), sa.Text()) if isinstance(value, str) else literal(value)

    def empty_object(self) -> Expression:
        """`'{}'::jsonb`."""
        return sa.literal_column("'{}'::jsonb")

    def json_parameter(self, name: str) -> Expression:
        """Text, cast to JSONB."""
        return self._json(name, postgresql.JSONB())

    def greatest(self, stored: Expression, given: Expression) -> Expression:
        """`greatest` leaves nulls out."""
        return sa.func.greatest(stored, given)

    def least(self, stored: Expression, given: Expression) -> Expression:
        """`least` leaves nulls out."""
        return sa.func.least(stored, given)

    def merge_keys(self, stored: Expression, given: Expression, *, removing: bool) -> Expression:
        """`||` lays one object over the other; `-` takes keys out. What is no object counts as an empty one."""
        base = sa.func.coalesce(_an_object(stored), self.empty_object())
        laid = _an_object(given)
        if not removing:
            return sa.func.coalesce(base.op("||")(laid), stored)
        mine = self.json_parameter(REMOVED).op("->")(sa.cast(STORED_THREAD_ID, sa.Text()))
        keys = sa.func.array(sa.select(sa.func.jsonb_array_elements_text(mine)).scalar_subquery())
        return base.op("-")(keys).op("||")(laid)

    def lacks(self, column: sa.Column[Any]) -> Expression:
        """By a parameter, since the row that comes has the default there by now."""
        key = sa.cast(sa.literal_column(f"{column.table.name}.id"), sa.Text())
        named = self.json_parameter(LACKING).op("->")(literal(column.table.name)).op("->")(key)
        return sa.func.jsonb_exists(named, literal(column.name))

    def keep_star(self, stored: Expression, given: Expression) -> Expression:
        """Objects only: `-` and `||` mean other things for lists."""
        star = literal(STAR)
        objects = sa.and_(*(sa.func.jsonb_typeof(one) == literal("object") for one in (stored, given)))
        kept = objects & sa.func.jsonb_exists(stored, star) & ~sa.func.jsonb_exists(given, star)
        starred = given.op("||")(sa.func.jsonb_build_object(star, stored.op("->")(star)))
        return sa.case((kept, starred), else_=sa.func.coalesce(given, stored))

    def is_seen(self, table: sa.Table) -> Expression:
        """Those that were there are held since, so one that was not seen has come meanwhile."""
        key = sa.cast(sa.literal_column(f"{table.name}.id"), sa.Text())
        seen = sa.func.jsonb_exists(self.json_parameter(SEEN).op("->")(literal(table.name)), key)
        return sa.case((seen, sa.true()), else_=_moved(sa.literal_column(f"{table.name}.id")) == literal(0))

    def held(self, found: sa.Select[*tuple[Any, ...]]) -> Any:
        """In the order of their keys, as two writers lock."""
        return found.order_by(*found.exported_columns.values()[:1]).with_for_update()

    def moment_of(self, moments: Expression, name: str) -> Expression:
        """JSON."""
        return sa.type_coerce(moments.op("->")(literal(name)), postgresql.JSONB())

    def as_moment(self, number: Expression) -> Expression:
        """JSON."""
        return sa.func.to_jsonb(number, type_=postgresql.JSONB())

    def key_moments(
        self,
        stored: Expression,
        given: Expression,
        known: Expression,
        noted: Expression,
        written_at: Expression,
    ) -> Expression:
        """`||` and `-` on objects."""
        keys = sa.func.jsonb_object_keys(_an_object(stored)).column_valued("key")
        all_of = sa.select(sa.func.jsonb_object_agg(keys, written_at)).scalar_subquery()
        new_keys = sa.func.jsonb_object_keys(_an_object(given)).column_valued("new_key")
        new = sa.func.array(sa.select(new_keys).scalar_subquery())
        empty = self.empty_object()
        before = sa.func.coalesce(all_of, empty).op("||")(sa.func.coalesce(known, empty))
        merged = before.op("-")(new).op("||")(sa.func.coalesce(noted, empty))
        return sa.func.nullif(sa.func.jsonb_strip_nulls(merged), empty)

    def object_of_moments(self, moments: Mapping[str, Expression]) -> Expression:
        """`jsonb_strip_nulls`."""
        made = sa.func.jsonb_strip_nulls(sa.func.jsonb_build_object(*pairs(moments)))
        return sa.func.nullif(made, self.empty_object())

    def plain(self, column: sa.Column[Any]) -> Expression:
        """As it is."""
        return column

    def nested(self, document: Expression) -> Expression:
        """As it is."""
        return document

    def object(self, values: Mapping[str, Expression]) -> Expression:
        """`json_build_object`."""
        return sa.func.json_build_object(*pairs(values))

    def array(self, found: sa.Select[Any], *, newest_first: bool = False) -> Expression:
        """`json_agg`, which orders by itself."""
        rows = found.order_by(None).subquery("found")
        order = (rows.c.createdAt, rows.c.id)
        ordered = tuple(column.desc() for column in order) if newest_first else order
        return sa.func.coalesce(
            sa.func.json_agg(postgresql.aggregate_order_by(rows.c.doc, *ordered)),
            sa.literal_column("'[]'::json"),
        )

    def texts(self, found: sa.Select[Any]) -> Expression:
        """An array, as JSON."""
        return sa.func.to_json(sa.func.array(found.scalar_subquery()))

    def result(self, document: Expression) -> Expression:
        """Text, since SQLAlchemy has the driver parse JSON with a slower parser."""
        return sa.cast(document, sa.Text())

    def size(self, value: Expression, kind: Kind) -> Expression:
        """A text's stands beside it. JSON's is its own once it is unpacked, which `#> '{}'` does; a list is small."""
        if kind is Kind.OBJECT:
            return sa.func.pg_column_size(value.op("#>")(sa.literal_column("'{}'::text[]")))
        return sa.func.octet_length(
            sa.func.array_to_string(value, literal(" ")) if kind is Kind.LIST else value
        )

    def sortable(self, activity: Expression) -> Expression:
        """By code point is the collation "C"."""
        return sa.collate(activity, "C")

    def contains(self, column: Expression) -> Expression:
        """By a regular expression, which goes through a text once and can be ended while it does.

        ILIKE and `strpos` try the needle at each letter, and end only with the text.
        """
        return column.op("~*")(sa.bindparam(NEEDLE, type_=sa.Text()))

    def needle(self, search: str) -> str:
        """`***=` says that all which follows stands for itself."""
        return f"***={search}"

    def is_passed_on(self) -> Expression:
        """By a JSON array of ids."""
        return sa.func.jsonb_exists(self.json_parameter(PASSED_ON), sa.cast(STORED_THREAD_ID, sa.Text()))

    def locked(self, thread: sa.Select[Any]) -> Any:
        """A new version of the thread's row: every batch meets that row, and sees that it is another one."""
        same = sa.update(threads).values(createdAt=threads.c.createdAt)
        return same.where(threads.c.id == thread.scalar_subquery())

    def names_held(self, given: FromClause) -> Any:
        """By locks that stand for nothing else; as another name's they would only make somebody wait."""
        return sa.select(sa.func.pg_advisory_xact_lock(literal(_OF_NAMES), sa.func.hashtext(given.c.value)))

    def unmoved(self) -> Expression:
        """By the row's version. A statement waits for a lock, and then goes on with what it saw before."""
        seen = sa.select(_SEEN_VERSION).select_from(_SEEN).where(_SEEN.c.id == _MET_ID).scalar_subquery()
        return sa.case((seen == _MET_VERSION, sa.true()), else_=_moved() == literal(0))

    def arrived(self) -> Expression:
        """A new row has no version before it."""
        is_new = sa.literal_column("threads.xmax") == literal(0)
        was_seen = sa.exists(sa.select(_SEEN.c.id).where(_SEEN.c.id == _MET_ID))
        return sa.case((is_new & was_seen, _moved()), else_=literal(1))

    def patience(self) -> Expression:
        """`set_config` counts at once and until the transaction's end. A session's setting would stay with a pooler."""
        name, value = literal("lock_timeout"), literal(str(LOCK_PATIENCE_MS))
        return sa.func.set_config(name, value, sa.true()).is_not(None)

    def among(self, column: sa.Column[Any], found: sa.SelectBase) -> Expression:
        """An array: with IN, the planner takes a tree of steps for thousands, and reads the table through."""
        return column == sa.func.any(sa.func.array(found.scalar_subquery()))

    def is_favorite(self) -> Expression:
        """The condition of the partial index."""
        return schema.FAVORITE

    def moment(self) -> Expression:
        """`clock_timestamp()`."""
        return sa.literal_column("(extract(epoch FROM clock_timestamp()) * 1000000)::bigint")

    def _json(self, name: str, kind: sa.types.TypeEngine[Any]) -> Expression:
        return sa.cast(sa.bindparam(name, type_=sa.Text()), kind)


_OF_NAMES = 1717857  # among the advisory locks of the database
# A thread as the statement saw it when it began, and the row that its upsert meets.
_SEEN = threads.alias("seen")
_SEEN_VERSION: Expression = sa.literal_column("seen.xmin")
_MET_VERSION: Expression = sa.literal_column("threads.xmin")
_MET_ID: Expression = sa.literal_column("threads.id", threads.c.id.type)


def _moved(key: Expression = _MET_ID) -> Expression:
    """An error that names itself: a number that is none. Not a constant, which would fail when it is planned."""
    return sa.cast(sa.func.concat(literal(MOVED), key), sa.Integer())


def _an_object(document: Expression) -> Expression:
    """Null where it is none: other programs store any JSON there."""
    return sa.case((sa.func.jsonb_typeof(document) == literal("object"), document))
