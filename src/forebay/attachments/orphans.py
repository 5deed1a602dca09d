"""Content in a storage that no row of the database names, and whether it may go.

Rows are asked by `objectKey`, so it does not matter which layer made a key. A storage bears the marks of the
databases whose contents are in it: what another one's rows name is no orphan.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import AsyncIterator, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import anyio

from forebay.attachments.access import MARKS, Access, Listed
from forebay.attachments.folder import LocalStorageClient
from forebay.attachments.spool import waiting_keys
from forebay.database.store import Store
from forebay.errors import StorageError
from forebay.model import cleaning

_BATCH = 1000
_CONCURRENT_DELETES = 16
_FEW = 10  # so many may always go


@dataclass(slots=True)
class Comparison:
    """What a storage holds: `orphans`, old enough to go, among `looked_at` objects, of which rows name `named`."""

    looked_at: int = 0
    named: int = 0
    orphans: list[Listed] = field(default_factory=list)

    @property
    def would_take_most(self) -> bool:
        """Whether what goes is more than half of all, or what stays is nobody's: it may be the wrong database."""
        if not self.orphans:
            return False
        return not self.named or (len(self.orphans) > _FEW and 2 * len(self.orphans) > self.looked_at)


class Orphans:
    """Compares a storage with a database. `journal_dir` is where this machine's uploads wait.

    Only keys that begin with `prefix` are looked at; without one, only those that have an element's id as a part, as
    all of Chainlit's layers make them: a bucket may hold other things. Raises a DatabaseError or StorageError.
    """

    def __init__(self, store: Store, storage: Access, journal_dir: Path, prefix: str = "") -> None:
        self._store = store
        self._storage = storage
        self._journal_dir = journal_dir
        self._prefix = prefix

    async def compare(self, before: float) -> Comparison:
        """Look for what was stored before that time, in seconds since 1970, and has no row."""
        waiting = waiting_keys(self._journal_dir)
        comparison = Comparison()
        async for batch in batches(self._candidates()):
            with_row = await self._named(one.object_key for one in batch)
            comparison.looked_at += len(batch)
            comparison.named += len(with_row)
            comparison.orphans += [
                one
                for one in batch
                if one.modified < before and one.object_key not in with_row and one.object_key not in waiting
            ]
        await self._claim(comparison)
        return comparison

    async def others(self) -> set[str]:
        """The marks of other databases whose contents are in the storage."""
        return await self._storage.marks() - {await self._mark()}

    async def forget_others(self) -> None:
        """The storage is this database's alone."""
        await self._storage.unmark(await self.others())

    async def delete(self, orphans: Collection[Listed]) -> int:
        """Delete those that no row has come to name meanwhile; how many were deleted."""
        deleted: list[str] = []
        keys = [one.object_key for one in orphans]
        for first in range(0, len(keys), _BATCH):
            batch = keys[first : first + _BATCH]
            with_row = await self._named(batch)
            await self._delete([key for key in batch if key not in with_row], deleted)
        if isinstance(self._storage.client, LocalStorageClient):
            self._storage.client.sweep()
        return len(deleted)

    async def _delete(self, keys: Iterable[str], deleted: list[str]) -> None:
        limit = anyio.CapacityLimiter(_CONCURRENT_DELETES)

        async def delete(key: str) -> None:
            async with limit:
                if await self._storage.client.delete_file(key):
                    deleted.append(key)

        async with anyio.create_task_group() as tasks:
            for key in keys:
                tasks.start_soon(delete, key)

    async def _candidates(self) -> AsyncIterator[Listed]:
        async for one in self._storage.listed(self._prefix):
            if not one.object_key.startswith(MARKS) and (self._prefix or _is_an_elements(one.object_key)):
                yield one

    async def _named(self, keys: Iterable[str]) -> set[str]:
        return await named(self._store, keys)

    async def _claim(self, comparison: Comparison) -> None:
        """Mark a storage in which there is something of this database's."""
        mark = await self._mark()
        if comparison.named and mark and mark not in await self._storage.marks():
            await self._storage.mark(mark)

    async def _mark(self) -> str:
        return mark_of(await self._store.own_id())


def mark_of(database_id: str | None) -> str:
    """A database's mark, which says nothing else about it; empty for one that has no id."""
    return hashlib.sha256(database_id.encode()).hexdigest()[:32] if database_id else ""


def require_ours(
    others: Collection[str], remedy: str = "If the others are gone, say --forget-others"
) -> None:
    """Raise StorageError where a storage is not one database's alone."""
    if others:
        raise StorageError(
            f"contents of {len(others)} other database{'s' * (len(others) != 1)} are in this storage too, and this"
            f" one's rows do not name them: nothing was deleted. Is it the right database? {remedy}"
        )


async def named(store: Store, keys: Iterable[str]) -> set[str]:
    """Those of the keys that a row names, which holds them without what no database takes."""
    spelled = {key: cleaning.text(key) for key in keys}
    given = json.dumps([*spelled.values()])
    found = set(await store.read(store.statements.contents, object_keys=given))
    return {key for key, text in spelled.items() if text in found}


async def batches(objects: AsyncIterator[Listed]) -> AsyncIterator[list[Listed]]:
    """The objects, some at a time."""
    batch: list[Listed] = []
    async for one in objects:
        batch.append(one)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _is_an_elements(object_key: str) -> bool:
    """Whether an id is among its parts: `{user}/{element}/{name}`, `threads/{thread}/files/{element}` and others."""
    return any(map(_is_an_id, object_key.split("/")))


def _is_an_id(part: str) -> bool:
    try:
        return bool(uuid.UUID(part))
    except ValueError:
        return False
