"""Signed URLs, and how the files behind them are given to a browser."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from forebay import LocalStorageClient
from forebay.attachments.file_route import Signer, unsigned_url

_NOW = 1_000_000.0


def _signer(now: float = _NOW, secret: bytes = b"secret") -> Signer:
    return Signer(secret, clock=lambda: now)


def _parts(url: str) -> tuple[str, str, str]:
    query = httpx.URL(url).params
    return query["key"], query["expires"], query["signature"]


@given(st.text(st.characters(exclude_categories=[])), st.text(st.characters(exclude_categories=[])))
def test_a_url_is_of_its_key_alone(object_key: str, other: str) -> None:
    parts = _parts(_signer().url(object_key, 60))
    assert _signer().check(*parts) == object_key
    if other != object_key:
        key, *_ = _parts(_signer().url(other, 60))
        assert _signer().check(key, parts[1], parts[2]) is None


@pytest.mark.parametrize("place", ["key", "expires", "signature"])
def test_a_changed_url_is_refused(place: str) -> None:
    parts = dict(
        zip(("key", "expires", "signature"), _parts(_signer().url("user/element/name", 60)), strict=True)
    )
    genuine = parts[place]
    changed = {genuine[:at] + letter + genuine[at + 1 :] for at in range(len(genuine)) for letter in "0a_é"}
    for odd in {*changed, "", "9" * 5000, "-1", "nan", "\x00", "٣"} - {genuine}:
        assert _signer().check(**{**parts, place: odd}) is None


def test_a_url_expires() -> None:
    parts = _parts(_signer().url("key", 60))
    assert _signer(_NOW + 59).check(*parts) == "key"
    assert _signer(_NOW + 60).check(*parts) is None


def test_another_secret_signs_otherwise() -> None:
    assert _signer(secret=b"other").check(*_parts(_signer().url("key", 60))) is None


async def test_without_a_secret_a_key_is_made_once_and_kept_to_the_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CHAINLIT_AUTH_SECRET", raising=False)
    parts = _parts(await LocalStorageClient(tmp_path).get_read_url("key"))
    assert LocalStorageClient(tmp_path).signer().check(*parts) == "key"
    assert (tmp_path / "signing-key").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["signing-key"]
    monkeypatch.setenv("CHAINLIT_AUTH_SECRET", "another")
    assert LocalStorageClient(tmp_path).signer().check(*parts) is None


# ---- the route


@pytest.fixture
async def browser(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[httpx.AsyncClient]:
    """An app with a catch-all and compression, as Chainlit's has, that stands where Chainlit's would."""

    async def catch_all(_: object) -> PlainTextResponse:
        return PlainTextResponse("the page")

    app = Starlette(routes=[Route("/{path:path}", catch_all)])
    app.add_middleware(GZipMiddleware)
    server = SimpleNamespace(app=app, config=SimpleNamespace(run=SimpleNamespace(root_path="")))
    monkeypatch.setitem(sys.modules, "chainlit.server", server)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        yield client


_RISKY = (
    "text/html",
    "image/svg+xml",
    "text/xml",
    "application/xhtml+xml",
    "x/y",
    "TEXT/HTML",
)
_HARMLESS = ("image/png", "video/mp4", "audio/mpeg", "text/plain", "application/json", "application/pdf")


@pytest.mark.parametrize("mime", [*_RISKY, *_HARMLESS])
async def test_what_a_browser_would_run_is_saved_instead(
    browser: httpx.AsyncClient, tmp_path: Path, mime: str
) -> None:
    client = LocalStorageClient(tmp_path)
    await client.upload_file("user/element/file.html", b"<script>alert(1)</script>" * 100, mime)
    response = await browser.get(await client.get_read_url("user/element/file.html"))
    assert (response.status_code, response.content) == (200, b"<script>alert(1)</script>" * 100)
    disposition = "inline" if mime in _HARMLESS else "attachment"
    assert response.headers["content-disposition"] == f'{disposition}; filename="file.html"'
    assert response.headers["content-type"].partition(";")[0] == mime
    assert response.headers["x-content-type-options"] == "nosniff"
    assert ("sandbox" in response.headers.get("content-security-policy", "")) is (mime != "application/pdf")


@pytest.mark.parametrize("mime", ["text/javascript", "application/X-JavaScript; charset=utf-8", "text/css"])
async def test_no_page_of_the_app_takes_a_file_for_its_script(
    browser: httpx.AsyncClient, tmp_path: Path, mime: str
) -> None:
    client = LocalStorageClient(tmp_path)
    await client.upload_file("key", b"alert(1)", mime)
    response = await browser.get(await client.get_read_url("key"))
    assert response.headers["content-type"] == "application/octet-stream"
    assert response.headers["content-disposition"].startswith("attachment")


@pytest.mark.parametrize("mime", ["", "text", "a/b\r\nSet-Cookie: x=y", "text/html,x", "☂/☂", "a/b;c=d"])
async def test_a_type_that_is_none_is_not_passed_on(
    browser: httpx.AsyncClient, tmp_path: Path, mime: str
) -> None:
    client = LocalStorageClient(tmp_path)
    await client.upload_file("key", b"x", mime)
    response = await browser.get(await client.get_read_url("key"))
    assert response.headers["content-type"] == "application/octet-stream"
    assert "set-cookie" not in response.headers


@pytest.mark.parametrize("name", ["a\r\nb", 'a"b', "..", "☂.png", "\ud800", "", "a\x00b"])
async def test_a_name_of_any_kind_can_be_served(
    browser: httpx.AsyncClient, tmp_path: Path, name: str
) -> None:
    client = LocalStorageClient(tmp_path)
    await client.upload_file(f"user/element/{name}", b"x")
    response = await browser.get(await client.get_read_url(f"user/element/{name}"))
    assert (response.status_code, response.content) == (200, b"x")


async def test_a_part_of_a_file_can_be_asked_for(browser: httpx.AsyncClient, tmp_path: Path) -> None:
    client = LocalStorageClient(tmp_path)
    await client.upload_file("key", bytes(range(256)) * 100, "video/mp4")
    response = await browser.get(await client.get_read_url("key"), headers={"Range": "bytes=256-511"})
    assert (response.status_code, response.content) == (206, bytes(range(256)))


async def test_a_url_that_is_not_valid_opens_nothing(browser: httpx.AsyncClient, tmp_path: Path) -> None:
    client = LocalStorageClient(tmp_path)
    await client.upload_file("key", b"x")
    url = await client.get_read_url("key")
    assert (await browser.get(url)).status_code == 200
    for wrong in (
        url.partition("?")[0],
        url + "0",
        url.replace("key=", "key=A"),
        unsigned_url("key"),
    ):
        response = await browser.get(wrong)
        assert (response.status_code, response.content == b"x") == (403, False)
    assert (
        await browser.get(await LocalStorageClient(tmp_path, expires=-1).get_read_url("key"))
    ).status_code == 403
    assert (await browser.get(await client.get_read_url("other"))).status_code == 404
    await client.delete_file("key")
    assert (await browser.get(url)).status_code == 404


async def test_two_folders_are_served_side_by_side(browser: httpx.AsyncClient, tmp_path: Path) -> None:
    clients = [LocalStorageClient(tmp_path / name) for name in "ab"]
    for number, client in enumerate(clients):
        await client.upload_file(f"key{number}", b"%d" % number)
    urls = [await client.get_read_url(f"key{number}") for number, client in enumerate(clients)]
    assert [(await browser.get(url)).content for url in urls] == [b"0", b"1"]


async def test_an_app_that_is_loaded_again_has_one_route(browser: httpx.AsyncClient, tmp_path: Path) -> None:
    client = [LocalStorageClient(tmp_path) for _ in range(3)][-1]
    app = sys.modules["chainlit.server"].app
    assert len(app.router.routes) == 2
    await client.upload_file("key", b"x")
    assert (await browser.get(await client.get_read_url("key"))).content == b"x"


async def test_urls_may_be_absolute(tmp_path: Path) -> None:
    client = LocalStorageClient(tmp_path, base_url="https://chat.example.org/")
    assert (await client.get_read_url("key")).startswith("https://chat.example.org/forebay/files/key?")


async def test_a_url_of_one_folder_opens_nothing_of_another_with_the_same_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHAINLIT_AUTH_SECRET", "shared by two apps")
    ours, theirs = (LocalStorageClient(tmp_path / name) for name in ("ours", "theirs"))
    parts = _parts(await ours.get_read_url("user/element/name"))
    assert ours.signer().check(*parts) == "user/element/name"
    assert theirs.signer().check(*parts) is None
    again = LocalStorageClient(tmp_path / "ours")  # another server on the same folder
    assert again.signer().check(*parts) == "user/element/name"
