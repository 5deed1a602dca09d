"""What an element's URL may lead to, and how much of it is taken."""

from __future__ import annotations

import asyncio
import gzip
import socket
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.resolver import DefaultResolver

from forebay import FetchError, Settings
from forebay.attachments import fetch
from tests.support.web import served

_ALLOWED = Settings(fetch_private=True, fetch_max_bytes=10_000, fetch_timeout=5)


async def test_content_and_its_type(tmp_path: Path) -> None:
    body = b"x" * 10_000
    async with served(page=web.Response(body=body, content_type="image/png")) as url:
        assert await fetch.fetch(f"{url}/page", tmp_path / "f", _ALLOWED) == fetch.Fetched(
            "image/png", 10_000
        )
    assert (tmp_path / "f").read_bytes() == body


@pytest.mark.parametrize("how", ["announced", "streamed", "compressed"])
async def test_more_than_the_limit_is_not_taken(tmp_path: Path, how: str) -> None:
    body = b"x" * 10_001

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(body[:5000])
        await response.write(body[5000:])
        return response

    headers = {"Content-Encoding": "gzip"}
    pages: dict[str, Any] = {
        "announced": web.Response(body=body),
        "streamed": stream,
        "compressed": web.Response(body=gzip.compress(body), headers=headers),
    }
    async with served(**pages) as url:
        with pytest.raises(FetchError, match="FOREBAY_FETCH_MAX_BYTES"):
            await fetch.fetch(f"{url}/{how}", tmp_path / "f", _ALLOWED)


async def test_a_server_that_stalls_is_left(tmp_path: Path) -> None:
    over = asyncio.Event()

    async def stall(_: web.Request) -> web.Response:
        await over.wait()
        return web.Response()

    async with served(stall=stall) as url:
        with pytest.raises(FetchError, match="FOREBAY_FETCH_TIMEOUT"):
            await fetch.fetch(f"{url}/stall", tmp_path / "f", Settings(fetch_private=True, fetch_timeout=0.1))
        over.set()


async def test_redirects_are_followed_a_few_times(tmp_path: Path) -> None:
    async def back(request: web.Request) -> web.Response:
        left = int(request.query["left"])
        if left:
            raise web.HTTPFound(f"/back?left={left - 1}")
        return web.Response(body=b"there")

    async with served(back=back) as url:
        await fetch.fetch(f"{url}/back?left=4", tmp_path / "f", _ALLOWED)
        assert (tmp_path / "f").read_bytes() == b"there"
        with pytest.raises(FetchError, match="redirects"):
            await fetch.fetch(f"{url}/back?left=9", tmp_path / "g", _ALLOWED)


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://example.org/x", "gopher://x/"])
async def test_a_redirect_to_another_scheme_is_not_followed(tmp_path: Path, target: str) -> None:
    async def away(_: web.Request) -> web.Response:
        raise web.HTTPFound(target)

    async with served(away=away) as url:
        with pytest.raises(FetchError):
            await fetch.fetch(f"{url}/away", tmp_path / "f", _ALLOWED)


@pytest.mark.parametrize("status", [404, 500, 204])
async def test_only_a_page_is_content(tmp_path: Path, status: int) -> None:
    async with served(page=web.Response(status=status)) as url:
        if status == 204:
            assert (await fetch.fetch(f"{url}/page", tmp_path / "f", _ALLOWED)).size == 0
        else:
            with pytest.raises(FetchError, match=str(status)):
                await fetch.fetch(f"{url}/page", tmp_path / "f", _ALLOWED)


@pytest.mark.parametrize(
    "url", ["http://", "http://[", "http://a b/", "http://x:99999/", "https://127.0.0.1:1/"]
)
async def test_what_is_no_url_or_does_not_answer_is_a_fetch_error(tmp_path: Path, url: str) -> None:
    with pytest.raises(FetchError):
        await fetch.fetch(url, tmp_path / "f", _ALLOWED)


def test_which_urls_are_fetched() -> None:
    assert fetch.can_fetch("HTTPS://example.org")
    assert not any(
        map(fetch.can_fetch, ("data:text/plain,x", "/public/x.png", "file:///etc/passwd", "", "httpx"))
    )


# ---- addresses


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0"])
async def test_this_machine_is_not_fetched_from(tmp_path: Path, host: str) -> None:
    asked = []

    async def page(_: web.Request) -> web.Response:
        asked.append(1)
        return web.Response(body=b"secret")

    async with served(page=page) as url:
        port = url.rpartition(":")[2]
        with pytest.raises(FetchError, match="FOREBAY_FETCH_PRIVATE"):
            await fetch.fetch(f"http://{host}:{port}/page", tmp_path / "f", Settings())
    assert asked == []


async def test_a_name_that_changes_its_address_is_looked_at_when_it_is_connected_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that a check would have found public, and whose next answer is this machine."""

    async def resolve(_: object, host: str, port: int = 0, family: int = 0) -> list[dict[str, Any]]:
        return [
            {
                "hostname": host,
                "host": "127.0.0.1",
                "port": port,
                "family": socket.AF_INET,
                "proto": 0,
                "flags": 0,
            }
        ]

    monkeypatch.setattr(DefaultResolver, "resolve", resolve)
    async with served(page=web.Response(body=b"secret")) as url:
        port = url.rpartition(":")[2]
        with pytest.raises(FetchError, match="FOREBAY_FETCH_PRIVATE"):
            await fetch.fetch(f"http://rebind.example:{port}/page", tmp_path / "f", Settings())


async def test_a_redirect_to_this_machine_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "is_public", lambda address: address == "127.0.0.1")

    async def away(_: web.Request) -> web.Response:
        raise web.HTTPFound("http://127.0.0.2:1/")

    async with served(away=away) as url:
        with pytest.raises(FetchError, match="FOREBAY_FETCH_PRIVATE"):
            await fetch.fetch(f"{url}/away", tmp_path / "f", Settings())


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0"),
        *("224.0.0.1", "255.255.255.255", "192.0.2.1", "::", "::1", "fe80::1%eth0", "fc00::1", "ff02::1"),
        *("::ffff:10.0.0.1", "2002:a00:1::", "64:ff9b::a00:1", "64:ff9b::7f00:1", "64:ff9b:1::a00:1"),
        *(
            "2001:0:808:808::f5ff:fffe",
            "2002:808:808::1",
            "::8.8.8.8",
            "fec0::1",
            "3fff::1",
            "5f00::1",
            "100::1",
        ),
        *("4000::1", "2001:db8::1", "2001:2::1", "2001:20::1", "64:ff9b::a83f:8110", "::ffff:168.63.129.16"),
        *("168.63.129.16", "192.0.0.192", "192.0.0.8", "192.88.99.1", "198.18.0.1", "240.0.0.1"),
    ],
)
def test_private_addresses(address: str) -> None:
    assert not fetch.is_public(address)


@pytest.mark.parametrize(
    "address",
    ["8.8.8.8", "168.63.129.17", "2606:4700::1", "2a00:1450::1", "64:ff9b::808:808", "::ffff:8.8.8.8"],
)
def test_public_addresses(address: str) -> None:
    assert fetch.is_public(address)
