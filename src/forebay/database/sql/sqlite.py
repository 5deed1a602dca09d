"""SQLite's way of saying what `dialect.Sql` asks for, and the functions that it is taught for it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.dialects import sqlite
from sqlalchemy.sql.selectable import FromClause

from forebay.database.sql.dialect import (
    NEEDLE,
    PASSED_ON,
    REMOVED,
    STORED_THREAD_ID,
    Expression,
    literal,
    pairs,
)
from forebay.model import schema
from forebay.model.changes import STAR, keep_star
from forebay.model.schema import MADE_AT, Kind, steps

# Functions that SQLite has none of its own for; see SQLITE_FUNCTIONS.
_MERGE = "forebay_merge"
_KEEP_STAR = "forebay_keep_star"
_CASEFOLD = "forebay_casefold"
_DIGEST = "forebay_digest"
_KEY_MOMENTS = "forebay_key_moments"
_PIECE = 100_000  # letters


class SqliteSql:
    """SQLite 3.35 and later (RETURNING), with SQLITE_FUNCTIONS registered."""

    def source(self, table: sa.Table) -> FromClause:
        """`json_each`, from whose values each column is taken."""
        each = sa.func.json_each(sa.bindparam(table.name, type_=sa.Text())).table_valued("value")
        columns = [sa.type_coerce(_member(each.c.value, c.name), c.type).label(c.name) for c in table.columns]
        columns.append(_member(each.c.value, MADE_AT).label(MADE_AT))
        return sa.select(*columns).subquery()

    def given(self, name: str) -> FromClause:
        """`json_each`."""
        each = sa.func.json_each(sa.bindparam(name, type_=sa.Text()))
        return each.table_valued(sa.column("value", sa.Text()))

    def digest(self, text: Expression) -> Expression:
        """SQLite has none."""
        return sa.func.forebay_digest(text)

    def insert(self, table: sa.Table) -> Any:
        """SQLite's INSERT."""
        return sqlite.insert(table)

    def constant(self, value: Any) -> Expression:
        """A literal."""
        return literal(value)

    def empty_object(self) -> Expression:
        """`'{}'`."""
        return sa.literal_column("'{}'")

    def json_parameter(self, name: str) -> Expression:
        """JSON is text."""
        return sa.type_coerce(sa.bindparam(name, type_=sa.Text()), sa.Text())

    def greatest(self, stored: Expression, given: Expression) -> Expression:
        """`max` of two is null where one is."""
        return sa.func.max(sa.func.coalesce(stored, given), sa.func.coalesce(given, stored))

    def least(self, stored: Expression, given: Expression) -> Expression:
        """As `greatest`."""
        return sa.func.min(sa.func.coalesce(stored, given), sa.func.coalesce(given, stored))

    def merge_keys(self, stored: Expression, given: Expression, *, removing: bool) -> Expression:
        """`json_patch` would merge nested objects too, and rebuilding an object in SQL rounds its numbers."""
        removed: Expression = sa.literal_column("NULL")
        if removing:
            by_thread = sa.func.json_each(sa.bindparam(REMOVED, type_=sa.Text())).table_valued("key", "value")
            removed = (
                sa.select(by_thread.c.value).where(by_thread.c.key == STORED_THREAD_ID).scalar_subquery()
            )
        return sa.func.forebay_merge(stored, given, removed)

    def keep_star(self, stored: Expression, given: Expression) -> Expression:
        """As in a fold."""
        return sa.func.forebay_keep_star(stored, given)

    def lacks(self, column: sa.Column[Any]) -> None:
        """A transaction has the file to itself: the row that a default was chosen without is not there."""

    def is_seen(self, table: sa.Table) -> None:
        """A transaction has the file to itself."""

    def held(self, found: sa.Select[*tuple[Any, ...]]) -> Any:
        """See `is_seen`."""
        return found

    def moment_of(self, moments: Expression, name: str) -> Expression:
        """A number, or an object as text."""
        return sa.func.json_extract(moments, sa.literal_column(f"'$.{name}'"))

    def as_moment(self, number: Expression) -> Expression:
        """As it is."""
        return number

    def key_moments(
        self,
        stored: Expression,
        given: Expression,
        known: Expression,
        noted: Expression,
        written_at: Expression,
    ) -> Expression:
        """SQLite has nothing for it."""
        return sa.func.json(sa.func.forebay_key_moments(stored, given, known, noted, written_at))

    def object_of_moments(self, moments: Mapping[str, Expression]) -> Expression:
        """A patch leaves nulls out."""
        made = sa.func.json_patch(sa.literal_column("'{}'"), sa.func.json_object(*pairs(moments)))
        return sa.func.nullif(made, sa.literal_column("'{}'"))

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
        return sa.func.json_object(*pairs(values))

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

    def size(self, value: Expression, kind: Kind) -> Expression:
        """All is text, whose `length` is in characters; a BLOB's is in bytes, and known."""
        del kind
        return sa.func.length(sa.cast(sa.type_coerce(value, sa.Text()), sa.LargeBinary()))

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

    def is_passed_on(self) -> Expression:
        """By a JSON array of ids."""
        named = sa.func.json_each(sa.bindparam(PASSED_ON, type_=sa.Text())).table_valued("value")
        return STORED_THREAD_ID.in_(sa.select(named.c.value))

    def locked(self, thread: sa.Select[Any]) -> None:
        """A transaction has the file to itself before it looks at anything."""

    def names_held(self, given: FromClause) -> None:
        """See `locked`."""

    def unmoved(self) -> None:
        """See `locked`."""

    def arrived(self) -> Expression:
        """See `locked`."""
        return literal(1)

    def patience(self) -> None:
        """There are no locks of rows."""

    def among(self, column: sa.Column[Any], found: sa.SelectBase) -> Expression:
        """IN."""
        return column.in_(found)

    def is_favorite(self) -> Expression:
        """JSON's true is 1."""
        text = sa.type_coerce(steps.c.metadata, sa.Text())
        valid = sa.func.json_valid(text) == sa.literal_column("1")
        # AND may be evaluated in any order, CASE may not: `json_extract` fails on what is not valid.
        marked = sa.case((valid, sa.func.json_extract(text, sa.literal_column("'$.favorite'"))))
        return marked == sa.literal_column("1")

    def moment(self) -> Expression:
        """By `julianday`, which every release has; of milliseconds."""
        return sa.literal_column("CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER) * 1000")


