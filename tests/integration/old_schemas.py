"""The tables as Chainlit's releases documented them, with rows in them: what a migration may meet."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from typing_extensions import override

# A column in brackets is there only in the releases that name it; `-> table` is a foreign key.
_TABLES = {
    "users": "id UUID PRIMARY KEY, identifier TEXT NOT NULL UNIQUE, metadata JSONB NOT NULL, createdAt TEXT",
    "threads": (
        "id UUID PRIMARY KEY, createdAt TEXT, name TEXT, userId UUID -> users, userIdentifier TEXT, tags TEXT[],"
        " metadata JSONB"
    ),
    "steps": (
        "id UUID PRIMARY KEY, name TEXT NOT NULL, type TEXT NOT NULL, threadId UUID NOT NULL -> threads,"
        " parentId UUID, [disableFeedback] BOOLEAN NOT NULL, streaming BOOLEAN NOT NULL, waitForAnswer BOOLEAN,"
        " isError BOOLEAN, metadata JSONB, tags TEXT[], input TEXT, output TEXT, createdAt TEXT, [command] TEXT,"
        " start TEXT, end TEXT, generation JSONB, showInput TEXT, language TEXT, [indent] INT,"
        " [defaultOpen] BOOLEAN, [autoCollapse] BOOLEAN, [modes] JSONB"
    ),
    "elements": (
        "id UUID PRIMARY KEY, threadId UUID -> threads, type TEXT, url TEXT, chainlitKey TEXT, name TEXT NOT NULL,"
        " display TEXT, objectKey TEXT, size TEXT, page INT, language TEXT, forId UUID, mime TEXT, [props] JSONB"
    ),
    "feedbacks": (
        "id UUID PRIMARY KEY, forId UUID NOT NULL, threadId UUID NOT NULL -> threads, value INT NOT NULL,"
        " comment TEXT"
    ),
}


@dataclass(frozen=True)
class OldSchema:
    """One shape: which of the columns in brackets it has, and whether the tables refer to each other."""

    name: str
    optional: frozenset[str] = frozenset()
    foreign_keys: bool = True

    @override
    def __str__(self) -> str:
        return self.name

    def columns(self, table: str) -> list[str]:
        """The names of a table's columns."""
        return [name for name, _ in self._definitions(table)]

    def ddl(self) -> list[str]:
        """A CREATE TABLE statement for each table; SQLite takes PostgreSQL's as they are."""
        return [self._create(table) for table in _TABLES]

    def _create(self, table: str) -> str:
        parts = []
        for name, definition in self._definitions(table):
            kind, _, target = definition.partition(" -> ")
            reference = (
                f' REFERENCES {target}("id") ON DELETE CASCADE' if target and self.foreign_keys else ""
            )
            parts.append(f'"{name}" {kind}{reference}')
        return f"CREATE TABLE {table} ({', '.join(parts)})"

    def _definitions(self, table: str) -> Iterator[tuple[str, str]]:
        for column in _TABLES[table].split(", "):
            name, _, definition = column.partition(" ")
            if name[0] != "[" or name[1:-1] in self.optional:
                yield name.strip("[]"), definition


def _release(name: str, optional: str, *, foreign_keys: bool = True) -> OldSchema:
    return OldSchema(name, frozenset(optional.split()), foreign_keys)


V2_0 = _release("2.0", "disableFeedback indent")
LATEST = _release("latest", "indent props command defaultOpen modes")
OLD_SCHEMAS = (
    V2_0,
    _release("2.1", "disableFeedback indent command"),
    _release("2.3", "indent props command defaultOpen"),
    _release("2.9.4", "props command defaultOpen modes"),
    LATEST,
    _release("latest without foreign keys", "indent props command defaultOpen modes", foreign_keys=False),
    _release("latest with autoCollapse", "indent props command defaultOpen autoCollapse modes"),
)


def an_id(table: str, number: int) -> str:
    """The id of a table's row, as a UUID."""
    return f"{list(_TABLES).index(table) + 1:08x}-0000-4000-8000-{number:012x}"


# The thread without steps is number 3.
NEWEST_STEPS = {1: "2024-05-01T10:00:02.5Z", 2: "2024-05-02T00:00:00Z", 3: None}
_TEXT = 'it\'s a "quoted"\nline, 50 % of \\ and 漢字 🙂'
_OBJECT = {"name": _TEXT, "nested": {"list": [1, 2.5, None, True]}}


