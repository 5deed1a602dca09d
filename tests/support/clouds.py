"""Google's and Azure's storage as far as their own clients ask for it, in memory and on this machine."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any
from urllib.parse import unquote
from xml.sax.saxutils import escape

from aiohttp import web

from tests.support.web import running

_PAGE = 2  # objects a page, so that there are several


@dataclass
class _Object:
    content: bytes
    mime: str
    version: int
    at: datetime = field(default_factory=lambda: datetime.now(UTC))


class Cloud:
    """A bucket. `objects` by key; with `refuses` every request is answered so."""

    def __init__(self) -> None:
        self.objects: dict[str, _Object] = {}
        self.refuses: int | None = None
        self.dispositions: dict[str, str] = {}
        self._versions = itertools.count(1)

    def put(self, key: str, content: bytes, mime: str, *, only_new: bool) -> _Object | None:
        """Store an object; None where there is one that is to stay."""
        if only_new and key in self.objects:
            return None
        self.objects[key] = _Object(content, mime, next(self._versions))
        return self.objects[key]

    def page(self, prefix: str, after: str) -> tuple[list[str], str]:
        """The next keys, and what the next page begins behind."""
        keys = sorted(key for key in self.objects if key.startswith(prefix) and key > after)
        return keys[:_PAGE], keys[_PAGE - 1] if len(keys) > _PAGE else ""


# ---- Google: the JSON API


class Google(Cloud):
    """https://cloud.google.com/storage/docs/json_api"""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Any request."""
        if self.refuses is not None:
            return self._error(self.refuses)
        found = re.match(
            r"/(?:upload/|download/)?storage/v1/b/bucket/o(?:/([^/]+))?$", request.rel_url.raw_path
        )
        assert found is not None, request.rel_url
        if request.method == "POST":
            return await self._upload(request)
        if found[1] is None:
            return self._list(request)
        key = unquote(found[1])
        if key not in self.objects:
            return self._error(404)
        if request.method == "DELETE":
            del self.objects[key]
            return web.Response(status=204)
        if request.query.get("alt") == "media":
            return web.Response(body=self.objects[key].content)
        return web.json_response(self._about(key))

    async def _upload(self, request: web.Request) -> web.Response:
        boundary = request.headers["Content-Type"].split("boundary=")[1].strip('"').encode()
        _, about, content, _ = (await request.read()).split(b"--" + boundary)
        values = json.loads(about.split(b"\r\n\r\n", 1)[1])
        head, body = content.split(b"\r\n\r\n", 1)
        mime = re.search(rb"content-type: (\S+)", head, re.IGNORECASE)
        assert mime is not None
        only_new = request.query.get("ifGenerationMatch") == "0"
        if self.put(values["name"], body.removesuffix(b"\r\n"), mime[1].decode(), only_new=only_new) is None:
            return self._error(412)
        self.dispositions[values["name"]] = values.get("contentDisposition", "")
        return web.json_response(self._about(values["name"]))

    def _list(self, request: web.Request) -> web.Response:
        keys, following = self.page(request.query.get("prefix", ""), request.query.get("pageToken", ""))
        more = {"nextPageToken": following} if following else {}
        return web.json_response({"items": [self._about(key) for key in keys], **more})

    def _about(self, key: str) -> dict[str, Any]:
        one = self.objects[key]
        return {
            "name": key, "bucket": "bucket", "size": str(len(one.content)), "contentType": one.mime,
            "generation": str(one.version), "updated": one.at.isoformat().replace("+00:00", "Z"),
        }  # fmt: skip

    def _error(self, status: int) -> web.Response:
        return web.json_response({"error": {"code": status, "message": "no"}}, status=status)


# ---- Azure: the Blob service's REST API


class Azure(Cloud):
    """https://learn.microsoft.com/rest/api/storageservices/blob-service-rest-api"""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Any request."""
        if self.refuses is not None:
            return self._error(self.refuses, "AuthorizationFailure")
        if request.query.get("comp") == "list":
            return self._list(request)
        key = unquote(request.rel_url.raw_path.removeprefix("/account/container/"))
        if request.method == "PUT":
            return await self._upload(request, key)
        if key not in self.objects:
            return self._error(404, "BlobNotFound")
        if request.method == "DELETE":
            del self.objects[key]
            return web.Response(status=202)
        return self._content(key, ranged=request.method == "GET")

    async def _upload(self, request: web.Request, key: str) -> web.Response:
        only_new = request.headers.get("If-None-Match") == "*"
        mime = request.headers.get("x-ms-blob-content-type", "")
        if self.put(key, await request.read(), mime, only_new=only_new) is None:
            return self._error(409, "BlobAlreadyExists")
        self.dispositions[key] = request.headers.get("x-ms-blob-content-disposition", "")
        return web.Response(status=201, headers=self._headers(key))

    def _content(self, key: str, *, ranged: bool) -> web.Response:
        content = self.objects[key].content
        headers = {
            **self._headers(key), "Content-Type": self.objects[key].mime, "x-ms-blob-type": "BlockBlob",
            "Content-Range": f"bytes 0-{len(content) - 1}/{len(content)}",
        }  # fmt: skip
        return web.Response(status=206 if ranged and content else 200, body=content, headers=headers)

    def _headers(self, key: str) -> dict[str, str]:
        one = self.objects[key]
        return {"ETag": f'"{one.version}"', "Last-Modified": format_datetime(one.at, usegmt=True)}

    def _list(self, request: web.Request) -> web.Response:
        keys, following = self.page(request.query.get("prefix", ""), request.query.get("marker", ""))
        blobs = "".join(
            f"<Blob><Name>{escape(key)}</Name><Properties><Content-Length>{len(self.objects[key].content)}"
            f"</Content-Length><Last-Modified>{format_datetime(self.objects[key].at, usegmt=True)}</Last-Modified>"
            "<BlobType>BlockBlob</BlobType></Properties></Blob>"
            for key in keys
        )
        listed = f"<EnumerationResults><Blobs>{blobs}</Blobs><NextMarker>{following}</NextMarker></EnumerationResults>"
        return web.Response(text=listed, content_type="application/xml")

    def _error(self, status: int, code: str) -> web.Response:
        said = f"<Error><Code>{code}</Code><Message>no</Message></Error>"
        return web.Response(
            status=status, text=said, content_type="application/xml", headers={"x-ms-error-code": code}
        )


@asynccontextmanager
async def served(cloud: Google | Azure) -> AsyncIterator[str]:
    """Its URL, while it is there."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", cloud.answer)
    async with running(app) as url:
        yield url
