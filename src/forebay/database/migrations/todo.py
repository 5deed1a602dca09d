"""What a database lacks, decided from its shape alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from forebay.database.migrations.shape import FoundColumn, FoundTable, Shape
from forebay.errors import AccessError, SchemaError
from forebay.model import schema
from forebay.model.schema import Kind

# Chainlit 2.0 wrote this column, later releases leave it out: without a default, each of their inserts fails.
OLD_COLUMN = "disableFeedback"
IDENTIFIER_INDEX = "forebay_users_identifier"

_ADVICE = (
    "Nothing was changed. Run the statements at a quiet time, since they rewrite and lock the table (drop the"
    " foreign keys on a column before its type changes, and add them again), then `forebay migrate`."
)


@dataclass(frozen=True)
class NewIndex:
    """An index to create; `online` when its table may be in use, so that writers must not wait for it."""

    name: str
    table: str
    expressions: tuple[Any, ...]
    online: bool
    unfinished: bool = False
    unique: bool = False
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Todo:
    """The changes that bring a database to the schema, in the order in which they are made.

    `in_use` tells whether there are tables already, which others may be writing to.
    """

    tables: tuple[sa.Table, ...] = ()
    columns: tuple[sa.Column[Any], ...] = ()
    default_old_column: bool = False
    recollate: bool = False
    rekey_garbage: bool = False
    indexes: tuple[NewIndex, ...] = ()
    fill: bool = False
    in_use: bool = True
    warnings: tuple[str, ...] = ()


def decide(shape: Shape) -> Todo:
    """What to do.

    Raises AccessError when the user may not do it; SchemaError, listing everything that only the operator can mend.
    """
    if shape.foreign:
        raise AccessError(
            f"the database user does not own {', '.join(shape.foreign)}; run `forebay migrate` as their owner."
            " Nothing was changed.",
            sqlstate="42501",
        )
    if problems := list(_problems(shape)):
        raise SchemaError("\n".join(["the tables can't be migrated as they are:", *problems, _ADVICE]))
    tables, indexes = _wanted(shape)
    missing_indexes = (_index(shape, index) for index in indexes if _lacks(shape, index))
    return Todo(
        tables=tuple(table for table in tables if table.name not in shape.tables),
        columns=tuple(_missing_columns(shape)),
        default_old_column=_needs_default(shape),
        recollate=shape.activity_collation not in (None, "C"),
        rekey_garbage=_is_keyed_by_text(shape),
        indexes=(*_identifier_index(shape), *missing_indexes),
        fill=shape.behind,
        in_use=bool(shape.tables),
        warnings=tuple(_warnings(shape)),
    )


def _wanted(shape: Shape) -> tuple[list[sa.Table], list[sa.Index]]:
    """What SQLAlchemy would create in an empty database of this kind."""
    made: list[Any] = []
    driver = {"postgresql": "postgresql+asyncpg", "sqlite": "sqlite+aiosqlite"}[shape.dialect.name]
    mock = sa.create_mock_engine(f"{driver}://", lambda ddl, *_, **__: made.append(ddl.element))
    schema.metadata.create_all(mock, checkfirst=False)
    tables = [element for element in made if isinstance(element, sa.Table)]
    return tables, [element for element in made if isinstance(element, sa.Index)]


def _found(shape: Shape) -> Iterator[tuple[sa.Table, FoundTable]]:
    for name, found in shape.tables.items():
        if name != schema.garbage.name or not _is_keyed_by_text(shape):
            yield schema.metadata.tables[name], found


def _is_keyed_by_text(shape: Shape) -> bool:
    """Whether the garbage is as it was up to 0005: its table is made anew."""
    found = shape.tables.get(schema.garbage.name)
    return found is not None and ("object_key",) in found.keys


def _missing_columns(shape: Shape) -> Iterator[sa.Column[Any]]:
    for table, found in _found(shape):
        yield from (column for column in table.columns if column.name not in found.columns)


def _lacks(shape: Shape, index: sa.Index) -> bool:
    found = shape.tables.get(_table_of(index))
    return found is None or index.name not in found.indexes or index.name in found.unfinished


def _table_of(index: sa.Index) -> str:
    assert index.table is not None
    return index.table.name


def _index(shape: Shape, index: sa.Index) -> NewIndex:
    name, table = str(index.name), _table_of(index)
    return NewIndex(
        name=name,
        table=table,
        expressions=tuple(index.expressions),
        online=shape.is_postgres and table in shape.tables,
        unfinished=_is_unfinished(shape, table, name),
        options=dict(index.kwargs),
    )


def _identifier_index(shape: Shape) -> Iterator[NewIndex]:
    users = shape.tables.get("users")
    if users is not None and ("identifier",) not in users.keys:
        unfinished = _is_unfinished(shape, "users", IDENTIFIER_INDEX)
        yield NewIndex(IDENTIFIER_INDEX, "users", ("identifier",), shape.is_postgres, unfinished, unique=True)


def _is_unfinished(shape: Shape, table: str, index: str) -> bool:
    return table in shape.tables and index in shape.tables[table].unfinished


def _needs_default(shape: Shape) -> bool:
    old = shape.tables["steps"].columns.get(OLD_COLUMN) if "steps" in shape.tables else None
    if old is None or not _refuses_inserts(old):
        return False
    return not shape.is_postgres or isinstance(old.type, sa.Boolean)


def _refuses_inserts(column: FoundColumn) -> bool:
    return not column.nullable and not column.filled


def _problems(shape: Shape) -> Iterator[str]:
    for table, found in _found(shape):
        yield from _missing_parts(table, found)
        if shape.is_postgres and table.name in schema.TABLES:
            yield from _wrong_types(shape, table, found)
    if count := shape.repeated_identifiers:
        yield repeated_identifiers(count)


def repeated_identifiers(count: int | None = None) -> str:
    """The message for users that share an identifier; `count` is how many are shared, if known."""
    which = "some identifiers" if count is None else f"{count} identifier{'s' * (count != 1)}"
    find = "SELECT identifier FROM users GROUP BY identifier HAVING count(*) > 1;"
    return (
        f"- users: {which} in more than one row, and an identifier must be unique. Keep one row of each"
        f' (let threads."userId" point to it) and delete the others. To find them: {find}'
    )


def _missing_parts(table: sa.Table, found: FoundTable) -> Iterator[str]:
    # The columns that must have a value have been there since 2.0: a table without them is someone else's.
    missing = [c.name for c in table.columns if not c.nullable and c.name not in found.columns]
    if missing:
        names = ", ".join(f'"{name}"' for name in missing)
        yield f"- {table.name} has no {names}, so it is not Chainlit's; set search_path to another schema"
        return
    key = tuple(table.primary_key.columns.keys())
    if key not in found.keys:
        names = ", ".join(f'"{name}"' for name in key)
        yield f"- {table.name} has no primary key: ALTER TABLE {table.name} ADD PRIMARY KEY ({names});"


def _wrong_types(shape: Shape, table: sa.Table, found: FoundTable) -> Iterator[str]:
    for column in table.columns:
        there = found.columns.get(column.name)
        if there is not None and not _fits(_kind(column), there.type):
            wanted = _wanted_type(shape, column)
            yield (
                f'- {table.name}."{column.name}" is {_said(shape, there.type)} and must be {wanted}:'
                f" {_retype(table.name, column, wanted)}"
            )


def _kind(column: sa.Column[Any]) -> Kind:
    """What the column holds; `users.identifier` is text like any other."""
    kind: Kind = column.info.get("kind", Kind.TEXT)
    return kind


def _wanted_type(shape: Shape, column: sa.Column[Any]) -> str:
    return _said(shape, column.type).partition(" COLLATE")[0]


def _said(shape: Shape, kind: sa.types.TypeEngine[Any]) -> str:
    try:
        return kind.compile(dialect=shape.dialect)
    except sa.exc.CompileError:  # a type that SQLAlchemy doesn't know
        return "of another type"


def _fits(kind: Kind, found: sa.types.TypeEngine[Any]) -> bool:
    """Whether forebay's statements can write and read such a column; sizes are left to the operator."""
    match kind:
        case Kind.ID:
            return isinstance(found, sa.Uuid)
        case Kind.TEXT:
            return isinstance(found, sa.String | postgresql.CITEXT) and not isinstance(found, sa.Enum)
        case Kind.BOOL:
            return isinstance(found, sa.Boolean)
        case Kind.INT:
            return isinstance(found, sa.Integer)
        case Kind.OBJECT:
            return isinstance(found, postgresql.JSONB)
        case Kind.LIST:
            return isinstance(found, sa.ARRAY) and isinstance(found.item_type, sa.String)


