"""Attachments on a file server of one's own, which takes PUT and DELETE from who has the key.

A browser reads a file at a URL that is signed with that key and expires, as the server must check.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import time
from typing import Any
from urllib.parse import quote

import aiohttp
import chainlit as cl
from chainlit.data.storage_clients.base import BaseStorageClient, storage_expiry_time

from forebay import ForebayDataLayer


class FileServer(BaseStorageClient):
    """A storage client as Chainlit wants it. An error is raised: forebay then tries again, and counts it."""

    def __init__(self, url: str, key: str) -> None:
        self._url = url.rstrip("/")
        self._key = key

    async def upload_file(
        self,
        object_key: str,
        data: bytes | str,
        mime: str = "application/octet-stream",
        overwrite: bool = True,
        content_disposition: str | None = None,
    ) -> dict[str, Any]:
        """Store a file; where it lies."""
        headers = {"Content-Type": mime}
        if content_disposition:
            headers["Content-Disposition"] = content_disposition
        if not overwrite:
            headers["If-None-Match"] = "*"
        await self._send("PUT", object_key, headers, data)
        return {"object_key": object_key, "url": self._address(object_key)}

    async def delete_file(self, object_key: str) -> bool:
        """Delete a file; whether it is gone."""
        await self._send("DELETE", object_key)
        return True

    async def get_read_url(self, object_key: str) -> str:
        """A URL that a browser can read the file at, for a while."""
        address, until = self._address(object_key), int(time.time()) + storage_expiry_time
        signature = hmac.new(self._key.encode(), f"{address} {until}".encode(), hashlib.sha256)
        return f"{address}?until={until}&signature={signature.hexdigest()}"

    async def close(self) -> None:
        """Nothing is open between two requests."""

    def _address(self, object_key: str) -> str:
        return f"{self._url}/{quote(object_key)}"

    async def _send(
        self, method: str, object_key: str, headers: dict[str, str] | None = None, data: bytes | str = b""
    ) -> None:
        headers = {**(headers or {}), "Authorization": f"Bearer {self._key}"}
        async with aiohttp.request(
            method, self._address(object_key), headers=headers, data=data, raise_for_status=True
        ):
            pass


@cl.data_layer
def data_layer() -> ForebayDataLayer:
    """A storage client that is passed comes before every other."""
    storage = FileServer(os.environ["FILE_SERVER_URL"], os.environ["FILE_SERVER_KEY"])
    return ForebayDataLayer.from_env(storage_provider=storage)


@cl.password_auth_callback
async def log_in(username: str, _password: str) -> cl.User | None:
    """Look the password up here."""
    return cl.User(identifier=username)


@cl.on_message
async def answer(message: cl.Message) -> None:
    """A file, which is stored, and read again when the chat is opened again."""
    file = cl.File(name="answer.txt", content=f"You said: {message.content}", mime="text/plain")
    await cl.Message("In the file.", elements=[file]).send()
