"""Chainlit's dicts -> rows: a column's values cleaned, what no column is for set apart.

Chainlit makes its dicts in few ways, so most have the keys and types of one that came before. What is to be done
with each key is worked out once for such a shape; the texts of a row are then checked all together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import Any

from forebay.model import cleaning, schema
from forebay.model.cleaning import Misfit
from forebay.model.schema import NOTES, Kind, Merge

# Values by column. JSON is held as bytes, an object whose keys are merged as a dict of such bytes.
Row = dict[str, Any]

_MOST_SHAPES = 1000
_MOMENT_SIZE = 20  # bytes of an item that is no JSON yet: a moment, or a few
_IGNORED = frozenset({("steps", "feedback")})  # it has a table of its own

_COLUMNS: dict[str, dict[str, Callable[[Any], Any]]] = {
    name: {
        column.name: cleaning.CLEANERS[schema.kind_of(column)]
        for column in table.columns
        if schema.merge_of(column) is not Merge.KEYS and column.name not in NOTES
    }
    for name, table in schema.TABLES.items()
    if name != "users"
}


def clean(table: str, values: Mapping[str, Any]) -> tuple[Row, dict[str, bytes], int]:
    """The columns' values; the keys that no column is for or whose value fits none; the row's size, as `size_of`."""
    shapes = _shapes[table]
    form = (tuple(values), tuple(map(type, values.values())))
    try:
        shape = shapes[form]
    except KeyError:
        if len(shapes) >= _MOST_SHAPES:
            shapes.clear()
        shape = shapes[form] = _shape(table, values)
    if shape is not None and (filled := shape.fill(values)) is not None:
        return filled
    return _clean_each(table, values)


def size_of(row: Row) -> int:
    """The bytes of its texts and of its JSON, about: texts are counted by their letters."""
    size = 0
    for value in row.values():
        kind = type(value)
        if kind is str or kind is bytes:
            size += len(value)
        elif kind is dict:
            size += sum(
                len(key) + (len(item) if type(item) is bytes else _MOMENT_SIZE) for key, item in value.items()
            )
        elif kind is list:
            size += sum(map(len, value))
    return size


def bytes_of(row: Row) -> int:
    """As `size_of`, exactly: texts as UTF-8."""
    return size_of({name: _as_utf8(value) for name, value in row.items()})


def _as_utf8(value: Any) -> Any:
    if type(value) is dict:
        return {key.encode(): item for key, item in value.items()}
    if type(value) is list:
        return [item.encode() for item in value]
    return value.encode() if type(value) is str else value


def _clean_each(table: str, values: Mapping[str, Any]) -> tuple[Row, dict[str, bytes], int]:
    cleaners = _COLUMNS[table]
    row: Row = {}
    extra: dict[str, bytes] = {}
    for name, value in values.items():
        if value is None or (table, name) in _IGNORED:
            continue
        if type(name) is not str:  # a StrEnum's member finds its column, and JSON takes no such key
            name = cleaning.text(name)
        try:
            cleaned = cleaners[name](value)
        except (KeyError, Misfit):
            extra[cleaning.text(name)] = cleaning.json(value)
            continue
        if cleaned is not None:
            row[name] = cleaned
    return row, extra, size_of(row)


class _Shape:
    """Dicts with the same keys, in one order, whose values are of the same types."""

    __slots__ = ("_ids", "_names", "_others", "_pick", "_texts")

    def __init__(
        self, names: list[str], ids: list[str], texts: list[str], others: list[str], table: str
    ) -> None:
        self._names = tuple(names)
        self._pick = itemgetter(*names)
        self._ids = itemgetter(*ids, ids[0])  # at least two, or it would give no tuple
        self._texts = itemgetter(*texts)
        self._others = tuple((name, _COLUMNS[table][name]) for name in others)

    def fill(self, values: Mapping[str, Any]) -> tuple[Row, dict[str, bytes], int] | None:
        """What `clean` returns; None when a value needs more than a look."""
        texts = "".join(self._texts(values))
        if "\0" in texts or not (texts.isascii() or _is_utf8(texts)) or not all(self._ids(values)):
            return None
        row = dict(zip(self._names, self._pick(values), strict=True))
        size = len(texts)
        for name, cleaner in self._others:
            try:
                cleaned = cleaner(row[name])
            except Misfit:
                return None
            if cleaned is None:
                return None
            row[name] = cleaned
            if type(cleaned) is bytes or type(cleaned) is str:
                size += len(cleaned)
            elif type(cleaned) is list:
                size += sum(map(len, cleaned))
        return row, {}, size


def _shape(table: str, values: Mapping[str, Any]) -> _Shape | None:
    """None where there is nothing to gain, or a key that no column is for."""
    names: list[str] = []
    ids: list[str] = []
    texts: list[str] = []
    others: list[str] = []
    for name, value in values.items():
        if value is None or (table, name) in _IGNORED:
            continue
        if type(name) is not str or name not in _COLUMNS[table]:
            return None
        names.append(name)
        kind = schema.kind_of(schema.TABLES[table].columns[name])
        if type(value) is str and kind in (Kind.ID, Kind.TEXT):
            texts.append(name)
            if kind is Kind.ID:
                ids.append(name)
        elif not (type(value) is bool and kind is Kind.BOOL):
            others.append(name)
    return _Shape(names, ids, texts, others, table) if ids and len(texts) > 1 else None


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


_shapes: dict[str, dict[Any, _Shape | None]] = {name: {} for name in _COLUMNS}
