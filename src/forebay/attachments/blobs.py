"""Elements' content in the storage: sign its URL, delete it. `uploads` brings it there.

Storage is a Chainlit `BaseStorageClient`. What it fails at is logged and counted, and costs a fresh URL or leaves
an object behind, never the call.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
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

from forebay.errors import DatabaseError
from forebay.telemetry.counters import Counts

logger = logging.getLogger("forebay.blobs")

_CONCURRENT_CALLS = 16
_CALL_TIMEOUT = 30.0
_SIGN_TIMEOUT = 10.0  # for all elements of a read
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 60.0
_TRIES_LATER = 10
_MOST_LATER = 10_000


class Blobs:
    """The storage client's calls other than uploads, bounded and guarded. Without a client there is nothing to do."""

    def __init__(self, client: BaseStorageClient | None, counts: Counts) -> None:
        self.client = client
        self._counts = counts
        self._later: dict[str, asyncio.Task[None]] = {}

    async def sign(self, elements: Sequence[ElementDict]) -> None:
        """Give each stored element a fresh URL, in place; the stored one stays where that fails or takes too long."""
        stored = [element for element in elements if element.get("objectKey")]
        if self.client is None or not stored:
            return
        limit = anyio.CapacityLimiter(_CONCURRENT_CALLS)
        with anyio.move_on_after(_SIGN_TIMEOUT) as scope:
            async with anyio.create_task_group() as tasks:
                for element in stored:
                    tasks.start_soon(self._sign, self.client, element, limit)
        if scope.cancelled_caught:
            logger.warning("element urls not refreshed reason=TimeoutError")

    async def _sign(
        self, client: BaseStorageClient, element: ElementDict, limit: anyio.CapacityLimiter
    ) -> None:
        key = element["objectKey"]
        assert key is not None
        try:
            async with limit:
                url = await client.get_read_url(object_key=key)
        except Exception as error:
            logger.warning("element url not refreshed reason=%s", type(error).__name__)
            return
        if url and url != key:  # Chainlit's S3 client gives the key back where it fails
            element["url"] = url

    async def delete(self, object_keys: Iterable[str]) -> list[str]:
        """Delete contents whose rows are gone; those that are deleted."""
        if self.client is None:
            return []
        limit = anyio.CapacityLimiter(_CONCURRENT_CALLS)
        deleted: list[str] = []
        async with anyio.create_task_group() as tasks:
            for key in object_keys:
                tasks.start_soon(self._delete, self.client, key, limit, deleted)
        return deleted

    async def _delete(
        self, client: BaseStorageClient, key: str, limit: anyio.CapacityLimiter, deleted: list[str]
    ) -> None:
        try:
            async with limit:
                with anyio.fail_after(_CALL_TIMEOUT):
                    # Chainlit's clients log what goes wrong, and give False.
                    if await client.delete_file(object_key=key):
                        deleted.append(key)
                        return
            reason = "the storage client has not deleted it"
        except Exception as error:
            reason = type(error).__name__
        logger.warning("element content not deleted yet reason=%s", reason)

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
        if self.client is None:
            return
        try:
            await self.client.close()
        except Exception as error:
            logger.warning("storage client not closed reason=%s", type(error).__name__)


async def _succeeds(act: Callable[[], Awaitable[bool]]) -> bool:
    try:
        return await act()
    except DatabaseError as error:  # it may answer again when this is tried on
        logger.warning("element content not deleted yet reason=%s", type(error).__name__)
        return False
