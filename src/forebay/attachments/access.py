"""What a Chainlit storage client does not offer, and its storage does: to list, to look, to read, not to overwrite.

Told apart by what the clients hold: `LocalStorageClient`, boto3, Google's and Azure's clients. Others are read through
the URLs that they sign.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
from chainlit.data.storage_clients.base import BaseStorageClient
from typing_extensions import override

from forebay.attachments.file_route import to_be_saved
from forebay.attachments.folder import LocalStorageClient, link_or_copy
from forebay.errors import StorageError
from forebay.primitives import threads

MARKS = "forebay-databases/"  # where the keys of a bucket's marks begin, which are no element's
_CHUNK_BYTES = 1024 * 1024
_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)
_DEFAULT_MIME = "application/octet-stream"

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Listed:
    """An object in a storage. `modified` is in seconds since 1970."""

    object_key: str
    size: int
    modified: float


@dataclass(frozen=True, slots=True)
class Held:
    """An object that is there: its size in bytes, its type, and what changes when it is replaced."""

    size: int
    mime: str
    version: str


class Access:
    """A storage, through its client. Each raises StorageError for what the storage refuses."""

    def __init__(self, client: BaseStorageClient) -> None:
        self.client = client

    @override
    def __repr__(self) -> str:
        return f"<Access {type(self.client).__name__}>"

    @property
    def place(self) -> tuple[str, ...]:
        """Where it is: two clients with the same place have the same objects."""
        return (type(self.client).__name__, str(id(self.client)))

    async def stored_url(self, object_key: str) -> str | None:
        """What an element's row says of an object in it, as an upload answers it; None: not known."""
        del object_key
        return None

    async def delete(self, object_key: str) -> bool:
        """Delete it. True also where there is none, which Google's and Azure's clients tell as a failure."""
        return bool(await self.client.delete_file(object_key)) or await self.look(object_key) is None

    def listed(self, prefix: str = "") -> AsyncIterator[Listed]:
        """All objects whose keys begin with `prefix`. A folder's disk is waited for within the event loop."""
        del prefix
        name = type(self.client).__name__
        raise StorageError(f"what is in {name} can't be listed; use the storage's own tools")

    async def marks(self) -> set[str]:
        """The marks of the databases whose contents are in it."""
        return set()

    async def mark(self, name: str) -> None:
        """Add one."""

    async def unmark(self, names: Iterable[str]) -> None:
        """Take some away."""

    async def look(self, object_key: str) -> Held | None:
        """The object, or None where there is none."""
        async with _opened(await self.client.get_read_url(object_key)) as response:
            if response.status == 404:
                return None
            _check(response)
            return Held(
                int(response.headers.get("Content-Length", 0)),
                response.content_type,
                response.headers.get("ETag", ""),
            )

    async def read(self, object_key: str, into: Path) -> None:
        """Write the object into a new file."""
        async with _opened(await self.client.get_read_url(object_key)) as response:
            _check(response)
            with into.open("xb") as file:
                async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
                    await threads.run(partial(file.write, chunk))

    async def add(self, object_key: str, path: Path, mime: str) -> bool:
        """Store the file at `path` where there is no such object yet. False: there is one, which stays."""
        if await self.look(object_key) is not None:
            return False
        stored = await self.client.upload_file(object_key, await threads.run(path.read_bytes), mime, False)
        if not (stored or {}).get("object_key"):
            raise StorageError("the storage client has not stored it")
        return True


def access(client: BaseStorageClient) -> Access:
    """The access that fits the client."""
    if isinstance(client, LocalStorageClient):
        return _Folder(client)
    inner, bucket = getattr(client, "client", None), getattr(client, "bucket", None)
    if hasattr(inner, "get_paginator"):
        return _S3(client, inner, str(bucket))
    if hasattr(bucket, "list_blobs"):
        return _Google(client, bucket)
    container = getattr(client, "container_client", None)
    return _Azure(client, container) if hasattr(container, "list_blobs") else Access(client)


