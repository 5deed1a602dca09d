"""Bringing rows into a database, as changes that are as old as they were, beneath what is newer there.

Whoever is known by the same login name keeps the id that the database has for them. What was deleted there since stays
deleted. A second run changes nothing.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import sqlalchemy as sa

from forebay.attachments.access import Access
from forebay.database.store import Store
from forebay.errors import RowError
from forebay.model import changes, cleaning, schema
from forebay.model.changes import Change, Delete
from forebay.model.ids import Ids
from forebay.primitives import threads
from forebay.transfer import lines

_BATCH_ROWS = 1000
_BATCH_BYTES = 4 * 1024 * 1024
_USERS_AT_ONCE = 500
_NAMESPACE = uuid.UUID("5d9d2f0b-2f3c-4b57-9a55-6f1d6e0f4b1e")

Progress = Callable[[int, int], None]


@dataclass
class Brought:
    """What became of the rows, by kind: written or known before; left out since they were deleted; refused; files.

    `removed`: rows that were deleted, since the source has deleted them.
    """

    rows: Counter[str] = field(default_factory=Counter)
    deleted: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    removed: Counter[str] = field(default_factory=Counter)
    files: int = 0


class Bringer:
    """Brings rows into `store`, and their contents, from `folder`, into a storage.

    People come before their threads, a thread before what is in it. Every method raises a DatabaseError.
    """

    def __init__(self, store: Store, access: Access | None = None, folder: Path | None = None) -> None:
        self._store = store
        self._access = access
        self._folder = folder
        self._ids = store.ids
        self._users: dict[str, str] = {}  # a source's ids, and those of the same people here
        self._queued: list[Change] = []
        self._size = 0
        self.brought = Brought()
        self.refused_threads: set[str] = set()

    async def people(self, people: Sequence[Mapping[str, Any]]) -> None:
        """Make them known, before their threads come."""
        for start in range(0, len(people), _USERS_AT_ONCE):
            await self._bring_some(people[start : start + _USERS_AT_ONCE])

    async def _bring_some(self, people: Sequence[Mapping[str, Any]]) -> None:
        others = await self._others(people)
        rows: list[dict[str, Any]] = [
            {
                "id": others.get(person["id"]) or self.spell(person["id"]),
                "identifier": cleaning.text(person["identifier"]),
                "metadata": orjson.Fragment(cleaning.json(person.get("metadata") or {})),
                "createdAt": person.get("createdAt"),
            }
            for person in people
        ]
        gone = await self._deleted(rows)
        there = [row for row in rows if row["identifier"] not in gone]
        statement = self._store.statements.claimants
        await self._store.write(statement, users=orjson.dumps(there).decode())
        known = await self._known([row["identifier"] for row in rows])
        for person, row in zip(people, rows, strict=True):
            self._users[person["id"]] = known.get(row["identifier"]) or gone[row["identifier"]]
        for row in rows:
            (self.brought.rows if row["identifier"] in known else self.brought.deleted)["user"] += 1

    async def _deleted(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
        """By login name, the ids under which those are noted whom somebody has deleted here."""
        await self._store.prepare()
        names = {row["identifier"]: self._store.name_id(row["identifier"]) for row in rows}
        ids = [*names.values(), *(row["id"] for row in rows)]
        asked = orjson.dumps(ids).decode()
        noted = set(await self._store.read(self._store.statements.noted_users, user_ids=asked))
        gone = {row["identifier"]: row["id"] for row in rows if row["id"] in noted}
        return {**gone, **{identifier: name for identifier, name in names.items() if name in noted}}

    async def _others(self, people: Sequence[Mapping[str, Any]]) -> dict[str, str]:
        """New ids for those whose id somebody else has here."""
        users = schema.users
        named = {self.spell(person["id"]): person for person in people}
        statement = sa.select(users.c.id, users.c.identifier).where(users.c.id.in_(list(named)))
        found = {str(row["id"]): row["identifier"] for row in await self._store.select(statement)}
        return {
            named[key]["id"]: str(uuid.uuid4())
            for key, identifier in found.items()
            if identifier != cleaning.text(named[key]["identifier"])
        }

    async def _known(self, identifiers: Sequence[str]) -> dict[str, str]:
        users = schema.users
        statement = sa.select(users.c.identifier, users.c.id).where(users.c.identifier.in_(identifiers))
        return {row["identifier"]: str(row["id"]) for row in await self._store.select(statement)}

    def knows(self, user_id: str) -> bool:
        """Whether the person with this id in the source has come."""
        return user_id in self._users

    def spell(self, key: str) -> str:
        """An id of a source may be any text; where the tables take UUIDs only, it becomes one, always the same."""
        return self._ids.spell(key) or str(uuid.uuid5(_NAMESPACE, key))

    async def add(self, table: str, row: Mapping[str, Any], removed: Sequence[str] = ()) -> None:
        """A row; of a thread, also the keys of its metadata that it has no more. Written with `write` at the latest."""
        change = changes.stored(table, self.spelled(table, row), removed)
        if table == "elements" and row.get("objectKey"):
            await self._bring_content(row["objectKey"], row.get("mime") or "application/octet-stream")
        await self._queue(change)

    def spelled(self, table: str, row: Mapping[str, Any]) -> dict[str, Any]:
        """A row with its ids as this database spells them, and its owner's as it knows them."""
        spelled = dict(row)
        for name in Ids.columns(table):
            if row.get(name) is not None:
                spelled[name] = self.spell(row[name])
        if table == "threads" and row.get("userId") is not None:
            spelled["userId"] = self._users.get(row["userId"], spelled["userId"])
        return spelled

    async def remove(self, table: str, key: str, thread_id: str, moment: int) -> None:
        """Delete a row that was written at `moment` at the latest, as the source has."""
        key = self.spell(key)
        self.brought.removed[lines.KINDS[table]] += 1
        await self._queue(Delete(table, key, self.spell(thread_id), moment=moment))

    async def _queue(self, change: Change) -> None:
        self._queued.append(change)
        self._size += change.size
        if len(self._queued) >= _BATCH_ROWS or self._size >= _BATCH_BYTES:
            await self.write()

    async def _bring_content(self, object_key: str, mime: str) -> None:
        if self._access is None or self._folder is None:
            return
        path = (self._folder / object_key).resolve()
        if path.is_relative_to(self._folder.resolve()) and path.is_file():
            self.brought.files += await self._access.add(object_key, path, mime)

    async def write(self) -> None:
        """Write what was added."""
        queued, self._queued, self._size = self._queued, [], 0
        await self._write_some(queued)

    async def _write_some(self, some: Sequence[Change]) -> None:
        """In halves where a row is refused, until it stands alone."""
        if not some:
            return
        try:
            gone = await self._store.apply(some, late=True)
        except RowError:
            if len(some) == 1:
                self.brought.refused[lines.KINDS[some[0].table]] += 1
                self.refused_threads.add(some[0].thread_id or some[0].key)
                return
            middle = len(some) // 2
            await self._write_some(some[:middle])
            await self._write_some(some[middle:])
            return
        places = {one.place for one in gone if not isinstance(one, str)}
        for place, change in enumerate(some):
            if isinstance(change, Delete):
                continue
            is_gone = place in places or change.thread_id in gone
            (self.brought.deleted if is_gone else self.brought.rows)[lines.KINDS[change.table]] += 1


async def bring_export(
    store: Store,
    path: Path,
    progress: Progress,
    access: Access | None = None,
    folder: Path | None = None,
) -> Brought:
    """Write all of an export; `progress` gets the rows done, and how many there are.

    Raises DamagedExport before it writes, or a DatabaseError.
    """
    total = sum((await threads.run(lambda: lines.verify(path))).values())
    await store.prepare()
    bringer = Bringer(store, access, folder)
    people: list[dict[str, Any]] = []
    for done, (table, row) in enumerate(lines.rows(path)):
        if table == "users":
            people.append(row)
            continue
        if people:
            await bringer.people(people)
            people = []
        await bringer.add(table, row)
        progress(done, total)
    await bringer.people(people)
    await bringer.write()
    progress(total, total)
    return bringer.brought