def _rows(table: str) -> list[dict[str, Any]]:
    if table == "users":
        return [
            {"identifier": "ann", "metadata": _OBJECT, "createdAt": "2024-01-01T00:00:00Z"},
            {"identifier": _TEXT, "metadata": {}, "createdAt": None},
        ]
    if table == "threads":
        owned = {"userId": an_id("users", 1), "userIdentifier": "ann"}
        return [
            {
                "createdAt": "2024-05-01T00:00:00Z",
                "name": _TEXT,
                **owned,
                "tags": ["a", _TEXT],
                "metadata": _OBJECT,
            },
            {"createdAt": None, "name": "", "tags": []},
            {"name": "no steps", **owned},
        ]
    if table == "steps":
        first = {"threadId": an_id("threads", 1), "type": "run", "name": "run", "streaming": False}
        full = {
            "disableFeedback": True,
            "isError": False,
            "metadata": _OBJECT,
            "tags": [_TEXT],
            "input": _TEXT,
        }
        full |= {"output": _TEXT, "command": "search", "end": "2024-05-01T10:00:03Z", "generation": _OBJECT}
        full |= {
            "showInput": "json",
            "indent": 2,
            "defaultOpen": True,
            "autoCollapse": True,
            "modes": _OBJECT,
        }
        return [
            {**first, "createdAt": "2024-05-01T10:00:01Z"},
            {**first, **full, "createdAt": NEWEST_STEPS[1], "parentId": an_id("steps", 1)},
            {**first, "createdAt": None, "output": ""},
            {**first, "threadId": an_id("threads", 2), "createdAt": NEWEST_STEPS[2], "streaming": True},
        ]
    if table == "elements":
        full = {"threadId": an_id("threads", 1), "forId": an_id("steps", 2), "props": _OBJECT, "page": 3}
        return [{"name": _TEXT, **full, "mime": "text/plain", "size": "large"}, {"name": ""}]
    rated = {"forId": an_id("steps", 2), "threadId": an_id("threads", 1)}
    return [{**rated, "value": 1, "comment": _TEXT}, {**rated, "value": 0}]


async def create(engine: AsyncEngine, schema: OldSchema) -> None:
    """The schema's tables, with rows."""
    async with engine.begin() as connection:
        for statement in schema.ddl():
            await connection.execute(sa.text(statement))
        for table in _TABLES:
            for number, row in enumerate(_rows(table), start=1):
                await insert(connection, table, {"id": an_id(table, number), **row}, schema.columns(table))


async def insert(connection: AsyncConnection, table: str, row: dict[str, Any], columns: list[str]) -> None:
    """One row; of its values those that the table has columns for, disableFeedback always."""
    if "disableFeedback" in columns:
        row = {"disableFeedback": False, **row}
    values = {name: _bound(connection, value) for name, value in row.items() if name in columns}
    names = ", ".join(f'"{name}"' for name in values)
    parameters = ", ".join(f":{name}" for name in values)
    await connection.execute(sa.text(f"INSERT INTO {table} ({names}) VALUES ({parameters})"), values)


def _bound(connection: AsyncConnection, value: Any) -> Any:
    if isinstance(value, dict) or (isinstance(value, list) and connection.dialect.name == "sqlite"):
        return json.dumps(value)
    return value


Snapshot = dict[str, list[tuple[Any, ...]]]


async def snapshot(engine: AsyncEngine, schema: OldSchema) -> Snapshot:
    """Every row of every table, each of the old columns as the database spells it."""
    cell = "quote({0})" if engine.dialect.name == "sqlite" else "{0}::text"
    found: Snapshot = {}
    async with engine.connect() as connection:
        for table in _TABLES:
            cells = ", ".join(cell.format(f'"{name}"') for name in schema.columns(table))
            rows = await connection.execute(sa.text(f"SELECT {cells} FROM {table} ORDER BY id"))
            found[table] = [tuple(row) for row in rows]
    return found


async def fingerprint(engine: AsyncEngine) -> list[tuple[Any, ...]]:
    """What tells whether anything but rows has changed: each column's, index's and constraint's definition."""
    statements = {
        "sqlite": "SELECT type, name, sql FROM sqlite_master ORDER BY type, name",
        "postgresql": (
            "SELECT table_name, column_name, data_type, column_default, is_nullable FROM information_schema.columns"
            " WHERE table_schema = current_schema() UNION ALL"
            " SELECT tablename, indexname, indexdef, NULL, NULL FROM pg_indexes"
            " WHERE schemaname = current_schema() ORDER BY 1, 2"
        ),
    }
    async with engine.connect() as connection:
        return [tuple(row) for row in await connection.execute(sa.text(statements[engine.dialect.name]))]