def _merge(stored: str | None, given: str | None, removed: str | None) -> str | None:
    if given is None and removed is None:
        return stored
    base = _an_object(stored)
    for key in orjson.loads(removed) if removed else ():
        base.pop(key, None)
    return orjson.dumps({**base, **_an_object(given)}).decode()


def _an_object(document: str | None) -> dict[str, Any]:
    """An empty one where it is none: other programs store anything there."""
    try:
        found = orjson.loads(document) if document else {}
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _keep_star(stored: str | float | None, given: str | None) -> str | float | None:
    if given is None:
        return stored
    if not isinstance(stored, str) or f'"{STAR}"' not in stored:  # JSON that is a number is stored as one
        return given
    try:
        return keep_star(stored, given).decode()
    except orjson.JSONDecodeError:
        return given


def _key_moments(
    stored: str | None, given: str | None, known: str | None, noted: str | None, written_at: int | None
) -> str | None:
    base = _an_object(stored) if written_at is not None else ()
    moments = {**dict.fromkeys(base, written_at), **_an_object(known)}
    moments = {key: at for key, at in moments.items() if key not in _an_object(given)}
    moments |= _an_object(noted)
    return orjson.dumps(moments).decode() if moments else None


def _casefold(value: Any) -> str | None:
    """In pieces: while one is folded, no other thread of the process goes on."""
    if value is None:
        return None
    text = str(value)
    pieces = (text[start : start + _PIECE].casefold() for start in range(0, len(text), _PIECE))
    return "".join(pieces)


def _digest(value: Any) -> str:
    return hashlib.sha256(str(value).encode("utf-8", "surrogatepass")).hexdigest()


# Name, number of arguments, function: what a SQLite connection must know before it runs the statements.
SQLITE_FUNCTIONS = (
    (_MERGE, 3, _merge),
    (_KEEP_STAR, 2, _keep_star),
    (_CASEFOLD, 1, _casefold),
    (_DIGEST, 1, _digest),
    (_KEY_MOMENTS, 5, _key_moments),
)


def _member(document: Expression, name: str) -> Expression:
    return sa.func.json_extract(document, sa.literal_column(f"'$.{name}'"))
