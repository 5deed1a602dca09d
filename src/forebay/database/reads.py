"""What is read of chats: an id that no row can have is found nowhere, and what was written before is seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from forebay.database.sql.statement import Statement
from forebay.database.store import Store
from forebay.model import cleaning

Document = dict[str, Any]


class Reader(Protocol):
    """Runs reads, behind what its process has written."""

    async def settle(self, thread_id: str | None) -> None:
        """Return when what was written to this thread (None: to any) can be read. Raises TransientError."""

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


class Reads:
    """The documents of a store, read by `reader`. Each raises a DatabaseError when the database can't tell."""

    def __init__(self, store: Store, reader: Reader) -> None:
        self._store = store
        self._statements = store.statements
        self._reader = reader

    async def user(self, identifier: str) -> Document | None:
        """A user by login name."""
        found: Document | None = await self._reader.read(
            self._statements.user, identifier=cleaning.text(identifier)
        )
        return found

    async def thread(self, thread_id: str) -> Document | None:
        """A thread with its steps and elements."""
        if not self._store.valid_id(thread_id):
            return None
        await self._reader.settle(thread_id)
        found: Document | None = await self._reader.read(self._statements.thread, id=thread_id)
        return found

    async def author(self, thread_id: str) -> Document:
        """A thread's `userId` and `userIdentifier`; empty for a thread that is unknown."""
        if not self._store.valid_id(thread_id):
            return {}
        await self._reader.settle(thread_id)
        return await self._reader.read(self._statements.thread_author, id=thread_id) or {}

    async def page(self, page: Page) -> list[Document]:
        """Threads, newest activity first, which each has as its `activity`."""
        if not all(map(self._store.valid_id, (page.user_id, *([page.cursor] if page.cursor else ())))):
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
            user_id=page.user_id,
            cursor=page.cursor,
            position=page.position,
            first=page.first,
            value=page.feedback,
            needle=self._statements.needle(cleaning.text(page.search or "")),
        )
        return found

    async def step(self, step_id: str) -> Document | None:
        """A step with its feedback."""
        if not self._store.valid_id(step_id):
            return None
        await self._reader.settle(None)
        found: Document | None = await self._reader.read(self._statements.step, id=step_id)
        return found

    async def favorite_steps(self, user_id: str) -> list[Document]:
        """The steps of a user's threads that are favourites, newest first."""
        if not self._store.valid_id(user_id):
            return []
        await self._reader.settle(None)
        found: list[Document] = await self._reader.read(self._statements.favorite_steps, user_id=user_id)
        return found

    async def element(self, thread_id: str, element_id: str) -> Document | None:
        """An element of a thread."""
        if not (self._store.valid_id(thread_id) and self._store.valid_id(element_id)):
            return None
        await self._reader.settle(thread_id)
        found: Document | None = await self._reader.read(
            self._statements.element, id=element_id, thread_id=thread_id
        )
        return found
