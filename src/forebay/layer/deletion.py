"""Deleting a person: their chats, contents and row, what this folder has of them, and what still comes for them.

First they are noted as deleted, which holds back all that comes for them from then on, and their login name is
taken from the row. So a deletion that was ended, or a storage that fails, is gone on with by the next run, which
finds what is noted and there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import orjson

from forebay.attachments import Attachments
from forebay.attachments.spool import threads_in_spool
from forebay.database import error_codes
from forebay.database.person import Person
from forebay.database.store import Store
from forebay.errors import DatabaseError, DeletionIncomplete
from forebay.journal import search
from forebay.layer.purge import delete_all
from forebay.model.changes import Change, Claimant, Delete, Upsert
from forebay.model.schema import CLAIM, OWNER
from forebay.primitives import threads
from forebay.primitives.backoff import Backoff

logger = logging.getLogger("forebay")

_Answer = TypeVar("_Answer")

_LOOK = 2.0  # seconds between two looks at what is left
_TRIES = 50  # at a file, or rows, that others write all the time


def patience_for(journal_keep: float) -> float:
    """For how long running processes that keep journals so long may still hold something, in seconds."""
    return journal_keep * 4 / 3 + 60


@dataclass(frozen=True)
class Deleted:
    """What there was of a person: rows by table, dead letters, and files that are damaged, so that nobody can tell.

    `known`: whether there was such a person, or they were deleted before.
    """

    rows: dict[str, int]
    known: bool = True
    letters: int = 0
    damaged: list[Path] = field(default_factory=list)


class Others(Protocol):
    """What other processes have left in the folder."""

    async def adopt_all(self) -> None:
        """Return when it is written, as far as it can be."""


class Deletion:
    """Deletes one person, `identifier` being their login name.

    `delete`: deletes one thread; `folder`: of the journals; `patience`: for how long what running processes still
    hold is waited for, in seconds.
    """

    def __init__(
        self,
        identifier: str,
        store: Store,
        delete: Callable[[str], Awaitable[None]],
        attachments: Attachments,
        others: Others,
        folder: Path,
        patience: float,
    ) -> None:
        self._identifier = identifier
        self._store = store
        self._delete = delete
        self._attachments = attachments
        self._others = others
        self._folder = folder
        self._patience = patience
        self._ids: list[str] = []
        self._letters = 0

    async def look(self) -> Deleted:
        """What there is. Raises a DatabaseError."""
        await self._store.prepare()
        rows = await Person(self._identifier).count(self._store)
        names = orjson.dumps([self._store.name_id(self._identifier)]).decode()
        noted = await self._store.read(self._store.statements.noted_users, user_ids=names)
        return Deleted(rows, known=bool(noted) or any(rows.values()))

    async def carry_out(self, progress: Callable[[int], None] | None = None) -> Deleted:
        """Delete it. Raises DeletionIncomplete where something is left, or a DatabaseError; it may be repeated."""
        found = await self.look()
        if not found.known:
            return found
        self._ids = await _surely(partial(self._store.bury_user, self._identifier))
        person = Person(self._identifier, self._ids)
        await delete_all(self._store, self._delete, person, progress=progress)
        for user_id in self._ids:
            await _surely(partial(self._store.apply, [Delete("users", user_id)], apart=True))
        damaged = await self._clear_up()
        logger.info("user deleted threads=%d letters=%d", found.rows["threads"], self._letters)
        return Deleted(found.rows, found.known, self._letters, damaged)

    async def _clear_up(self) -> list[Path]:
        """Wait until nothing is left of what was deleted up to now. Raises DeletionIncomplete."""
        up_to = int(await self._store.read(self._store.statements.clock))
        loop = asyncio.get_running_loop()
        until = loop.time() + self._patience
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(_LOOK, until - loop.time())):
                    await self._others.adopt_all()
            await self._attachments.collect()
            await self._discard_letters(up_to)
            left = await self._left(up_to)
            if not left:
                return await threads.run(partial(search.damaged_in, self._folder))
            if loop.time() >= until:
                raise DeletionIncomplete(
                    f"the rows are deleted, and nothing new comes, but there {_listed(left)}; run it again"
                )
            await asyncio.sleep(_LOOK)

    async def _left(self, up_to: int) -> list[str]:
        left = []
        if contents := await self._store.read(self._store.statements.garbage_left, up_to=up_to):
            left.append(f"are contents that the storage has not deleted: {contents}")
        journals = await threads.run(
            partial(search.threads_in_journals, self._folder, self._store.label, self._store.database_id)
        )
        if holding := [path for path, found in journals.items() if await self._dead(found, up_to)]:
            left.append(f"are journals, of running processes or parked, that hold something: {len(holding)}")
        if await self._dead(await threads.run(partial(threads_in_spool, self._folder)), up_to):
            left.append("is content that a process is about to upload")
        return left

    async def _discard_letters(self, up_to: int) -> None:
        """Those of deleted chats: who retries them would only have them left out."""
        of_database = (self._store.label, self._store.database_id)
        letters = await threads.run(partial(search.letters_for, self._folder, *of_database))
        dead = await self._dead({search.thread_of(letter.change) for letter in letters}, up_to)

        def is_meant(change: Change) -> bool:
            return search.thread_of(change) in dead or self._names_them(change)

        self._letters += await threads.run(partial(search.discard, self._folder, letters, is_meant))

    def _names_them(self, change: Change) -> bool:
        if not isinstance(change, Upsert):
            return False
        named = (change.row[name] for name in (CLAIM, OWNER) if name in change.row)
        is_named = any(Claimant.decode(one).identifier == self._identifier for one in named)
        return is_named or change.row.get("userId") in self._ids

    async def _dead(self, thread_ids: set[str], up_to: int) -> set[str]:
        ids = sorted(key for key in thread_ids if self._store.ids.spell(key))
        if not ids:
            return set()
        asked = {"thread_ids": orjson.dumps(ids).decode(), "up_to": up_to}
        return set(await self._store.read(self._store.statements.deleted_threads, **asked))


def _listed(left: list[str]) -> str:
    return ", and ".join(left)


async def _surely(act: Callable[[], Awaitable[_Answer]]) -> _Answer:
    """Do what others may be in the way of for a moment. Raises a DatabaseError."""
    backoff = Backoff(base=0.01, cap=0.5)
    while True:
        try:
            return await act()
        except DatabaseError as error:
            if not error_codes.is_passing(error) or backoff.attempts >= _TRIES:
                raise
            await asyncio.sleep(backoff.next_delay())
