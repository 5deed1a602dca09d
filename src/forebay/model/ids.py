"""Ids as they enter: each brought into the one spelling that its database gives back, or refused.

PostgreSQL's tables hold UUIDs. Its type `uuid` takes one in either case, with or without hyphens after each four
digits, and in braces; `urn:uuid:` before it is taken too, as Python does. All of these are one id, written in lower
case with four hyphens. SQLite's tables take any text, and there two spellings are two ids.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from forebay.errors import InvalidId
from forebay.model import cleaning, schema
from forebay.model.changes import Upsert
from forebay.model.schema import EXTRA, Kind

_is_canonical = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}").fullmatch
_DIGITS = r"(?:[0-9a-fA-F]{4}-?){7}[0-9a-fA-F]{4}"
_is_uuid = re.compile(rf"(?:[uU][rR][nN]:[uU][uU][iI][dD]:)?(?:{_DIGITS}|\{{{_DIGITS}\}})").fullmatch
_PARTS = ((0, 8), (8, 12), (12, 16), (16, 20), (20, 32))

_COLUMNS: dict[str, tuple[str, ...]] = {
    # As plain text: SQLAlchemy's names are a kind of text that JSON does not take for a key.
    name: tuple(str(column.name) for column in table.columns if column.info.get("kind") is Kind.ID)
    for name, table in schema.TABLES.items()
}
# What only links a row to another. A client may choose it, and a wrong one must not cost the row.
_LINKS = frozenset({("steps", "parentId"), ("elements", "forId")})


def as_uuid(value: object) -> str | None:
    """A UUID's canonical text; None for what is none."""
    text = value if type(value) is str else cleaning.text(value)
    if _is_canonical(text):
        return text
    if not _is_uuid(text):
        return None
    digits = text.lower().removeprefix("urn:uuid:").translate(_WITHOUT)
    return "-".join(digits[start:end] for start, end in _PARTS)


_WITHOUT = str.maketrans("", "", "{}-")


class Ids:
    """The ids of one database. `spell` gives an id's text, or None where no row can have it."""

    def __init__(self, *, uuids: bool) -> None:
        self.spell: Callable[[object], str | None] = as_uuid if uuids else cleaning.identifier
        self._uuids = uuids

    @staticmethod
    def columns(table: str) -> tuple[str, ...]:
        """The columns of a table that hold ids."""
        return _COLUMNS[table]

    def enter(self, change: Upsert) -> Upsert:
        """The change, with its ids in the database's spelling. A wrong link is set apart. Raises InvalidId."""
        if self._uuids:
            row = change.row
            for name in _COLUMNS[change.table]:
                value = row.get(name)
                if value is not None and not _is_canonical(value):
                    self._respell(change, name, value)
        return change

    def _respell(self, change: Upsert, name: str, value: str) -> None:
        row, spelled = change.row, as_uuid(value)
        if spelled is not None:
            row[name] = spelled
        elif (change.table, name) in _LINKS:
            row[EXTRA] = {**row.get(EXTRA, {}), name: cleaning.json(row.pop(name))}
        else:
            raise InvalidId(f"{change.table}: {name} is no UUID, and PostgreSQL's tables take nothing else")
        if name == "id":
            change.key = row["id"]
        if name == "threadId" or change.table == "threads":
            change.thread_id = row["id" if change.table == "threads" else "threadId"]
