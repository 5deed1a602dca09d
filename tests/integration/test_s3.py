"""Chainlit's own S3 client, against a server that speaks S3."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import aiohttp
import boto3
import pytest
from chainlit.data.storage_clients.s3 import S3StorageClient
from chainlit.element import File
from moto.server import ThreadedMotoServer

from forebay import ForebayDataLayer
from forebay.attachments import providers
from tests.integration.conftest import MakeLayer
from tests.integration.contract import a_thread, new_id, stored_elements
from tests.integration.test_uploads import until

_BUCKET = "attachments"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A bucket, named in Chainlit's variables. `moto_server`'s S3 on a free port."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "BUCKET_NAME": _BUCKET,
        "APP_AWS_REGION": "us-east-1",
        "APP_AWS_ACCESS_KEY": "key",
        "APP_AWS_SECRET_KEY": "secret",
        "DEV_AWS_ENDPOINT": f"http://{host}:{port}",
    }.items():
        monkeypatch.setenv(name, value)
    names = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=os.environ["DEV_AWS_ENDPOINT"], **names)
    client.create_bucket(Bucket=_BUCKET)
    yield client
    client.close()
    urlopen(
        Request(f"http://{host}:{port}/moto-api/reset", method="POST")
    ).close()  # it is all in this process
    server.stop()


def _keys(bucket: Any) -> list[str]:
    return [entry["Key"] for entry in bucket.list_objects_v2(Bucket=_BUCKET).get("Contents", ())]


@pytest.fixture
def on_s3(make_layer: MakeLayer, bucket: Any, emptied_url: str) -> ForebayDataLayer:
    """A layer that finds the bucket by itself."""
    layer = make_layer(emptied_url, storage_provider=None)
    assert isinstance(layer.storage_provider, S3StorageClient)
    return layer


async def test_content_goes_there_and_back_and_is_deleted(
    on_s3: ForebayDataLayer, bucket: Any, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(range(256)) * 10_000)
    element = File(
        thread_id=await a_thread(on_s3),
        name="ä ☂.bin",
        path=str(file),
        for_id=new_id(),
        mime="application/x-thing",
    )
    await on_s3.create_element(element)
    (stored,) = await stored_elements(on_s3, element.thread_id)
    assert _keys(bucket) == [stored["objectKey"]]
    async with aiohttp.ClientSession() as http, http.get(str(stored["url"])) as response:
        assert (response.status, response.content_type) == (200, "application/x-thing")
        assert await response.read() == file.read_bytes()
    await on_s3.delete_thread(element.thread_id)
    assert _keys(bucket) == []


async def test_a_bucket_that_is_made_later_gets_what_was_attached_before(
    on_s3: ForebayDataLayer, bucket: Any
) -> None:
    bucket.delete_bucket(Bucket=_BUCKET)
    element = File(thread_id=await a_thread(on_s3), name="f", content=b"content", for_id=new_id())
    await on_s3.create_element(element)  # Chainlit's client logs the error and says nothing
    assert await stored_elements(on_s3, element.thread_id) == []
    bucket.create_bucket(Bucket=_BUCKET)
    await until(lambda: on_s3._engine.counts.uploads_pending == 0)
    (stored,) = await stored_elements(on_s3, element.thread_id)
    assert _keys(bucket) == [stored["objectKey"]]


def test_a_file_is_streamed_to_it(bucket: Any) -> None:
    assert providers.takes_files(S3StorageClient(_BUCKET, region_name="us-east-1"))
