"""Every way in which a change comes into a database: both databases, each durability, and an external writer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forebay import ForebayDataLayer, Settings
from forebay.database.store import Store
from forebay.pipeline.drain import Drain
from forebay.telemetry.collector import Metrics
from tests.integration.contract import accounted_for
from tests.support.patience import patience
from tests.support.storage import MemoryStorage

WAYS = ("journal", "memory", "commit", "external")


@dataclass
class Way:
    """Makes layers on one database, which share what writes their journals out where that is another process's."""

    url: str
    name: str
    folder: Path
    storage: MemoryStorage = field(default_factory=MemoryStorage)
    made: list[ForebayDataLayer] = field(default_factory=list)

    def layer(self, kind: type[ForebayDataLayer] = ForebayDataLayer, **values: Any) -> ForebayDataLayer:
        """One more process's."""
        external = self.name == "external"
        named = {
            "durability": "journal" if external else self.name,
            "writer": "external" if external else "embedded",
            "journal_dir": self.folder,
            "close_timeout": 5,
        }
        layer = kind(self.url, storage_provider=self.storage, settings=Settings(**{**named, **values}))
        self.made.append(layer)
        return layer


@asynccontextmanager
async def opened(url: str, name: str, folder: Path) -> AsyncIterator[Way]:
    """The way, until its layers are closed with every change accounted for."""
    way = Way(url, name, folder)
    async with _written_out(way):
        yield way
        for layer in way.made:
            await layer.close()
            assert accounted_for(layer), repr(layer)


@asynccontextmanager
async def _written_out(way: Way) -> AsyncIterator[None]:
    """With an external writer, by a drain that watches the folder."""
    if way.name != "external":
        yield
        return
    way.folder.mkdir(exist_ok=True)
    settings = Settings(journal_dir=way.folder)
    store, stop = Store(way.url, settings), asyncio.Event()
    drain = Drain(way.folder, store, settings, Metrics(None))
    watching = asyncio.create_task(drain.run(stop))
    try:
        yield
    finally:
        stop.set()
        async with patience():
            await asyncio.wait([watching])
        await drain.close()
