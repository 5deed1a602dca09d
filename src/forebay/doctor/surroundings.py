"""What is around: the metrics' address, the storage of elements' content, the secret that signs logins."""

from __future__ import annotations

import os
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Protocol

import aiohttp
import anyio
import anyio.to_thread

from forebay.doctor.findings import Finding, error, note, ok, warning
from forebay.primitives.addresses import from_here, origin
from forebay.settings import Settings, parse_address

_TIMEOUT = 5.0
_STORAGE_TIMEOUT = 30.0
_FORMATS = ("text/plain; version=", "application/openmetrics-text")
_SECRET_LENGTH = 32  # bytes, which HMAC-SHA256 asks for
_CONTENT = b"forebay doctor was here, and should have removed this"


class Storage(Protocol):
    """What is tried of a Chainlit storage client."""

    async def upload_file(
        self, object_key: str, data: bytes | str, mime: str = ..., overwrite: bool = ...
    ) -> dict[str, Any]:
        """Store an object; its key and URL, or an empty dict where that failed."""

    async def get_read_url(self, object_key: str) -> str:
        """Where it can be read."""

    async def delete_file(self, object_key: str) -> bool:
        """Delete it; whether that was done."""


async def check_metrics(settings: Settings) -> AsyncIterator[Finding]:
    """Whether what answers at the metrics' address are metrics."""
    where = parse_address(settings.metrics_address)
    if where is None:
        yield note("metrics", "off", "set FOREBAY_METRICS_ADDRESS, or nobody sees when writes fall behind")
        return
    host, port = where
    if port == 0:
        yield note(
            "metrics", "on any free port, so that nobody knows where", "name a port for what is scraped"
        )
        return
    yield await _ask(f"{origin(from_here(host), port)}/metrics")


async def _ask(url: str) -> Finding:
    try:
        timeout = aiohttp.ClientTimeout(total=_TIMEOUT)
        async with aiohttp.ClientSession(timeout=timeout) as http, http.get(url) as response:
            kind, text = response.headers.get("Content-Type", ""), await response.text()
    except (aiohttp.ClientError, TimeoutError, UnicodeDecodeError):
        return note("metrics", f"nobody answers at {url}", "start the app, then look again")
    # The page of the chat has status 200 as well.
    if not kind.startswith(_FORMATS):
        return error(
            "metrics",
            f"{url} answers {kind or 'something without a type'}: that is another server's",
            "set FOREBAY_METRICS_ADDRESS to a port that nobody else listens on",
        )
    if "\nforebay_ready " not in text:
        return error("metrics", f"{url} has no metrics of forebay's", "look who listens on this port")
    ready = "\nforebay_ready 1.0" in text
    if not ready:
        return warning(
            "metrics", f"{url}: the process is not ready", url.replace("/metrics", "/readyz says why")
        )
    return ok("metrics", f"{url} answers {kind}")


def configured_client(settings: Settings) -> Any:
    """The storage client that the settings and Chainlit's variables name, or None. Raises SettingsError."""
    if "chainlit" in sys.modules or settings.storage == "none":
        return _configured(settings)
    # Chainlit writes into its root when it is imported, and looking should leave nothing behind.
    root = os.environ.get("CHAINLIT_APP_ROOT")
    with tempfile.TemporaryDirectory() as elsewhere:
        os.environ["CHAINLIT_APP_ROOT"] = elsewhere
        try:
            return _configured(settings)
        finally:
            del os.environ["CHAINLIT_APP_ROOT"]
            if root is not None:
                os.environ["CHAINLIT_APP_ROOT"] = root


def _configured(settings: Settings) -> Any:
    from forebay.attachments import configured_storage

    return configured_storage(settings)


async def check_storage(client: Storage | None) -> AsyncIterator[Finding]:
    """Store an object, ask for its URL, and delete it. None: elements' content is not kept."""
    if client is None:
        yield note("storage", "none: elements' content is not kept")
        return
    folder = getattr(client, "folder", None)
    if isinstance(folder, Path) and not await anyio.to_thread.run_sync(folder.exists):
        yield note("storage", f"{folder} is not there yet; the first upload makes it")
        return
    name, key = type(client).__name__, f"forebay-doctor/{uuid.uuid4()}"
    step = "store"
    try:
        with anyio.fail_after(_STORAGE_TIMEOUT):
            stored = await client.upload_file(object_key=key, data=_CONTENT, mime="text/plain")
            if not stored.get("object_key"):
                raise RuntimeError("nothing was stored")
            step = "sign a URL of"
            await client.get_read_url(object_key=key)
            step = "delete"
            if not await client.delete_file(object_key=key):
                raise RuntimeError("nothing was deleted")
    except Exception as failed:  # a storage client may raise whatever its service does
        yield error(
            "storage",
            f"{name} can't {step} an object ({type(failed).__name__})",
            "check the bucket's name, its region, the key, and the key's rights to put, get and delete",
        )
        return
    yield ok("storage", f"{name} stores, signs and deletes")


def check_secret() -> Iterator[Finding]:
    """Whether logins are signed with something that can't be guessed."""
    secret = os.environ.get("CHAINLIT_AUTH_SECRET", "")
    create = "chainlit create-secret, and the same value for every replica"
    if not secret:
        yield warning(
            "login secret",
            "CHAINLIT_AUTH_SECRET is not set: nobody can log in, and no history is kept",
            create,
        )
    elif len(secret.encode()) < _SECRET_LENGTH:
        yield warning("login secret", f"CHAINLIT_AUTH_SECRET is shorter than {_SECRET_LENGTH} bytes", create)
    else:
        yield ok("login secret", "CHAINLIT_AUTH_SECRET is set")
