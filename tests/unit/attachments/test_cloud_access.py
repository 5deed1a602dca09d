"""Google's and Azure's own clients, beside what forebay asks of a storage beyond Chainlit's methods."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from forebay.attachments.access import Access, access
from forebay.attachments.azure_storage import AzureStorageClient
from forebay.attachments.google_storage import GoogleStorageClient
from forebay.errors import StorageError
from tests.support.clouds import Azure, Cloud, Google, served

_ODD = "threads/a b/ü%?#&+'.txt"


@asynccontextmanager
async def _on_google(url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    from google.auth.credentials import AnonymousCredentials

    monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
    monkeypatch.setattr(
        "forebay.attachments.google_storage.default", lambda **_: (AnonymousCredentials(), "project")
    )
    client = GoogleStorageClient("bucket")
    yield client
    await client.close()


@asynccontextmanager
async def _on_azure(url: str, _monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    from azure.storage.blob.aio import BlobServiceClient

    key = base64.b64encode(b"key").decode()
    client: Any = AzureStorageClient("container", "account", key)
    await client.close()  # what it has made leads out of this machine
    client.service_client = BlobServiceClient(f"{url}/account", credential=key, retry_total=0)
    client.container_client = client.service_client.get_container_client("container")
    yield client
    await client.close()


@pytest.fixture(params=[(Google, _on_google), (Azure, _on_azure)], ids=["google", "azure"])
async def storage(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Access, Cloud]]:
    """A storage through its client, and what is really there."""
    kind, connect = request.param
    cloud = kind()
    async with served(cloud) as url, connect(url, monkeypatch) as client:
        yield access(client), cloud


async def test_what_is_stored_is_looked_at_and_read(storage: tuple[Access, Cloud], tmp_path: Path) -> None:
    there, cloud = storage
    file = tmp_path / "file"
    file.write_bytes(b"<b>content</b>")
    assert await there.look(_ODD) is None
    assert await there.add(_ODD, file, "text/html")
    held = await there.look(_ODD)
    assert held is not None
    assert (held.size, held.mime) == (14, "text/html")
    assert cloud.objects[_ODD].content == b"<b>content</b>"
    await there.read(_ODD, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"<b>content</b>"
    assert cloud.dispositions[_ODD].startswith("attachment"), "a browser must not show it"


async def test_what_is_there_already_stays(storage: tuple[Access, Cloud], tmp_path: Path) -> None:
    there, cloud = storage
    file = tmp_path / "file"
    file.write_bytes(b"mine")
    cloud.put("key", b"theirs", "text/plain", only_new=False)
    before = await there.look("key")
    assert not await there.add("key", file, "text/plain")
    assert cloud.objects["key"].content == b"theirs"
    assert await there.look("key") == before
    await there.client.upload_file("key", b"newer", "text/plain", True)
    after = await there.look("key")
    assert before is not None
    assert after is not None
    assert after.version != before.version


async def test_every_page_is_listed(storage: tuple[Access, Cloud]) -> None:
    there, cloud = storage
    keys = [f"threads/{number}" for number in range(5)]
    for key in (*keys, "elsewhere"):
        cloud.put(key, b"12345", "text/plain", only_new=True)
    found = [one async for one in there.listed("threads/")]
    assert [one.object_key for one in found] == keys
    assert {one.size for one in found} == {5}
    assert abs(found[0].modified - cloud.objects[keys[0]].at.timestamp()) < 1
    assert len([one async for one in there.listed()]) == 6


async def test_what_is_gone_is_no_failure_to_delete_it(storage: tuple[Access, Cloud]) -> None:
    there, cloud = storage
    cloud.put("key", b"content", "text/plain", only_new=True)
    assert await there.delete("key")
    assert cloud.objects == {}
    assert await there.delete("key")


async def test_marks_are_objects_of_their_own(storage: tuple[Access, Cloud]) -> None:
    there, _ = storage
    assert await there.marks() == set()
    for name in ("one", "two", "three"):
        await there.mark(name)
    assert await there.marks() == {"one", "two", "three"}
    await there.unmark(["two"])
    assert await there.marks() == {"one", "three"}


async def test_a_refusal_is_told_with_its_code(storage: tuple[Access, Cloud], tmp_path: Path) -> None:
    there, cloud = storage
    file = tmp_path / "file"
    file.write_bytes(b"content")
    cloud.refuses = 403
    refused = r"\((403|AuthorizationFailure)\)"
    with pytest.raises(StorageError, match=refused):
        await there.look("key")
    with pytest.raises(StorageError, match=refused):
        await there.read("key", tmp_path / "copy")
    with pytest.raises(StorageError, match=refused):
        await there.add("key", file, "text/plain")
    with pytest.raises(StorageError, match=refused):
        [one async for one in there.listed()]
    with pytest.raises(StorageError):
        await there.delete("key")


async def test_what_is_not_there_can_not_be_read(storage: tuple[Access, Cloud], tmp_path: Path) -> None:
    there, _ = storage
    with pytest.raises(StorageError):
        await there.read("key", tmp_path / "copy")


async def test_a_rows_url_is_that_of_an_upload(storage: tuple[Access, Cloud]) -> None:
    there, _ = storage
    stored: Any = await there.client.upload_file("key", b"content", "text/plain", True)
    url = await there.stored_url("key")
    assert url is not None
    assert url.split("?")[0] == stored["url"].split("?")[0]
    assert there.place == access(there.client).place
