"""What the data layer asks of elements' contents, whether there is a storage or none."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Protocol

from chainlit.data.storage_clients.base import BaseStorageClient
from chainlit.element import Element, ElementDict
from typing_extensions import override

from forebay.attachments.access import access
from forebay.attachments.blobs import Blobs
from forebay.attachments.collector import Collector, Database
from forebay.attachments.content import Content
from forebay.attachments.folder import LocalStorageClient
from forebay.attachments.job import Job
from forebay.attachments.orphans import mark_of
from forebay.attachments.providers import configured_storage, former_storage
from forebay.attachments.uploads import Uploads
from forebay.database.store import Store
from forebay.model.changes import Upsert, moment_of
from forebay.primitives.awaitables import NOTHING, Deferred
from forebay.settings import Settings
from forebay.telemetry.collector import Metrics
from forebay.telemetry.counters import Counts


class Write(Protocol):
    """Writes rows of elements, in their order among all that the process writes."""

    async def __call__(self, change: Upsert) -> bool:
        """Queue an element's row; False where its thread is deleted. Raises a ForebayError."""


class Attachments:
    """Elements' contents where there is no storage: an element is its row. `StoredAttachments` are the others."""

    client: BaseStorageClient | None = None

    def start(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        """Go on in this loop, by default the one that runs, with what processes before this one have left."""

    def drain(self, timeout: float) -> Awaitable[None]:
        """Return when every upload has been tried once, or after `timeout` seconds."""
        return NOTHING

    def close(self) -> Awaitable[None]:
        """Stop, and disconnect; what is not stored stays on the disk for the next process."""
        return NOTHING

    def note(self, element: Element, element_id: str) -> Content | None:
        """Where an element's content is, before the element can change; None where it will not be stored."""
        return None

    def store(
        self, content: Content, change: Upsert, owner: Callable[[], Awaitable[str | None]]
    ) -> Awaitable[None]:
        """Begin to store what was noted under its `owner`, then its row, which is `change`. See `Uploads.store`."""
        return NOTHING

    @property
    def steps(self) -> frozenset[str]:
        """The steps of the elements whose contents are on their way."""
        return frozenset()

    def drop(
        self, *, element_id: str | None = None, thread_id: str | None = None, steps: Iterable[str] = ()
    ) -> list[Job]:
        """These elements' uploads wait for a delete, which `follow` gets: they are to leave neither row nor content."""
        return []

    def follow(self, dropped: list[Job], delete: Awaitable[None]) -> Awaitable[None]:
        """Carry out the delete, whoever waits for it; uploads whose delete the database refuses go on."""
        return delete

    def collect(self) -> Awaitable[None]:
        """Delete the contents whose elements are gone; what can't be deleted soon is tried in the background."""
        return NOTHING

    def settle(self, thread_id: str | None) -> Awaitable[None]:
        """Return when the thread's uploads (None: all) were tried once, or after a few seconds."""
        return NOTHING

    def sign(self, elements: Sequence[ElementDict]) -> Awaitable[None]:
        """Give each stored element a fresh URL, in place; the stored one stays where that fails or takes too long."""
        return NOTHING


class StoredAttachments(Attachments):
    """Elements' contents in a storage: that of `client`, and what is left in a former one."""

    def __init__(
        self,
        client: BaseStorageClient,
        settings: Settings,
        store: Store,
        write: Write,
        database: Database,
        counts: Counts,
        metrics: Metrics,
    ) -> None:
        self.client = client
        self._store = store
        self._blobs = Blobs(client, counts, former_storage(settings, client))
        # The folder says whose contents are in it, for `forebay blobs`.
        mark = self._mark if isinstance(client, LocalStorageClient) and not store.in_memory else None
        self.uploads = Uploads(
            client, self._blobs, settings, counts, metrics, _Rows(store, write, database), mark
        )
        self._collector = Collector(database, store.statements, self._blobs, self.uploads)
        self.uploads.sweep = self._collector.sweep

    @override
    def start(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        """As there."""
        self.uploads.start(loop)

    @override
    def drain(self, timeout: float) -> Awaitable[None]:
        """As there."""
        return self.uploads.drain(timeout)

    @override
    async def close(self) -> None:
        """As there."""
        await self.uploads.close()
        await self._blobs.close()

    @override
    def note(self, element: Element, element_id: str) -> Content | None:
        """As there."""
        return Content.of(element, element_id)

    @override
    def store(
        self, content: Content, change: Upsert, owner: Callable[[], Awaitable[str | None]]
    ) -> Awaitable[None]:
        """As there."""
        return self.uploads.store(content, change, owner)

    @property
    @override
    def steps(self) -> frozenset[str]:
        """As there."""
        return self.uploads.steps

    @override
    def drop(
        self, *, element_id: str | None = None, thread_id: str | None = None, steps: Iterable[str] = ()
    ) -> list[Job]:
        """As there."""
        return self.uploads.drop(element_id=element_id, thread_id=thread_id, steps=steps)

    @override
    def follow(self, dropped: list[Job], delete: Awaitable[None]) -> Awaitable[None]:
        """As there."""
        return Deferred(partial(asyncio.shield, self.uploads.follow(dropped, delete))) if dropped else delete

    @override
    def collect(self) -> Awaitable[None]:
        """As there."""
        return self._collector.collect()

    @override
    def settle(self, thread_id: str | None) -> Awaitable[None]:
        """As there."""
        return self.uploads.settle(thread_id)

    @override
    def sign(self, elements: Sequence[ElementDict]) -> Awaitable[None]:
        """As there."""
        return self._blobs.sign(elements)

    async def _mark(self) -> None:
        assert self.client is not None
        await access(self.client).mark(mark_of(await self._store.own_id()))


class _Rows:
    """See `uploads.Rows`."""

    def __init__(self, store: Store, write: Write, database: Database) -> None:
        self._store = store
        self._database = database
        self.write = write

    async def write_late(self, change: Upsert) -> None:
        await self._store.apply([change], late=True, apart=True)

    async def is_outdated(self, change: Upsert) -> bool:
        await self._database.settle(change.thread_id)
        found = await self._database.read(self._store.statements.content, id=change.key)
        if found is None or found["objectKey"] is None:
            return False
        known = (found["moments"] or {}).get("objectKey", found["written_at"])
        return bool(known >= moment_of(change))


def attachments_of(
    storage_provider: BaseStorageClient | None,
    settings: Settings,
    store: Store,
    write: Write,
    database: Database,
    counts: Counts,
    metrics: Metrics,
) -> Attachments:
    """In the storage that is given, or else configured. Raises SettingsError for one that can't be used."""
    client = storage_provider if storage_provider is not None else configured_storage(settings)
    if client is None:
        return Attachments()
    return StoredAttachments(client, settings, store, write, database, counts, metrics)
