"""Elements' content: read it, store it, sign its URL, delete it.

Storage is a Chainlit `BaseStorageClient`. What it fails at is logged and counted, and costs the content or a
fresh URL, never the element's row or the call.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

import aiofiles
import aiohttp
import anyio
from chainlit.data.storage_clients.base import BaseStorageClient
from chainlit.element import Element, ElementDict

from forebay.counts import Counts

logger = logging.getLogger("forebay.blobs")

_CONCURRENT_CALLS = 16
_CALL_TIMEOUT = 30.0
_DEFAULT_MIME = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class Content:
    """Where an element's content is, noted before the element can change."""

    element_id: str
    name: str
    mime: str | None
    path: str | None
    url: str | None
    content: bytes | str | None

    @classmethod
    def of(cls, element: Element) -> Content:
        """Note it."""
        return cls(element.id, element.name, element.mime, element.path, element.url, element.content)

    def object_key(self, user_id: str | None) -> str:
        """`{user}/{element}/{name}`, as Chainlit's SQLAlchemy layer names it."""
        return "/".join(filter(None, (user_id or "unknown", self.element_id, self.name)))

    async def read(self) -> bytes | str | None:
        """The content itself, or None where there is none to be had."""
        if self.path:
            async with aiofiles.open(self.path, "rb") as file:
                return await file.read()
        if self.url:
            return await _fetch(self.url)
        return self.content


async def _fetch(url: str) -> bytes | None:
    timeout = aiohttp.ClientTimeout(total=_CALL_TIMEOUT)
    async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url) as response:
        return await response.read() if response.ok else None


class Blobs:
    """The storage client's calls, bounded and guarded. Without a client there is nothing to do."""

    def __init__(self, client: BaseStorageClient | None, counts: Counts) -> None:
        self.client = client
        self._counts = counts

    async def store(
        self, content: Content, owner: Callable[[], Awaitable[str | None]]
    ) -> tuple[str, str | None] | None:
        """Store the content under its `owner`: its object key and URL, or None when it could not be stored."""
        if self.client is None:
            return None
        try:
            data = await content.read()  # at once: the file is removed when its session ends
            if data is None:
                raise FileNotFoundError("the element has no content")
            object_key = content.object_key(await owner())
            uploaded = await self.client.upload_file(
                object_key=object_key, data=data, mime=content.mime or _DEFAULT_MIME, overwrite=True
            )
            return uploaded["object_key"], uploaded.get("url")
        except Exception as error:  # a storage client may raise whatever its service does
            self._counts.upload_failures += 1
            logger.error("element content not stored reason=%s", type(error).__name__)
            return None

    async def sign(self, elements: Sequence[ElementDict]) -> None:
        """Give each stored element a fresh URL, in place; the stored one stays where that fails."""
        stored = [element for element in elements if element.get("objectKey")]
        if self.client is None or not stored:
            return
        limit = anyio.CapacityLimiter(_CONCURRENT_CALLS)
        async with anyio.create_task_group() as tasks:
            for element in stored:
                tasks.start_soon(self._sign, self.client, element, limit)

    async def _sign(
        self, client: BaseStorageClient, element: ElementDict, limit: anyio.CapacityLimiter
    ) -> None:
        key = element["objectKey"]
        assert key is not None
        try:
            async with limit:
                with anyio.fail_after(_CALL_TIMEOUT):
                    element["url"] = await client.get_read_url(object_key=key)
        except Exception as error:
            logger.warning("element url not refreshed reason=%s", type(error).__name__)

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
                    await client.delete_file(object_key=key)
        except Exception as error:
            logger.error("element content not deleted reason=%s", type(error).__name__)
        else:
            deleted.append(key)

    async def close(self) -> None:
        """Close the client. Chainlit's S3 client raises TypeError here, which must not stop the closing."""
        if self.client is None:
            return
        try:
            await self.client.close()
        except Exception as error:
            logger.warning("storage client not closed reason=%s", type(error).__name__)
