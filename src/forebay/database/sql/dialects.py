"""PostgreSQL's and SQLite's ways of saying the same thing, as SQLAlchemy expressions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import orjson
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.selectable import FromClause

from forebay.model import schema
from forebay.model.schema import Kind, steps

Expression = ColumnElement[Any]

REMOVED = "removed"  # the parameter that names the keys to take out of threads' metadata, by thread
NEEDLE = "needle"  # the parameter that a search looks for
_ESCAPE = "!"  # not the backslash, which releases of SQLAlchemy render differently
# The row that an upsert met. As a column of the table, a subquery would take it for one of its own.
_STORED_THREAD_ID: Expression = sa.literal_column("threads.id")

# Functions that SQLite has none of its own for; see SQLITE_FUNCTIONS.
_MERGE = "forebay_merge"
_CASEFOLD = "forebay_casefold"


class Sql(Protocol):
    """What the two databases say differently."""

    def source(self, table: sa.Table) -> FromClause:
        """The rows of the table's JSON document, which is the parameter named like the table."""

    def insert(self, table: sa.Table) -> Any:
        """An INSERT that knows ON CONFLICT."""

    def constant(self, value: Any) -> Expression:
        """A default of the schema's own, as a literal."""

    def empty_object(self) -> Expression:
        """`{}` as the columns of objects hold it."""

    def json_parameter(self, name: str) -> Expression:
        """A parameter that holds JSON text."""

    def greatest(self, stored: Expression, given: Expression) -> Expression:
        """The greater of two, or the one that is not null."""

    def merge_keys(self, stored: Expression, given: Expression, *, removing: bool) -> Expression:
        """The stored object with the given one's keys laid over it, less the removed ones."""

    def plain(self, column: sa.Column[Any]) -> Expression:
        """A column as it goes into a JSON object."""

    def nested(self, document: Expression) -> Expression:
        """A JSON document as it goes into another."""

    def object(self, values: Mapping[str, Expression]) -> Expression:
        """A JSON object."""

    def array(self, found: sa.Select[Any], *, newest_first: bool = False) -> Expression:
        """The column `doc` of the rows found, as a JSON array, ordered by their `createdAt` and `id`."""

    def texts(self, found: sa.Select[Any]) -> Expression:
        """A JSON array of the one column that the select finds."""

    def result(self, document: Expression) -> Expression:
        """A JSON document as the statement returns it: text."""

    def sortable(self, activity: Expression) -> Expression:
        """Text that compares by code point."""

    def contains(self, column: Expression) -> Expression:
        """Whether the text holds the needle, in whatever case."""

    def needle(self, search: str) -> str:
        """What to pass as the needle."""

    def among(self, column: sa.Column[Any], found: sa.Select[Any]) -> Expression:
        """Whether the column is one of what the select finds, which is few."""

    def is_favorite(self) -> Expression:
        """Whether a step is marked as a favourite."""