class _Folder(Access):
    def __init__(self, client: LocalStorageClient) -> None:
        super().__init__(client)
        self._folder = client

    @override
    async def listed(self, prefix: str = "") -> AsyncIterator[Listed]:
        for file in self._folder.stored():
            if file.object_key.startswith(prefix):
                yield Listed(file.object_key, file.size, file.modified)

    @override
    async def look(self, object_key: str) -> Held | None:
        found = await threads.run(partial(self._folder.find, object_key))
        return Held(found.size, found.mime, found.path.name) if found is not None else None

    @property
    @override
    def place(self) -> tuple[str, ...]:
        return ("folder", str(self._folder.folder.resolve()))

    @override
    async def stored_url(self, object_key: str) -> str | None:
        return self._folder.stored_url(object_key)

    @override
    async def read(self, object_key: str, into: Path) -> None:
        found = await threads.run(partial(self._folder.find, object_key))
        if found is None:
            raise StorageError("the object is gone")
        await threads.run(partial(link_or_copy, found.path, into))

    @override
    async def add(self, object_key: str, path: Path, mime: str) -> bool:
        return await self._folder.add_path(object_key, path, mime)

    @override
    async def marks(self) -> set[str]:
        return await threads.run(self._folder.marks)

    @override
    async def mark(self, name: str) -> None:
        await threads.run(partial(self._folder.mark, name))

    @override
    async def unmark(self, names: Iterable[str]) -> None:
        await threads.run(partial(self._folder.unmark, names))


class _Bucket(Access):
    """Marks are objects of their own."""

    @override
    async def marks(self) -> set[str]:
        return {one.object_key.removeprefix(MARKS) async for one in self.listed(MARKS)}

    @override
    async def mark(self, name: str) -> None:
        about = "Contents of the forebay database with this mark are in this storage.\n"
        stored = await self.client.upload_file(MARKS + name, about, "text/plain")
        if not (stored or {}).get("object_key"):
            raise StorageError("the storage can't be written to")

    @override
    async def unmark(self, names: Iterable[str]) -> None:
        for name in names:
            await self.client.delete_file(MARKS + name)


class _S3(_Bucket):
    def __init__(self, client: BaseStorageClient, inner: Any, bucket: str) -> None:
        super().__init__(client)
        self._inner, self._bucket = inner, bucket

    @override
    async def listed(self, prefix: str = "") -> AsyncIterator[Listed]:
        pages = self._inner.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix)
        async for page in _each(pages):
            for entry in page.get("Contents", ()):
                yield _listed(entry["Key"], entry["Size"], entry["LastModified"])

    @property
    @override
    def place(self) -> tuple[str, ...]:
        return ("s3", str(self._inner.meta.endpoint_url), self._bucket)

    @override
    async def stored_url(self, object_key: str) -> str | None:
        host = os.environ.get("DEV_AWS_ENDPOINT", "amazonaws.com")  # as Chainlit's client has it
        return f"https://{self._bucket}.s3.{host}/{object_key}"

    @override
    async def look(self, object_key: str) -> Held | None:
        head = partial(self._inner.head_object, Bucket=self._bucket, Key=object_key)
        found = await _asked(head, absent=("404", "NoSuchKey"))
        if found is None:
            return None
        return Held(
            found["ContentLength"],
            found.get("ContentType", _DEFAULT_MIME),
            str(found.get("ETag", "")),
        )

    @override
    async def read(self, object_key: str, into: Path) -> None:
        await _asked(lambda: self._inner.download_file(self._bucket, object_key, str(into)))

    @override
    async def add(self, object_key: str, path: Path, mime: str) -> bool:
        if await self.look(object_key) is not None:
            return False
        put = partial(
            self._inner.put_object,
            Bucket=self._bucket,
            Key=object_key,
            ContentType=mime,
        )
        if (saved := to_be_saved(object_key, mime)) is not None:
            put = partial(put, ContentDisposition=saved)

        def store() -> Any:
            with path.open("rb") as file:
                return put(Body=file, IfNoneMatch="*")

        return await _asked(store, absent=("PreconditionFailed", "412")) is not None


class _Google(_Bucket):
    def __init__(self, client: BaseStorageClient, bucket: Any) -> None:
        super().__init__(client)
        self._bucket = bucket

    @override
    async def listed(self, prefix: str = "") -> AsyncIterator[Listed]:
        async for blob in _each(self._bucket.list_blobs(prefix=prefix or None)):
            yield _listed(blob.name, blob.size, blob.updated)

    @property
    @override
    def place(self) -> tuple[str, ...]:
        return ("gcs", str(self._bucket.name))

    @override
    async def stored_url(self, object_key: str) -> str | None:
        return str(self._bucket.blob(object_key).public_url)

    @override
    async def look(self, object_key: str) -> Held | None:
        blob = await _asked(partial(self._bucket.get_blob, object_key))
        if blob is None:
            return None
        mime = blob.content_type or _DEFAULT_MIME
        return Held(blob.size, mime, str(blob.generation))

    @override
    async def read(self, object_key: str, into: Path) -> None:
        await _asked(lambda: self._bucket.blob(object_key).download_to_filename(str(into)))

    @override
    async def add(self, object_key: str, path: Path, mime: str) -> bool:
        blob = self._bucket.blob(object_key)
        blob.content_disposition = to_be_saved(object_key, mime)

        def store() -> bool:
            blob.upload_from_filename(str(path), content_type=mime, if_generation_match=0)
            return True

        return await _asked(store, absent=("412",)) is not None


