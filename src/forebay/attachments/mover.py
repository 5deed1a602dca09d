"""Bringing contents from a former storage into the one that is in use: `forebay blobs move`.

An object is read, stored where there is none yet, read back and compared, named by its rows, and only then deleted at
its source. So it can be stopped anywhere and run again, also beside another one and beside chats: what a chat stores
stays, and what it deletes stays deleted.
"""

from __future__ import annotations

import hashlib
import secrets
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from pathlib import Path

import anyio

from forebay.attachments.access import Access, Held, Listed
from forebay.attachments.folder import LocalStorageClient
from forebay.attachments.orphans import batches, mark_of, named, require_ours
from forebay.database.store import Store
from forebay.errors import StorageError
from forebay.model import cleaning
from forebay.primitives import threads

_AT_ONCE = 8
_MOST_FAILURES_IN_A_ROW = 20  # after so many it is the storage, not the objects
_DIFFERS = "the storage in use has another content under this key, which is served; both stay"
_SCRATCH = "moving-"
_SCRATCH_AGE = 24 * 3600.0  # seconds after which a run that left its files behind is surely gone


class Fate(Enum):
    """What became of an object."""

    MOVED = "moved"
    WAS_THERE = "already_there"
    DELETED = "deleted_meanwhile"
    DIFFERS = "differs"  # both storages have a content under its key; the one in use is served
    FAILED = "failed"


