"""When each part of a row was written: what comes late changes what nobody has touched since, and nothing else.

A part is a column, or a key of an object that is merged by key. All of a row's parts were written at its moment, but
for those that its `forebayMoments` names. Whole rows are the rule, so there are hardly ever any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from forebay.model import schema
from forebay.model.rows import Row
from forebay.model.schema import MOMENTS, NOTES, WRITTEN_AT, Merge

Moments = dict[str, Any]

_STAYS = frozenset({"id", "threadId", "userIdentifier", *NOTES})
# The columns that the newest change gives its value.
PLAIN: dict[str, tuple[str, ...]] = {
    table.name: tuple(
        str(column.name)
        for column in table.columns
        if schema.merge_of(column) is Merge.LAST and column.name not in _STAYS
    )
    for table in schema.WRITE_ORDER
}
# Those that hold an object whose keys are merged.
KEYED: dict[str, tuple[str, ...]] = {
    table.name: tuple(str(c.name) for c in table.columns if schema.merge_of(c) is Merge.KEYS)
    for table in schema.WRITE_ORDER
}


def fold(table: str, older: Row, newer: Row, row: Row) -> None:
    """Note in `row`, which the two have become, what the newer one leaves as the older one has written it."""
    row.pop(MOMENTS, None)
    earlier, later = older.get(MOMENTS, {}), newer.get(MOMENTS, {})
    moments: Moments = {}
    for name in PLAIN[table]:
        source, known = (newer, later) if name in newer else (older, earlier)
        moment = known.get(name, source.get(WRITTEN_AT, 0))
        if name in source and moment != row[WRITTEN_AT]:
            moments[name] = moment
    for name in KEYED[table]:
        keys = {**_keys(older, earlier, name), **_keys(newer, later, name)}
        if noted := {
            key: at for key, at in keys.items() if key not in row.get(name, ()) or at != row[WRITTEN_AT]
        }:
            moments[name] = noted
    if moments:
        row[MOMENTS] = moments


def cleaned(given: object) -> Moments:
    """Moments that somebody else hands over, without what is none."""
    if not isinstance(given, dict):
        return {}
    numbers = {name: at for name, at in given.items() if type(at) is int}
    keyed = {name: cleaned(at) for name, at in given.items() if isinstance(at, dict)}
    return {**numbers, **keyed}


def _keys(row: Row, known: Moments, name: str) -> dict[str, int]:
    """The moments of the keys that a change writes or removes."""
    return {**dict.fromkeys(row.get(name, ()), row.get(WRITTEN_AT, 0)), **known.get(name, {})}


@dataclass(frozen=True, slots=True)
class Stored:
    """A row as it is stored: its columns that hold something, and its objects, or those that are merged by key."""

    written_at: int
    moments: Mapping[str, Any]
    there: frozenset[str]
    objects: Mapping[str, Mapping[str, Any]]
    now: int  # on the database's clock

    def at(self, name: str) -> int:
        """When a column was written; -1 for never."""
        return int(self.moments.get(name, self.written_at)) if name in self.there else -1

    def key_at(self, name: str, key: str) -> int:
        """When a key was written or removed; -1 for never."""
        known = self.moments.get(name, {})
        if key in known:
            return int(known[key])
        return self.written_at if key in self.objects.get(name, ()) else -1

    def is_older(self, than: int, name: str, key: str | None = None) -> bool:
        """Whether what is there is older than a moment.

        One that has yet to come, by a clock that was ahead, is no reason against one that has been.
        """
        at = self.at(name) if key is None else self.key_at(name, key)
        if at < 0:
            return True
        is_ahead = than > self.now + _AHEAD_US and at <= self.now
        return than > at and not is_ahead


_AHEAD_US = 5_000_000  # what is further ahead is not a clock's difference


def beneath(
    table: str,
    row: Row,
    removed: Iterable[str],
    stored: Stored,
    star: Callable[[bytes, bytes], bytes],
    starred: str,
) -> tuple[Row, frozenset[str]]:
    """What a late change still does to a stored row: its row and the keys that it removes, with their moments.

    `star` merges a step's metadata, older and newer, so that `starred`, which the newer does not name, is kept.
    """
    given: Moments = row.get(MOMENTS, {})
    moment: int = row.get(WRITTEN_AT, 0)
    newest = max(moment, stored.written_at)
    kept, moments = {name: value for name, value in row.items() if name != MOMENTS}, Moments()
    for name in PLAIN[table]:
        if name not in row:
            continue
        at: int = given.get(name, moment)
        if stored.is_older(at, name):
            if at != newest:
                moments[name] = at
        elif (
            table == "steps"
            and name == "metadata"
            and _lacks_star(row[name], stored.objects.get(name), starred)
        ):
            kept[name] = star(row[name], orjson.dumps(stored.objects[name]))
            moments[name] = stored.at(name)
        else:
            del kept[name]
    gone = set(removed)
    for name in KEYED[table]:
        keys = {key: at for key, at in _keys(row, given, name).items() if stored.is_older(at, name, key)}
        if name in row:
            kept[name] = {key: value for key, value in row[name].items() if key in keys}
        gone = {key for key in gone if key in keys}
        if noted := {key: at for key, at in keys.items() if at != newest or key in gone}:
            moments[name] = noted
    if moments:
        kept[MOMENTS] = moments
    return kept, frozenset(gone)


def _lacks_star(given: bytes, stored: Mapping[str, Any] | None, starred: str) -> bool:
    if stored is None or starred in stored or starred.encode() not in given:
        return False
    found = orjson.loads(given)
    return isinstance(found, dict) and starred in found