class _Azure(_Bucket):
    def __init__(self, client: BaseStorageClient, container: Any) -> None:
        super().__init__(client)
        self._container = container

    @override
    async def listed(self, prefix: str = "") -> AsyncIterator[Listed]:
        try:
            async for blob in self._container.list_blobs(name_starts_with=prefix or None):
                yield _listed(blob.name, blob.size, blob.last_modified)
        except Exception as error:
            _refuse(error)

    @property
    @override
    def place(self) -> tuple[str, ...]:
        return ("azure", str(self._container.url))

    @override
    async def stored_url(self, object_key: str) -> str | None:
        return await self.client.get_read_url(object_key)

    @override
    async def look(self, object_key: str) -> Held | None:
        try:
            found = await self._container.get_blob_client(object_key).get_blob_properties()
        except Exception as error:
            _refuse(error, absent=("BlobNotFound", "404"))
            return None
        mime = found.content_settings.content_type or _DEFAULT_MIME
        return Held(found.size, mime, str(found.etag))

    @override
    async def read(self, object_key: str, into: Path) -> None:
        try:
            content = await self._container.get_blob_client(object_key).download_blob()
            with into.open("xb") as file:
                async for chunk in content.chunks():
                    await threads.run(partial(file.write, chunk))
        except Exception as error:
            _refuse(error)

    @override
    async def add(self, object_key: str, path: Path, mime: str) -> bool:
        from azure.storage.blob import ContentSettings

        settings = ContentSettings(content_type=mime, content_disposition=to_be_saved(object_key, mime))
        blob = self._container.get_blob_client(object_key)
        try:
            with path.open("rb") as file:
                await blob.upload_blob(file, overwrite=False, content_settings=settings)
        except Exception as error:
            _refuse(error, absent=("BlobAlreadyExists", "409"))
            return False
        return True


async def _each(pages: Iterable[_Result]) -> AsyncIterator[_Result]:
    """What an iterator yields that waits for the network."""
    iterator = iter(pages)
    while (found := await _asked(partial(next, iterator, None))) is not None:
        yield found


async def _asked(act: Callable[[], _Result], absent: tuple[str, ...] = ()) -> _Result | None:
    """What a client answers that waits for the network; None where its error is one of `absent`."""
    try:
        return await threads.run(act)
    except Exception as error:
        _refuse(error, absent)
        return None


def _refuse(error: Exception, absent: tuple[str, ...] = ()) -> None:
    """Raise StorageError unless the error says one of `absent`. The three clients say it each in its way."""
    answer = getattr(error, "response", None)
    said = answer.get("Error", {}).get("Code") if isinstance(answer, dict) else None
    codes = {said, getattr(error, "code", None), getattr(error, "error_code", None)}
    codes |= {getattr(error, "status_code", None)}
    if codes.isdisjoint({*absent, *(int(code) for code in absent if code.isdecimal())}):
        named = (getattr(code, "value", code) for code in codes if code)
        reason = next(map(str, named), type(error).__name__)
        raise StorageError(
            f"the storage refuses it ({reason}); look at the bucket's name and at its rights"
        ) from None


@asynccontextmanager
async def _opened(url: str) -> AsyncIterator[aiohttp.ClientResponse]:
    """What is at a signed URL."""
    try:
        async with aiohttp.ClientSession(timeout=_TIMEOUT) as session, session.get(url) as response:
            yield response
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise StorageError(f"the storage can't be read ({type(error).__name__})") from None


def _check(response: aiohttp.ClientResponse) -> None:
    if not response.ok:
        raise StorageError(f"the storage refuses to be read ({response.status})")


def _listed(object_key: str, size: int, modified: datetime) -> Listed:
    return Listed(object_key, size, modified.timestamp())
