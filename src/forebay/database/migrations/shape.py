"""What a database holds, as far as the migration cares: read once, then only looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine.interfaces import ReflectedColumn, ReflectedIndex

from forebay.database.migrations.activity import is_behind
from forebay.model import schema

# An index that an interrupted CREATE INDEX CONCURRENTLY left behind: it costs each write and serves no read.
_UNFINISHED = sa.text(
    "SELECT c.relname AS name"
    " FROM pg_catalog.pg_index AS i JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid"
    " WHERE NOT i.indisvalid AND i.indrelid = to_regclass(:table)"
)
_OWNED = sa.text(
    "SELECT pg_has_role(relowner, 'USAGE') FROM pg_catalog.pg_class WHERE oid = to_regclass(:table)"
)
_COLLATION = sa.text(
    "SELECT c.collname FROM pg_catalog.pg_attribute AS a"
    " JOIN pg_catalog.pg_collation AS c ON c.oid = a.attcollation"
    " WHERE a.attrelid = to_regclass('threads') AND a.attname = 'updatedAt'"
)
_SQLITE_UNIQUE = sa.text('SELECT name FROM pragma_index_list(:table) WHERE "unique" AND NOT partial')
_SQLITE_INDEX = sa.text("SELECT name FROM pragma_index_info(:index) ORDER BY seqno")


@dataclass(frozen=True)
class FoundColumn:
    """A column; `filled` tells whether the database fills it when an INSERT leaves it out."""

    name: str
    type: sa.types.TypeEngine[Any]
    nullable: bool
    filled: bool


@dataclass(frozen=True)
class FoundTable:
    """A table: its columns by name, the sets of columns that are unique in it, its indexes' names."""

    columns: Mapping[str, FoundColumn]
    keys: frozenset[tuple[str, ...]]
    indexes: frozenset[str]
    unfinished: frozenset[str]


@dataclass(frozen=True)
class Shape:
    """A database: those of the schema's tables that it has, and what their rows mean for the migration.

    `repeated_identifiers` counts the users' identifiers that occur more than once, where nothing forbids it.
    `foreign` names the tables that the user does not own, and so may not alter.
    `behind` tells whether a thread with steps has no `updatedAt`.
    """

    dialect: sa.Dialect
    tables: Mapping[str, FoundTable]
    repeated_identifiers: int
    activity_collation: str | None
    foreign: tuple[str, ...]
    behind: bool

    @property
    def is_postgres(self) -> bool:
        """Whether the database is PostgreSQL."""
        return self.dialect.name == "postgresql"


def read_shape(connection: sa.Connection) -> Shape:
    """Look at a database without changing it. The tables are those that an unqualified name finds."""
    inspector = sa.inspect(connection)
    tables = {
        table.name: _read_table(connection, inspector, table)
        for table in schema.metadata.sorted_tables
        if inspector.has_table(table.name)
    }
    is_postgres = connection.dialect.name == "postgresql"
    return Shape(
        dialect=connection.dialect,
        tables=tables,
        repeated_identifiers=_repeated_identifiers(connection, tables.get("users")),
        activity_collation=connection.scalar(_COLLATION) if is_postgres else None,
        foreign=tuple(
            name for name in tables if is_postgres and not connection.scalar(_OWNED, {"table": name})
        ),
        behind=_behind(connection, tables),
    )


def _read_table(connection: sa.Connection, inspector: sa.Inspector, table: sa.Table) -> FoundTable:
    spell = _speller(connection.dialect, table)
    found = [_column(column, spell) for column in inspector.get_columns(table.name)]
    unfinished = _unfinished(connection, table)
    keys = _keys(connection, inspector, table, unfinished)
    return FoundTable(
        columns={column.name: column for column in found},
        keys=frozenset(tuple(spell(name) for name in key) for key in keys),
        indexes=frozenset(str(index["name"]) for index in inspector.get_indexes(table.name)),
        unfinished=unfinished,
    )


def _speller(dialect: sa.Dialect, table: sa.Table) -> Callable[[str], str]:
    """SQLite takes a column's name in any case, so a found one is spelled as the schema spells it."""
    if dialect.name == "postgresql":
        return str
    names = {name.casefold(): name for name in (*table.columns.keys(), "disableFeedback")}
    return lambda name: names.get(name.casefold(), name)


def _column(found: ReflectedColumn, spell: Callable[[str], str]) -> FoundColumn:
    filled = found.get("default") is not None or any(found.get(key) for key in ("identity", "computed"))
    return FoundColumn(spell(found["name"]), found["type"], found["nullable"], filled)


def _keys(
    connection: sa.Connection, inspector: sa.Inspector, table: sa.Table, unfinished: frozenset[str]
) -> Iterator[Sequence[str]]:
    yield inspector.get_pk_constraint(table.name)["constrained_columns"]
    if connection.dialect.name == "sqlite":
        # SQLAlchemy looks for UNIQUE in the table's text, and doesn't find it everywhere.
        for index in connection.scalars(_SQLITE_UNIQUE, {"table": table.name}).all():
            names = connection.scalars(_SQLITE_INDEX, {"index": index}).all()
            if None not in names:  # as for an expression
                yield names
        return
    for unique in inspector.get_unique_constraints(table.name):
        yield unique["column_names"]
    for found in inspector.get_indexes(table.name):
        if found["unique"] and found["name"] not in unfinished and _covers_every_row(found):
            yield [str(name) for name in found["column_names"]]


def _covers_every_row(index: ReflectedIndex) -> bool:
    is_partial = index.get("dialect_options", {}).get("postgresql_where") is not None
    return not is_partial and None not in index["column_names"]


def _unfinished(connection: sa.Connection, table: sa.Table) -> frozenset[str]:
    if connection.dialect.name != "postgresql":
        return frozenset()
    rows = connection.execute(_UNFINISHED, {"table": table.name})
    return frozenset(row.name for row in rows)


def _repeated_identifiers(connection: sa.Connection, users: FoundTable | None) -> int:
    if users is None or "identifier" not in users.columns or ("identifier",) in users.keys:
        return 0
    identifier = schema.users.c.identifier
    repeated = sa.select(identifier).group_by(identifier).having(sa.func.count() > 1).subquery()
    return connection.scalar(sa.select(sa.func.count()).select_from(repeated)) or 0


def _behind(connection: sa.Connection, tables: Mapping[str, FoundTable]) -> bool:
    threads, steps = tables.get("threads"), tables.get("steps")
    if threads is None or steps is None:
        return False
    if "id" not in threads.columns or not {"threadId", "createdAt"} <= steps.columns.keys():
        return False
    return is_behind(connection, has_column="updatedAt" in threads.columns)
