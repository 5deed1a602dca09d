"""Deleting the contents that no element names any more, which the transaction that had it so has noted."""

from __future__ import annotations

import itertools
import logging
from typing import Any, Protocol

import anyio
import orjson

from forebay.attachments.blobs import Blobs
from forebay.attachments.uploads import Uploads
from forebay.database.sql.statement import Statement
from forebay.database.sql.statements import Statements
from forebay.errors import DatabaseError
from forebay.model import cleaning

logger = logging.getLogger("forebay.blobs")

_AT_ONCE = 1000
_PATIENCE = (
    10.0  # seconds that who has deleted something waits for a storage; it is tried on in the background
)

Row = dict[str, Any]


class Database(Protocol):
    """Runs statements, behind what its process has written."""

    async def settle(self, thread_id: str | None) -> None:
        """Return when what was written (None: to any thread) can be read. Raises TransientError."""

    async def read(self, statement: Statement, **parameters: Any) -> Any:
        """The statement's document. Raises a DatabaseError."""

    async def write_now(self, statement: Statement, **parameters: Any) -> Any:
        """Run a write that nothing queued depends on. Raises a DatabaseError."""


class Collector:
    """Deletes from the storage what `statements.garbage` finds, one round at a time, whoever asks for it.

    Those who ask while a round runs share the next one: a storage that stalls is asked once, not once for each.
    """

    def __init__(self, database: Database, statements: Statements, blobs: Blobs, uploads: Uploads) -> None:
        self._database = database
        self._statements = statements
        self._blobs = blobs
        self._uploads = uploads
        self._numbers = itertools.count(1)
        self._asked = self._done = 0
        self._succeeded = True
        self._turn = anyio.Lock()

    async def collect(self) -> None:
        """Delete what was noted before this call; what can't be deleted soon is tried again in the background."""
        with anyio.move_on_after(_PATIENCE):
            await self._blobs.surely("garbage", self._collect)
            return
        self._blobs.later("garbage", self._collect)

    async def sweep(self) -> None:
        """Delete whatever is noted: by who replaced a content, by an external writer, by a process that is gone."""
        try:
            await self._collect()
        except DatabaseError as error:  # it is noted still
            logger.info("garbage not collected reason=%s", type(error).__name__)

    async def _collect(self) -> bool:
        mine = self._asked = next(self._numbers)
        async with self._turn:
            if self._done < mine:
                asked = self._asked
                self._succeeded = await self._round()
                self._done = asked
            return self._succeeded

    async def _round(self) -> bool:
        """All that is noted, here or by another process. False: some could not be deleted."""
        after, all_of_it = "", True
        while rows := await self._page(after):
            after = rows[-1]["key_hash"]
            all_of_it = await self._delete(rows) and all_of_it
        return all_of_it

    async def _page(self, after: str) -> list[Row]:
        found = await self._database.read(self._statements.garbage, after=after, first=_AT_ONCE)
        return [orjson.loads(row) for row in found]

    async def _delete(self, rows: list[Row]) -> bool:
        keys = {row["object_key"] for row in rows}
        # An element that is made anew has the same key. What is on its way may be over before its row is looked for.
        on_their_way = self._uploads.among(keys)
        in_use = await self._in_use(keys)
        on_their_way |= self._uploads.among(keys)
        done = in_use.union(await self._blobs.delete(keys - in_use - on_their_way))
        if settled := [row for row in rows if row["object_key"] in done]:
            document = cleaning.json(settled).decode()
            await self._database.write_now(self._statements.forget_garbage, forebay_garbage=document)
        return len(settled) == len(rows)

    async def _in_use(self, keys: set[str]) -> set[str]:
        """Those that an element names, again or beside the one that was deleted."""
        await self._database.settle(None)
        given = cleaning.json(sorted(keys)).decode()
        return set(await self._database.read(self._statements.contents, object_keys=given))
