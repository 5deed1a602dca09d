"""Signing and deleting, and storage clients that fail at it in their ways."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from chainlit.element import ElementDict
from typing_extensions import override

from forebay import TransientError
from forebay.attachments import blobs
from forebay.attachments.blobs import Blobs
from forebay.telemetry.counters import Counts
from tests.support.patience import patience
from tests.support.storage import MemoryStorage


def _element(**values: Any) -> ElementDict:
    return cast("ElementDict", {"id": "1", "objectKey": "key", "url": "stored", **values})


class _S3Like(MemoryStorage):
    """As Chainlit's S3 client, which says nothing when it fails."""

    @override
    async def get_read_url(self, object_key: str) -> str:
        return object_key

    @override
    async def delete_file(self, object_key: str) -> bool:
        return False


class _Stalling(MemoryStorage):
    @override
    async def get_read_url(self, object_key: str) -> str:
        if object_key == "stalls":
            await asyncio.Event().wait()
        return await super().get_read_url(object_key)


async def test_a_key_in_place_of_a_url_is_none() -> None:
    element = _element()
    await Blobs(_S3Like(), Counts()).sign([element])
    assert element.get("url") == "stored"


async def test_one_that_stalls_does_not_cost_the_others(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(blobs, "_SIGN_TIMEOUT", 0.05)
    elements = [_element(objectKey="stalls"), _element(), _element(objectKey=None)]
    async with patience():
        await Blobs(_Stalling(), Counts()).sign(elements)
    assert [element.get("url") for element in elements] == ["stored", "signed://key?1", "stored"]
    assert "element urls not refreshed reason=TimeoutError" in caplog.text


async def test_what_is_never_deleted_is_counted_after_some_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blobs, "_FIRST_PAUSE", 0.001)
    monkeypatch.setattr(blobs, "_LONGEST_PAUSE", 0.001)
    counts = Counts()
    sut = Blobs(_S3Like(), counts)
    tries = 0

    async def delete() -> bool:
        nonlocal tries
        tries += 1
        if tries == 2:
            raise TransientError("an outage")
        return await sut.delete(["key"]) == ["key"]

    await sut.surely("key", delete)
    await sut.surely("key", delete)  # it is tried on already
    async with patience():
        while not counts.blob_delete_failures:  # noqa: ASYNC110 - nobody waits for what is deleted later
            await asyncio.sleep(0.005)
    await sut.close()
    assert (tries, counts.blob_delete_failures) == (2 + blobs._TRIES_LATER, 1)