class PostgresSql:
    """PostgreSQL 12 and later."""

    def source(self, table: sa.Table) -> FromClause:
        """`json_to_recordset`: the database parses the document, by the schema's types."""
        columns = [sa.column(c.name, c.type) for c in table.columns]
        parsed = sa.func.json_to_recordset(self._json(table.name, postgresql.JSON()))
        return parsed.table_valued(*columns).render_derived(with_types=True)

    def insert(self, table: sa.Table) -> Any:
        """PostgreSQL's INSERT."""
        return postgresql.insert(table)

    def constant(self, value: Any) -> Expression:
        """A literal; text is typed, or it would be of an unknown type."""
        return sa.cast(_literal(value), sa.Text()) if isinstance(value, str) else _literal(value)

    def empty_object(self) -> Expression:
        """`'{}'::jsonb`."""
        return sa.literal_column("'{}'::jsonb")

    def json_parameter(self, name: str) -> Expression:
        """Text, cast to JSONB."""
        return self._json(name, postgresql.JSONB())

    def greatest(self, stored: Expression, given: Expression) -> Expression:
        """`greatest` leaves nulls out."""
        return sa.func.greatest(stored, given)

    def merge_keys(self, stored: Expression, given: Expression, *, removing: bool) -> Expression:
        """`||` lays one object over the other; `-` takes keys out."""
        base = sa.func.coalesce(stored, self.empty_object())
        if not removing:
            return sa.func.coalesce(base.op("||")(given), stored)
        mine = self.json_parameter(REMOVED).op("->")(sa.cast(_STORED_THREAD_ID, sa.Text()))
        keys = sa.func.array(sa.select(sa.func.jsonb_array_elements_text(mine)).scalar_subquery())
        return base.op("-")(keys).op("||")(given)

    def plain(self, column: sa.Column[Any]) -> Expression:
        """As it is."""
        return column

    def nested(self, document: Expression) -> Expression:
        """As it is."""
        return document

    def object(self, values: Mapping[str, Expression]) -> Expression:
        """`json_build_object`."""
        return sa.func.json_build_object(*_pairs(values))

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

    def sortable(self, activity: Expression) -> Expression:
        """By code point is the collation "C"."""
        return sa.collate(activity, "C")

    def contains(self, column: Expression) -> Expression:
        """ILIKE with a pattern whose wildcards are escaped."""
        return column.ilike(sa.bindparam(NEEDLE, type_=sa.Text()), escape=_ESCAPE)

    def needle(self, search: str) -> str:
        """An ILIKE pattern that takes `%` and `_` literally."""
        for special in (_ESCAPE, "%", "_"):
            search = search.replace(special, _ESCAPE + special)
        return f"%{search}%"

    def among(self, column: sa.Column[Any], found: sa.Select[Any]) -> Expression:
        """An array: with IN, the planner takes a tree of steps for thousands, and reads the table through."""
        return column == sa.func.any(sa.func.array(found.scalar_subquery()))

    def is_favorite(self) -> Expression:
        """The condition of the partial index."""
        return schema.FAVORITE

    def _json(self, name: str, kind: sa.types.TypeEngine[Any]) -> Expression:
        return sa.cast(sa.bindparam(name, type_=sa.Text()), kind)


