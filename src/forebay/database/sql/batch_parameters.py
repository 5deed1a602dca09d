"""A run of upserts -> the batch statement's parameters: a JSON document a table, which the database parses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from forebay.database.sql.dialect import DISCARDED, LACKING, PASSED_ON, REMOVED, SEEN
from forebay.model import changes, cleaning, schema
from forebay.model.changes import Upsert
from forebay.model.moments import KEYED, PLAIN
from forebay.model.rows import Row
from forebay.model.schema import MADE_AT, MOMENTS, PASSES_ON, REPLACED, THREAD_MADE_AT, Merge

NOW = "now"


@dataclass(frozen=True, slots=True)
class Documents:
    """A run of upserts as parameters: a JSON array for each table.

    `partial`: a row lacks a column it needs; `rows`: how many there are, with the threads'
    stubs; `revives`: a thread is made anew; `contents`: an element says where its content is, or was.
    """

    parameters: dict[str, Any]
    tables: tuple[str, ...]
    partial: bool
    rows: int
    revives: bool
    contents: bool


def documents(upserts: Sequence[Upsert], discarded: Iterable[str] = ()) -> Documents:
    """A run of upserts, each row once, as the batch statement's parameters.

    `discarded`: the keys of contents that no row will name, beside those that the changes themselves replace.
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
    lacking = _lacking(rows)
    _note_defaults(rows, lacking)
    parameters: dict[str, Any] = {table: _array(by_key) for table, by_key in rows.items()}
    parameters[REMOVED] = orjson.dumps(removed).decode()
    parameters[LACKING] = orjson.dumps(lacking).decode()
    parameters[PASSED_ON] = orjson.dumps(
        [key for key, row in rows["threads"].items() if PASSES_ON in row]
    ).decode()
    replaced = sorted({*discarded, *_replaced(rows["elements"].values())})
    parameters[DISCARDED] = orjson.dumps(replaced).decode()
    parameters[NOW] = now
    parameters[SEEN] = "{}"
    return Documents(
        parameters,
        tuple(table for table, by_key in rows.items() if by_key),
        bool(lacking),
        sum(map(len, rows.values())),
        any(MADE_AT in row for row in rows["threads"].values()),
        bool(replaced) or any("objectKey" in row for row in rows["elements"].values()),
    )


def _replaced(elements: Iterable[Row]) -> Iterable[str]:
    return (key for row in elements for key in row.get(REPLACED, ()))


def _add_stubs(rows: dict[str, dict[str, Row]], upserts: Iterable[Upsert], now: str) -> None:
    newest: dict[str, str | None] = {}
    made: dict[str, int] = {}
    for upsert in upserts:
        if upsert.thread_id is None:
            continue
        if THREAD_MADE_AT in upsert.row:
            made[upsert.thread_id] = max(made.get(upsert.thread_id, 0), upsert.row[THREAD_MADE_AT])
        if upsert.table == "threads":
            continue
        created = upsert.row.get("createdAt") if upsert.table == "steps" else None
        known = newest.get(upsert.thread_id)
        newest[upsert.thread_id] = max(known, created) if known and created else known or created
    for thread_id, created in newest.items():
        stub = changes.thread_stub(thread_id, created, now)
        rows["threads"][thread_id] = {**stub, **rows["threads"].get(thread_id, {})}
    for thread_id, moment in made.items():
        rows["threads"][thread_id] = {**rows["threads"][thread_id], MADE_AT: moment}


def _lacking(rows: dict[str, dict[str, Row]]) -> dict[str, dict[str, list[str]]]:
    """By table and row, the columns that it must have and brings no value for."""
    lacking: dict[str, dict[str, list[str]]] = {}
    for table, by_key in rows.items():
        for key, row in by_key.items():
            if not MUST_HAVE[table] <= row.keys():
                lacking.setdefault(str(table), {})[key] = sorted(MUST_HAVE[table] - row.keys())
    return lacking


def _note_defaults(rows: dict[str, dict[str, Row]], lacking: dict[str, dict[str, list[str]]]) -> None:
    """A default was written before anything else: whatever comes for its column is newer."""
    for table, by_key in lacking.items():
        if MOMENTS in schema.TABLES[table].columns:
            for key, names in by_key.items():
                row = rows[table][key]
                noted = {**row.get(MOMENTS, {}), **dict.fromkeys(names, 0)}
                # As a later statement has them: SQLite compares the text, and tells from it whether a row changes.
                ordered = {name: noted[name] for name in (*PLAIN[table], *KEYED[table]) if name in noted}
                rows[table][key] = {**row, MOMENTS: ordered}


def _array(by_key: dict[str, Row]) -> str:
    ordered = [by_key[key] for key in sorted(by_key)]
    return orjson.dumps(ordered, default=orjson.Fragment).decode()  # JSON is held as bytes


MUST_HAVE: dict[str, frozenset[str]] = {
    table.name: frozenset(
        str(column.name)  # JSON takes no other kind of text for a key
        for column in table.columns
        if schema.merge_of(column) is Merge.LAST
        and (not column.nullable or schema.default_of(column) is not None)
    )
    for table in schema.WRITE_ORDER
}
