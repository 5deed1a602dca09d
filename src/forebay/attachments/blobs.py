"""Elements' content in the storage: sign its URL, delete it. `uploads` brings it there.

Storage is a Chainlit `BaseStorageClient`. What it fails at is logged and counted, and costs a fresh URL or leaves
an object behind, never the call.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Sequence

import anyio
from chainlit.data.storage_clients.base import BaseStorageClient
from chainlit.element import ElementDict
from tenacity import (
    AsyncRetrying,
    RetryError,
    retry_if_exception_type,
    retry_if_not_result,
    stop_after_attempt,
    wait_random_exponential,
)

from forebay.attachments.access import Access, access
from forebay.errors import DatabaseError
from forebay.primitives.awaitables import NOTHING
from forebay.telemetry.counters import Counts

logger = logging.getLogger("forebay.blobs")

_CONCURRENT_CALLS = 16
_CALL_TIMEOUT = 30.0
_SIGN_TIMEOUT = 10.0  # for all elements of a read
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 60.0
_TRIES_LATER = 10
_MOST_LATER = 10_000
_MOST_MOVED = 100_000
_SIGNED_AT_ONCE = 100


class Blobs:
    """The storage client's calls other than uploads, bounded and guarded.

    With a `former` client, of the storage before, what is not in the new one is read there, and deletes go to both.
    """

    def __init__(
        self, client: BaseStorageClient, counts: Counts, former: BaseStorageClient | None = None
    ) -> None:
        self.client = client
        self._former = former
        self._counts = counts
        self._moved: OrderedDict[str, None] = OrderedDict()  # what is known to be in the new one
        self._later: dict[str, asyncio.Task[None]] = {}

    def sign(self, elements: Sequence[ElementDict]) -> Awaitable[None]:
        """Give each stored element a fresh URL, in place; the stored one stays where that fails or takes too long."""
        stored = [element for element in elements if element.get("objectKey")]
        return self._sign_all(stored) if stored else NOTHING

    async def _sign_all(self, stored: Sequence[ElementDict]) -> None:
        limit = anyio.CapacityLimiter(_CONCURRENT_CALLS)
        with anyio.move_on_after(_SIGN_TIMEOUT) as scope:
            # In parts: of thousands that are all computed, nothing else in the event loop would get a turn.
            for start in range(0, len(stored), _SIGNED_AT_ONCE):
                async with anyio.create_task_group() as tasks:
                    for element in stored[start : start + _SIGNED_AT_ONCE]:
                        tasks.start_soon(self._sign, element, limit)
        if scope.cancelled_caught:
            logger.warning("element urls not refreshed reason=TimeoutError")

    async def _sign(self, element: ElementDict, limit: anyio.CapacityLimiter) -> None:
        key, client = element["objectKey"], self.client
        assert key is not None
        try:
            async with limit:
                if self._former is not None and not await self._is_moved(key, client):
                    client = self._former
                url = await client.get_read_url(object_key=key)
        except Exception as error:
            logger.warning("element url not refreshed reason=%s", type(error).__name__)
            return
        if url and url != key:  # Chainlit's S3 client gives the key back where it fails
            element["url"] = url

    async def _is_moved(self, key: str, client: BaseStorageClient) -> bool:
        """Whether to read an object in the new storage, which is asked once for each that is there."""
        if key not in self._moved:
            if await access(client).look(key) is None:
                return False
            self._moved[key] = None
            if len(self._moved) > _MOST_MOVED:
                self._moved.popitem(last=False)
        return True

    async def delete(self, object_keys: Iterable[str]) -> list[str]:
        """Delete contents whose rows are gone; those that are deleted."""
        storages = [access(client) for client in (self.client, self._former) if client is not None]
        limit = anyio.CapacityLimiter(_CONCURRENT_CALLS)
        deleted: list[str] = []
        async with anyio.create_task_group() as tasks:
            for key in object_keys:
                tasks.start_soon(self._delete, storages, key, limit, deleted)
        return deleted

    async def _delete(
        self, storages: Sequence[Access], key: str, limit: anyio.CapacityLimiter, deleted: list[str]
    ) -> None:
        self._moved.pop(key, None)
        try:
            async with limit:
                with anyio.fail_after(_CALL_TIMEOUT):
                    # Chainlit's clients log what goes wrong, and give False.
                    if all([await storage.delete(key) for storage in storages]):
                        deleted.append(key)
                        return
            reason = "the storage client has not deleted it"
        except Exception as error:
            reason = type(error).__name__
        logger.warning("element content not deleted yet reason=%s", reason)

    async def stored(self, object_key: str) -> None:
        """A content was stored: what the former storage has under its key is another, or the same, and goes."""
        if self._former is None:
            return
        former = access(self._former)

        async def delete() -> bool:
            with anyio.fail_after(_CALL_TIMEOUT):
                return await former.delete(object_key)

        with contextlib.suppress(Exception):  # it is tried on
            if await delete():
                return
        self.later(f"former {object_key}", delete)

    async def surely(self, name: str, act: Callable[[], Awaitable[bool]]) -> None:
        """Do what may fail, and go on trying in the background until it says that it is done.

        Of one `name`, one is tried on at a time. What is given up in the end is counted.
        """
        if not await _succeeds(act):
            self.later(name, act)

    def later(self, name: str, act: Callable[[], Awaitable[bool]]) -> None:
        """Try what was tried once already, in the background, as `surely` does."""
        if name in self._later:
            return
        if len(self._later) >= _MOST_LATER:
            self._give_up()
            return
        # An empty context: the caller's would keep its Chainlit session alive.
        work = self._try_on(act)
        task = asyncio.get_running_loop().create_task(work, context=contextvars.Context())
        self._later[name] = task
        task.add_done_callback(lambda _: self._later.pop(name, None))

    def keep(self, name: str) -> None:
        """What was tried on must not be done any more."""
        if name in self._later:
            self._later[name].cancel()

    async def _try_on(self, act: Callable[[], Awaitable[bool]]) -> None:
        await asyncio.sleep(_FIRST_PAUSE)
        retrying = AsyncRetrying(
            wait=wait_random_exponential(_FIRST_PAUSE, _LONGEST_PAUSE),
            stop=stop_after_attempt(_TRIES_LATER),
            retry=retry_if_not_result(bool) | retry_if_exception_type(),
        )
        try:
            await retrying(act)
        except RetryError:
            self._give_up()

    def _give_up(self) -> None:
        self._counts.blob_delete_failures += 1
        logger.error("element content not deleted remedy=`forebay blobs orphans` finds it")

    async def stop(self) -> None:
        """Give up what is tried on."""
        tasks = [*self._later.values()]
        for task in tasks:
            task.cancel()
            self._give_up()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self) -> None:
        """Close the client. Chainlit's S3 client raises TypeError here, which must not stop the closing."""
        await self.stop()
        for client in (self.client, self._former):
            if client is None:
                continue
            try:
                await client.close()
            except Exception as error:
                logger.warning("storage client not closed reason=%s", type(error).__name__)


async def _succeeds(act: Callable[[], Awaitable[bool]]) -> bool:
    try:
        return await act()
    except DatabaseError as error:  # it may answer again when this is tried on
        logger.warning("element content not deleted yet reason=%s", type(error).__name__)
        return False