class SqliteSql:
    """SQLite 3.35 and later (RETURNING), with SQLITE_FUNCTIONS registered."""

    def source(self, table: sa.Table) -> FromClause:
        """`json_each`, from whose values each column is taken."""
        each = sa.func.json_each(sa.bindparam(table.name, type_=sa.Text())).table_valued("value")
        columns = [sa.type_coerce(_member(each.c.value, c.name), c.type).label(c.name) for c in table.columns]
        return sa.select(*columns).subquery()

    def insert(self, table: sa.Table) -> Any:
        """SQLite's INSERT."""
        return sqlite.insert(table)

    def constant(self, value: Any) -> Expression:
        """A literal."""
        return _literal(value)

    def empty_object(self) -> Expression:
        """`'{}'`."""
        return sa.literal_column("'{}'")

    def json_parameter(self, name: str) -> Expression:
        """JSON is text."""
        return sa.type_coerce(sa.bindparam(name, type_=sa.Text()), sa.Text())

    def greatest(self, stored: Expression, given: Expression) -> Expression:
        """`max` of two is null where one is."""
        return sa.func.max(sa.func.coalesce(stored, given), sa.func.coalesce(given, stored))

    def merge_keys(self, stored: Expression, given: Expression, *, removing: bool) -> Expression:
        """`json_patch` would merge nested objects too, and rebuilding an object in SQL rounds its numbers."""
        removed: Expression = sa.literal_column("NULL")
        if removing:
            by_thread = sa.func.json_each(sa.bindparam(REMOVED, type_=sa.Text())).table_valued("key", "value")
            removed = (
                sa.select(by_thread.c.value).where(by_thread.c.key == _STORED_THREAD_ID).scalar_subquery()
            )
        return sa.func.forebay_merge(stored, given, removed)

    def plain(self, column: sa.Column[Any]) -> Expression:
        """JSON text is made JSON, and left out where it is none; ids that look like numbers stay text."""
        if schema.kind_of(column) in (Kind.OBJECT, Kind.LIST):
            text = sa.type_coerce(column, sa.Text())
            return sa.case((sa.func.json_valid(text) == sa.literal_column("1"), sa.func.json(text)))
        if schema.kind_of(column) is Kind.ID:
            return sa.cast(column, sa.Text())
        return sa.type_coerce(column, sa.Text())

    def nested(self, document: Expression) -> Expression:
        """A subquery's JSON has become text."""
        return sa.func.json(document)

    def object(self, values: Mapping[str, Expression]) -> Expression:
        """`json_object`."""
        return sa.func.json_object(*_pairs(values))

    def array(self, found: sa.Select[Any], *, newest_first: bool = False) -> Expression:
        """`json_group_array` takes the rows in the order in which the subquery gives them."""
        del newest_first  # the subquery's own order says it
        return sa.func.json_group_array(sa.func.json(found.subquery("found").c.doc))

    def texts(self, found: sa.Select[Any]) -> Expression:
        """`json_group_array`, over the select."""
        column = next(iter(found.subquery("found").c))
        return sa.func.json_group_array(column)

    def result(self, document: Expression) -> Expression:
        """It is text."""
        return document

    def sortable(self, activity: Expression) -> Expression:
        """SQLite compares bytes."""
        return activity

    def contains(self, column: Expression) -> Expression:
        """LIKE and `lower` know the case of ASCII only."""
        folded = sa.func.forebay_casefold(column)
        return sa.func.instr(folded, sa.bindparam(NEEDLE, type_=sa.Text())) > sa.literal_column("0")

    def needle(self, search: str) -> str:
        """The text without its case."""
        return search.casefold()

    def among(self, column: sa.Column[Any], found: sa.Select[Any]) -> Expression:
        """IN."""
        return column.in_(found)

    def is_favorite(self) -> Expression:
        """JSON's true is 1."""
        text = sa.type_coerce(steps.c.metadata, sa.Text())
        valid = sa.func.json_valid(text) == sa.literal_column("1")
        # AND may be evaluated in any order, CASE may not: `json_extract` fails on what is not valid.
        marked = sa.case((valid, sa.func.json_extract(text, sa.literal_column("'$.favorite'"))))
        return marked == sa.literal_column("1")


def _merge(stored: str | None, given: str | None, removed: str | None) -> str | None:
    if given is None and removed is None:
        return stored
    try:
        base = orjson.loads(stored) if stored else {}
    except orjson.JSONDecodeError:
        base = {}
    if not isinstance(base, dict):
        base = {}
    for key in orjson.loads(removed) if removed else ():
        base.pop(key, None)
    base.update(orjson.loads(given) if given else {})
    return orjson.dumps(base).decode()


def _casefold(value: Any) -> str | None:
    return None if value is None else str(value).casefold()


# Name, number of arguments, function: what a SQLite connection must know before it runs the statements.
SQLITE_FUNCTIONS = ((_MERGE, 3, _merge), (_CASEFOLD, 1, _casefold))


def _literal(value: Any) -> Expression:
    if isinstance(value, bool):
        return sa.true() if value else sa.false()
    assert isinstance(value, int | str)
    assert "'" not in str(value)
    return sa.literal_column(f"'{value}'" if isinstance(value, str) else str(value))


def _member(document: Expression, name: str) -> Expression:
    return sa.func.json_extract(document, sa.literal_column(f"'$.{name}'"))


def _pairs(values: Mapping[str, Expression]) -> list[Expression]:
    return [part for name, value in values.items() for part in (sa.literal_column(f"'{name}'"), value)]