def _retype(table: str, column: sa.Column[Any], wanted: str) -> str:
    name = f'"{column.name}"'
    if _kind(column) is not Kind.LIST:
        return f"ALTER TABLE {table} ALTER COLUMN {name} TYPE {wanted} USING {name}::text::{wanted};"
    # PostgreSQL has no cast from JSON to an array, and no subquery in USING.
    old = f'"{column.name}Old"'
    document = f"{old}::text::jsonb"
    values: sa.ColumnElement[Any] = sa.literal_column(f"ARRAY(SELECT jsonb_array_elements_text({document}))")
    is_list = sa.literal_column(f"jsonb_typeof({document}) = 'array'", sa.Boolean)
    update = sa.update(sa.table(table, sa.column(column.name))).values({column.name: values}).where(is_list)
    add = f"ALTER TABLE {table} ADD COLUMN {name} {wanted}"
    return f"ALTER TABLE {table} RENAME COLUMN {name} TO {old}; {add}; {update};"


def _warnings(shape: Shape) -> Iterator[str]:
    for table, found in _found(shape):
        for column in found.columns.values():
            if not _refuses_inserts(column) or (column.name == OLD_COLUMN and _needs_default(shape)):
                continue
            place = f'{table.name}."{column.name}"'
            if column.name not in table.columns:
                yield (
                    f"warning: {place} must have a value, has no default, and is neither Chainlit's nor"
                    f" forebay's: inserts into {table.name} will fail until it has a default or may be null"
                )
            elif table.columns[column.name].nullable:
                yield f"warning: {place} may not be null; rows that Chainlit gives no value for it will fail"
