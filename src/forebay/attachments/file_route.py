"""Giving stored files to browsers: a route in the Chainlit app, at URLs that are signed and expire.

Whoever has the URL may read the one object that it names until it expires; nothing else is asked.
"""

from __future__ import annotations

import base64
import hmac
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route

from forebay.primitives import threads
from forebay.settings import ChainlitVariables

_PATH = "/forebay/files"
_STATE = "forebay_files"
_PURPOSE = b"forebay: URLs of stored files"  # so that a key for another purpose signs no URL
_MIME = re.compile(r"[\w.+-]+/[\w.+-]+(; ?charset=[\w-]+)?", re.ASCII)
_UNSAFE_IN_A_NAME = re.compile(r"[^\w.-]+")
_DEFAULT_MIME = "application/octet-stream"
# What a browser shows without running anything in it. Everything else is saved, not opened.
_SHOWN = re.compile(
    r"image/(png|jpeg|gif|webp|avif|bmp|x-icon)|audio/.*|video/.*|text/plain|application/(pdf|json)"
)
# A page of the app that names it as its script would run it, whatever the disposition: it is of the app's own origin.
_RUN = re.compile("(java|ecma|live|j)script|text/css|wasm", re.IGNORECASE)
# Chrome's PDF viewer does not start under this policy, and a PDF's scripts reach no page.
_POLICY = "default-src 'none'; img-src 'self'; media-src 'self'; style-src 'unsafe-inline'; sandbox"


@dataclass(frozen=True, slots=True)
class StoredFile:
    """An object in the folder. `modified` is its time, in seconds since 1970."""

    object_key: str
    mime: str
    path: Path
    size: int
    modified: float


class Signer:
    """Makes and checks URLs with a key that is derived from `secret` and the `folder`'s own. Times are in seconds.

    `root` is the path that the app is served at.
    """

    def __init__(
        self, secret: bytes, root: str = "", clock: Callable[[], float] = time.time, *, folder: bytes = b""
    ) -> None:
        self._key = hmac.digest(secret, _PURPOSE + folder, "sha256")
        self._root = root
        self._clock = clock

    def url(self, object_key: str, lifetime: float) -> str:
        """The same with a signature that holds for `lifetime`."""
        expires = str(int(self._clock() + lifetime))
        signature = self._signature(_encode(object_key), expires)
        return f"{unsigned_url(object_key, self._root)}&expires={expires}&signature={signature}"

    def check(self, key: str, expires: str, signature: str) -> str | None:
        """The object key that a URL's parameters are for; None if they are not genuine, or have expired."""
        expected = self._signature(key, expires)
        if not hmac.compare_digest(expected.encode(), signature.encode("utf-8", "replace")):
            return None
        return _decode(key) if int(expires) > self._clock() else None

    def _signature(self, key: str, expires: str) -> str:
        signed = f"{expires}\n{key}".encode("utf-8", "replace")
        return hmac.digest(self._key, signed, "sha256").hex()


def served_root() -> str:
    """The path that Chainlit's app is served at, as Chainlit itself takes it."""
    variables = ChainlitVariables()
    return variables.chainlit_parent_root_path + variables.chainlit_root_path


def unsigned_url(object_key: str, root: str = "") -> str:
    """An object's URL without a signature, from the server's root. It opens nothing."""
    # The key is a parameter, as a browser would take ".." out of a path; encoded, as it may hold anything.
    return f"{root.rstrip('/')}{_PATH}/{quote(_visible_name(object_key))}?key={_encode(object_key)}"


def _encode(object_key: str) -> str:
    return base64.urlsafe_b64encode(object_key.encode("utf-8", "surrogatepass")).decode().rstrip("=")


def _decode(key: str) -> str:
    return base64.urlsafe_b64decode(key + "=" * (-len(key) % 4)).decode("utf-8", "surrogatepass")


def _visible_name(object_key: str) -> str:
    """The end of the URL's path, from which players tell the kind of a file; nothing depends on it."""
    return _UNSAFE_IN_A_NAME.sub("_", object_key.rpartition("/")[2])[-100:].lstrip(".") or "file"


class Files(Protocol):
    """What is served."""

    def find(self, object_key: str) -> StoredFile | None:
        """The object, or None."""

    def signer(self) -> Signer:
        """What checks the URLs."""


class _Endpoint:
    """The route's handler, for the storage clients of this process, one for each folder."""

    def __init__(self) -> None:
        self.clients: dict[str, Files] = {}

    async def answer(self, request: Request) -> Response:
        query = request.query_params
        asked = (query.get("key", ""), query.get("expires", ""), query.get("signature", ""))
        known, found = await threads.run(lambda: self._look_up(*asked))
        if not known:
            return PlainTextResponse("This link is not valid, or has expired. Reload the page.", 403)
        return _file_response(found) if found is not None else PlainTextResponse("This file is gone.", 404)

    def _look_up(self, key: str, expires: str, signature: str) -> tuple[bool, StoredFile | None]:
        known = False
        for client in self.clients.values():
            object_key = client.signer().check(key, expires, signature)
            if object_key is None:
                continue
            known = True
            if (found := client.find(object_key)) is not None:
                return True, found
        return known, None


def publish(client: Any) -> None:
    """Serve a LocalStorageClient's files from the Chainlit app, if there is one in this process.

    A second client of the same folder takes the first one's place, as when the app is loaded again.
    """
    server = sys.modules.get("chainlit.server")
    app = getattr(server, "app", None)
    if server is None or app is None:
        return
    endpoint = getattr(app.state, _STATE, None)
    if endpoint is None:
        endpoint = _Endpoint()
        setattr(app.state, _STATE, endpoint)
        # In front of Chainlit's catch-all, below the path of `--root-path`; mounted, the parent takes the path off.
        root = server.config.run.root_path
        route = Route(f"{root}{_PATH}/{{name}}", endpoint.answer, methods=["GET"])
        app.router.routes.insert(0, route)
    endpoint.clients[str(client.folder.absolute())] = client


def _file_response(found: StoredFile) -> FileResponse:
    mime = found.mime if _MIME.fullmatch(found.mime) and not _RUN.search(found.mime) else _DEFAULT_MIME
    kind = _kind(mime)
    headers = {
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "private, no-cache",
        "Content-Encoding": "identity",  # Chainlit's middleware would compress it, piece by piece
    }
    if kind != "application/pdf":
        headers["Content-Security-Policy"] = _POLICY
    return FileResponse(
        found.path,
        headers=headers,
        media_type=mime,
        filename=found.object_key.rpartition("/")[2].encode("utf-8", "replace").decode(),
        content_disposition_type="inline" if is_shown(mime) else "attachment",
    )


def is_shown(mime: str) -> bool:
    """Whether a browser shows content of this type without running anything in it; else it is to be saved."""
    return _SHOWN.fullmatch(_kind(mime)) is not None


def to_be_saved(object_key: str, mime: str) -> str | None:
    """The disposition of an object in a bucket, which shows it in pages of its own origin; None where it is shown."""
    if is_shown(mime):
        return None
    return f"attachment; filename*=UTF-8''{quote(object_key.rpartition('/')[2], safe='')}"


def _kind(mime: str) -> str:
    return mime.partition(";")[0].strip().lower()
