"""What is read of chats: an id that no row can have is found nowhere, and what was written before is seen."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import anyio

from forebay.database.sql.statement import Statement, steps_in_order
from forebay.database.store import Store
from forebay.model import cleaning
from forebay.settings import Settings

logger = logging.getLogger("forebay.reads")

# Each is in memory several times, as rows, as a document and as what is sent.
_LONG_ONES_AT_ONCE = 4
Document = dict[str, Any]


class Reader(Protocol):
    """Runs reads, behind what its process has written."""

    async def settle(self, thread_id: str | None) -> None:
        """Return when what was written to this thread (None: to any) can be read. Raises TransientError."""

    async def settle_step(self, step_id: str) -> None:
        """Return when what was written to any thread can be read, and this step. Raises TransientError."""

    async def read(self, statement: Statement, **parameters: Any) -> Any:
        """The statement's document. Raises a DatabaseError."""


@dataclass(frozen=True, slots=True)
class Page:
    """Which of a user's threads: at most `first` of those behind the thread `cursor`, which stood at `position`.

    `search` keeps those that contain it, `feedback` those with a step so rated.
    """

    user_id: str
    first: int
    cursor: str | None = None
    position: str | None = None
    search: str | None = None
    feedback: int | None = None
    with_steps: bool = False
    most_bytes: int | None = None  # None: as the settings say


class Reads:
    """The documents of a store, read by `reader`. Each raises a DatabaseError when the database can't tell."""

    def __init__(self, store: Store, reader: Reader, settings: Settings) -> None:
        self._spell = store.ids.spell
        self._statements = store.statements
        self._reader = reader
        self._most_bytes = settings.read_max_bytes
        self._most = {"most_rows": settings.read_max_rows, "most_bytes": settings.read_max_bytes}
        self._long_ones = anyio.Semaphore(_LONG_ONES_AT_ONCE)

    async def user(self, identifier: str) -> Document | None:
        """A user by login name."""
        found: Document | None = await self._reader.read(
            self._statements.user, identifier=cleaning.text(identifier)
        )
        return found

    async def thread(self, thread_id: str) -> Document | None:
        """A thread with its steps and elements: of a long one the newest, as many as the settings allow."""
        key = self._spell(thread_id)
        if key is None:
            return None
        await self._reader.settle(key)
        found: Document | None = await self._reader.read(self._statements.thread, id=key)
        extent = found.pop("extent") if found is not None else None
        return found if extent is None else await self._long_thread(key, extent)

    async def _long_thread(self, key: str, extent: Mapping[str, int]) -> Document | None:
        async with self._long_ones:
            found: Document | None = await self._reader.read(
                self._statements.long_thread, id=key, **self._most
            )
        if found is None:
            return None
        for kind, number in extent.items():
            if len(found[kind]) < number:
                logger.warning("thread read in part what=%s newest=%d of=%d", kind, len(found[kind]), number)
        return found

    async def author(self, thread_id: str) -> Document:
        """A thread's `userId` and `userIdentifier`; empty for a thread that is unknown."""
        key = self._spell(thread_id)
        if key is None:
            return {}
        await self._reader.settle(key)
        return await self._reader.read(self._statements.thread_author, id=key) or {}

    async def page(self, page: Page) -> list[Document]:
        """Threads, newest activity first, which each has as its `activity`, and whether it is `followed` by another.

        Fewer than `first`, where they are large.
        """
        user_id, cursor = self._spell(page.user_id), self._spell(page.cursor or "")
        if user_id is None or (page.cursor and cursor is None):
            return []
        await self._reader.settle(None)
        statement = self._statements.page(
            after=bool(page.cursor),
            search=bool(page.search),
            feedback=page.feedback is not None,
            with_steps=page.with_steps,
        )
        found: list[Document] = await self._reader.read(
            statement,
            user_id=user_id,
            cursor=cursor,
            position=page.position,
            first=page.first,
            **self._most | {"most_bytes": page.most_bytes or self._most_bytes},
            value=page.feedback,
            needle=self._statements.needle(cleaning.text(page.search or "")),
        )
        for thread in found if page.with_steps else ():
            thread["steps"] = steps_in_order(thread["steps"])
        return found

    async def step(self, step_id: str) -> Document | None:
        """A step with its feedback."""
        key = self._spell(step_id)
        if key is None:
            return None
        await self._reader.settle_step(key)
        found: Document | None = await self._reader.read(self._statements.step, id=key)
        return found

    async def steps_below(self, step_id: str) -> list[str]:
        """The ids of a step and of its descendants."""
        key = self._spell(step_id)
        if key is None:
            return []
        await self._reader.settle(None)
        found: list[str] = await self._reader.read(self._statements.steps_below, id=key)
        return found

    async def favorite_steps(self, user_id: str) -> list[Document]:
        """The newest steps of a user's threads that are favourites, newest first, as many as the settings allow."""
        key = self._spell(user_id)
        if key is None:
            return []
        await self._reader.settle(None)
        statement = self._statements.favorite_steps
        found: list[Document] = await self._reader.read(statement, user_id=key, **self._most)
        return found

    async def element(self, thread_id: str, element_id: str) -> Document | None:
        """An element of a thread."""
        thread_key, key = self._spell(thread_id), self._spell(element_id)
        if thread_key is None or key is None:
            return None
        await self._reader.settle(thread_key)
        found: Document | None = await self._reader.read(
            self._statements.element, id=key, thread_id=thread_key
        )
        return found
