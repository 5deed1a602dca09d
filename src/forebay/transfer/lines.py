"""The form of an export: lines of JSON, one a row, the same for both databases.

The first line names the form and the tables' columns, the last one the number of rows and the SHA-256 of all that
stands before it, so that a file that was cut or changed is noticed before anything is written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from forebay.errors import ForebayError
from forebay.model import cleaning, schema

FORM = "forebay-export"
VERSION = 1
# What a line calls a row of each table, in the order in which a file has them.
KINDS = {
    "users": "user",
    "threads": "thread",
    "steps": "step",
    "feedbacks": "feedback",
    "elements": "element",
}
TABLES = {kind: table for table, kind in KINDS.items()}
_END = "end"


class DamagedExport(ForebayError):
    """The file is no export, or not a whole one. Nothing was written of it."""


def header() -> bytes:
    """The first line."""
    columns = {
        kind: [str(column.name) for column in schema.TABLES[table].columns] for table, kind in KINDS.items()
    }
    return _line({"kind": FORM, "version": VERSION, "columns": columns})


def row_line(table: str, row: Mapping[str, Any]) -> bytes:
    """A row's line: its columns in the table's order, without those that have no value."""
    return _line(
        {"kind": KINDS[table], **{name: _plain(value) for name, value in row.items() if value is not None}}
    )


def _plain(value: Any) -> Any:
    """A JSON document's keys have an order in one database and none in the other."""
    return orjson.Fragment(_sorted(value)) if isinstance(value, dict | list) else value


def _sorted(value: Any) -> bytes:
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except TypeError:  # as a number of more than 64 bits
        return orjson.dumps(orjson.loads(cleaning.json(value)), option=orjson.OPT_SORT_KEYS)


def _line(value: Mapping[str, Any]) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE)


@dataclass
class Lines:
    """Writes an export. `counts`: rows by kind."""

    into: BinaryIO
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(TABLES, 0))

    def __post_init__(self) -> None:
        self._digest = hashlib.sha256()
        self._write(header())

    def add(self, table: str, row: Mapping[str, Any]) -> None:
        """Write a row."""
        self._write(row_line(table, row))
        self.counts[KINDS[table]] += 1

    def end(self) -> None:
        """Write the last line; without it the file is not whole."""
        last = {"kind": _END, "rows": sum(self.counts.values()), "sha256": self._digest.hexdigest()}
        self.into.write(_line(last))
        self.into.flush()

    def _write(self, line: bytes) -> None:
        self._digest.update(line)
        self.into.write(line)


def verify(path: Path) -> dict[str, int]:
    """Read a whole export; how many rows of each kind it has. Raises DamagedExport."""
    counts = dict.fromkeys(TABLES, 0)
    digest = hashlib.sha256()
    last: Mapping[str, Any] | None = None
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if last is not None:
                raise DamagedExport(f"{path}: line {number}: something stands behind the last line")
            found = _read(path, number, line)
            if number == 1:
                _check_header(path, found)
            elif found["kind"] == _END:
                last = found
                continue
            elif found["kind"] not in counts:
                raise DamagedExport(f"{path}: line {number}: a kind of row that this release does not know")
            else:
                counts[found["kind"]] += 1
            digest.update(line)
    if last is None:
        raise DamagedExport(f"{path}: it has no last line: it was cut, or its export has failed")
    if (last.get("rows"), last.get("sha256")) != (sum(counts.values()), digest.hexdigest()):
        raise DamagedExport(f"{path}: its checksum is another one: it was changed after its export")
    return counts


def rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The table and the values of each row of a file that was verified."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            found = _read(path, number, line)
            table = TABLES.get(found.pop("kind"))
            if table is not None:
                yield table, found


def _read(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        found = orjson.loads(line)
    except orjson.JSONDecodeError:
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("kind"), str):
        raise DamagedExport(f"{path}: line {number} is no line of an export")
    return found


def _check_header(path: Path, found: Mapping[str, Any]) -> None:
    if found["kind"] != FORM:
        raise DamagedExport(f"{path} is no export: its first line does not say so")
    if found.get("version") != VERSION:
        raise DamagedExport(f"{path} is of a newer release: this one reads version {VERSION}")