@dataclass(slots=True)
class Tally:
    """How many objects came to which fate, and the bytes that were moved; `why` of those that stayed, by their keys."""

    fates: Counter[Fate] = field(default_factory=Counter)
    size: int = 0
    why: dict[str, str] = field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to be moved."""
        return not self.why


@dataclass(slots=True)
class Plan:
    """What is in the former storage: objects that rows name, with their size, and others, which stay."""

    objects: int = 0
    size: int = 0
    unnamed: int = 0


class Mover:
    """Moves what rows of `store` name from `former` to `current`. With `keep`, the former one's contents stay.

    Raises a DatabaseError, and StorageError where a storage can't be used at all.
    """

    def __init__(self, store: Store, current: Access, former: Access, *, keep: bool = False) -> None:
        self._store = store
        self._current = current
        self._former = former
        self._keep = keep
        self._failures = 0

    async def require_two(self) -> None:
        """Raise StorageError where both are one storage by two names: each object would be deleted."""
        key = f"forebay-doctor/{secrets.token_hex(16)}"
        stored = await self._current.client.upload_file(key, b"forebay", "text/plain")
        if not (stored or {}).get("object_key"):
            raise StorageError("the storage that is in use can't be written to")
        try:
            if await self._former.look(key) is not None:
                raise StorageError("FOREBAY_FORMER_STORAGE is the storage that is in use, by another name")
        finally:
            await self._current.delete(key)

    async def require_ours(self) -> None:
        """Raise StorageError where another database's contents are in the former storage, unless all of it is kept."""
        if not self._keep:
            mark = mark_of(await self._store.own_id())
            require_ours(await self._former.marks() - {mark}, "--keep leaves all in place")

    async def plan(self) -> Plan:
        """Look at what there is."""
        plan = Plan()
        async for batch in batches(self._former.listed()):
            wanted = await named(self._store, (one.object_key for one in batch))
            plan.objects += len(wanted)
            plan.unnamed += len(batch) - len(wanted)
            plan.size += sum(one.size for one in batch if one.object_key in wanted)
        return plan

    async def move(self, done: Callable[[Listed], None] = lambda _: None) -> Tally:
        """Move everything; `done` is called with each object that is dealt with."""
        tally = Tally()
        async with self._scratch() as scratch:
            async for batch in batches(self._former.listed()):
                wanted = await named(self._store, (one.object_key for one in batch))
                limit = anyio.CapacityLimiter(_AT_ONCE)
                async with anyio.create_task_group() as tasks:
                    for one in batch:
                        if one.object_key in wanted:
                            await limit.acquire_on_behalf_of(one)
                            tasks.start_soon(self._one, one, scratch, tally, done, limit)
                if self._failures >= _MOST_FAILURES_IN_A_ROW:
                    raise StorageError(
                        f"{self._failures} objects in a row could not be moved: {[*tally.why.values()][-1]}; what was"
                        " moved is moved, and the same command goes on"
                    )
        return tally

    async def _one(
        self,
        one: Listed,
        scratch: Path,
        tally: Tally,
        done: Callable[[Listed], None],
        limit: anyio.CapacityLimiter,
    ) -> None:
        path = scratch / secrets.token_hex(16)
        try:
            if self._failures >= _MOST_FAILURES_IN_A_ROW:
                return
            fate = await self._moved(one.object_key, path)
            self._failures = 0
            tally.size += one.size if fate is Fate.MOVED else 0
            if fate is Fate.DIFFERS:
                tally.why[one.object_key] = _DIFFERS
        except (StorageError, OSError) as error:
            self._failures += 1
            fate = Fate.FAILED
            tally.why[one.object_key] = str(error) if isinstance(error, StorageError) else str(error.strerror)
        finally:
            limit.release_on_behalf_of(one)
            await threads.run(partial(path.unlink, missing_ok=True))
        tally.fates[fate] += 1
        done(one)

    async def _moved(self, key: str, path: Path) -> Fate:
        source = await self._read(key, path)
        if source is None:
            return Fate.WAS_THERE if await self._current.look(key) is not None else Fate.DELETED
        added = await self._current.look(key) is None and await self._current.add(key, path, source.mime)
        stored = await self._current.look(key)
        if stored is None:
            return await self._gone(key)
        if await self._digest_of(key, path) != await threads.run(partial(_digest, path)):
            return Fate.DIFFERS
        if not await named(self._store, [key]):  # a chat has deleted it, perhaps before it was added
            if added:
                await self._take_back(key, stored)
            return Fate.DELETED
        await self._readdress(key)
        await self._delete_source(key, source)
        return Fate.MOVED if added else Fate.WAS_THERE

    async def _read(self, key: str, path: Path) -> Held | None:
        """The object's content in a file; None where it is not there any more."""
        source = await self._former.look(key)
        if source is None:
            return None
        try:
            await self._former.read(key, path)
        except StorageError:
            if await self._former.look(key) is None:
                return None
            raise
        if (await threads.run(path.stat)).st_size != source.size:
            raise StorageError("it was not read whole, or has changed meanwhile")
        return source

    async def _gone(self, key: str) -> Fate:
        """What was stored is not there any more."""
        if await named(self._store, [key]):
            raise StorageError("it was stored, and is not there")
        return Fate.DELETED

    async def _take_back(self, key: str, added: Held) -> None:
        """Delete what was added, unless a chat has stored its own in its place."""
        there = await self._current.look(key)
        if there is not None and there.version == added.version:
            await self._current.delete(key)

    async def _digest_of(self, key: str, near: Path) -> bytes:
        """Of what the storage gives back."""
        path = near.with_suffix(".back")
        try:
            await self._current.read(key, path)
            return await threads.run(partial(_digest, path))
        finally:
            await threads.run(partial(path.unlink, missing_ok=True))

    async def _readdress(self, key: str) -> None:
        url = await self._current.stored_url(key)
        if url is not None:
            statement = self._store.statements.readdress
            await self._store.write(statement, object_key=cleaning.text(key), url=cleaning.text(url))

    async def _delete_source(self, key: str, source: Held) -> None:
        if self._keep:
            return
        there = await self._former.look(key)
        if there is None:
            return
        if there.version != source.version:
            raise StorageError("it has changed meanwhile in the former storage: a process still stores there")
        if not await self._former.delete(key):
            raise StorageError("it is moved, and can't be deleted in the former storage")

    @asynccontextmanager
    async def _scratch(self) -> AsyncIterator[Path]:
        """A folder for what is on its way, on a storage's own disk, where a file need not be copied."""
        folders = [
            storage.client.folder
            for storage in (self._former, self._current)
            if isinstance(storage.client, LocalStorageClient) and storage.client.folder.is_dir()
        ]
        folder = await threads.run(partial(_make_scratch, folders[0] if folders else None))
        try:
            yield folder
        finally:
            with anyio.CancelScope(shield=True):
                await threads.run(partial(shutil.rmtree, folder, ignore_errors=True))


def _make_scratch(folder: Path | None) -> Path:
    for left in folder.glob(f"{_SCRATCH}*") if folder is not None else ():
        if time.time() - left.stat().st_mtime > _SCRATCH_AGE:
            shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=folder))


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
