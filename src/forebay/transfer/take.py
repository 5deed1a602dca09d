"""Writing an export: users, then each thread with what is in it, all as of one moment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from forebay.attachments.access import Access
from forebay.database.queries import Row
from forebay.database.snapshot import Chosen, snapshot
from forebay.database.store import Store
from forebay.errors import StorageError
from forebay.transfer.lines import Lines

Progress = Callable[[int, int], None]


@dataclass
class Taken:
    """What an export has: rows by kind, files, and the keys of contents that the storage does not give."""

    rows: dict[str, int]
    files: int = 0
    missing: list[str] = field(default_factory=list)


class Contents:
    """Elements' content, stored below `folder` under its object keys."""

    def __init__(self, access: Access, folder: Path) -> None:
        self._access = access
        self._folder = folder.resolve()

    async def take(self, object_key: str) -> bool:
        """Whether the storage has given it."""
        path = (self._folder / object_key).resolve()
        if not path.is_relative_to(self._folder):
            return False  # a key that another layer has made
        if path.exists():
            return True
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name[:200]}.part")
        part.unlink(missing_ok=True)
        try:
            await self._access.read(object_key, part)
        except (StorageError, OSError):
            part.unlink(missing_ok=True)
            return False
        part.rename(path)
        return True


async def take(
    store: Store, into: BinaryIO, chosen: Chosen, *, contents: Contents | None = None, progress: Progress
) -> Taken:
    """Write all that is chosen. `progress` gets the threads written, and how many there are. Raises a DatabaseError."""
    async with snapshot(store, chosen) as found:
        threads, written = await found.count(), 0
        lines = Lines(into)
        taken = Taken(lines.counts)
        async for user in found.users():
            lines.add("users", user)
        async for thread, inner in found.threads():
            lines.add("threads", thread)
            for table, rows in inner.items():
                for row in rows:
                    lines.add(table, row)
            if contents is not None:
                await _take_contents(contents, inner["elements"], taken)
            written += 1
            progress(written, threads)
        lines.end()
    return taken


async def _take_contents(contents: Contents, elements: list[Row], taken: Taken) -> None:
    for key in sorted({row["objectKey"] for row in elements if row["objectKey"]}):
        if await contents.take(key):
            taken.files += 1
        else:
            taken.missing.append(key)
