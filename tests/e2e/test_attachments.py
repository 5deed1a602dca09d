"""A file that is uploaded through the real Chainlit server is there after a reload, wherever Chainlit is served."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.chainlit_client import ChainlitClient
from tests.support.chainlit_server import ChainlitServer
from tests.support.patience import patience

_APPS = Path(__file__).parent / "apps"
_CONTENT = bytes(range(256)) * 1000
_PATHS = {"plain": "", "root path": "/chat", "mounted": "/chat"}


@pytest.fixture(params=_PATHS)
def server(
    request: pytest.FixtureRequest, migrated_sqlite_url: str, tmp_path: Path
) -> Iterator[ChainlitServer]:
    commands: dict[str, tuple[str, ...] | None] = {
        "plain": None,
        "root path": (
            *("-m", "chainlit", "run", str(_APPS / "race.py"), "--headless", "--port", "{port}"),
            *("--root-path", "/chat"),
        ),
        "mounted": (str(_APPS / "mounted.py"), "{port}"),
    }
    path = _PATHS[request.param]
    with ChainlitServer(
        _APPS / "race.py",
        tmp_path,
        {"TEST_DATABASE_URL": migrated_sqlite_url},
        commands[request.param],
        path=f"{path}/",
    ) as server:
        yield server


async def test_what_is_uploaded_is_there_after_a_reload_and_a_restart(server: ChainlitServer) -> None:
    path = server.mounted_at
    async with ChainlitClient(server.url, path=path) as client:
        file = await client.upload("päper ☂.bin", _CONTENT, "application/x-thing")
        await client.say("look at this", [file])
        thread_id = client.thread_id
        await client.disconnect(clear=True)  # removes the session's files
        first = await _only(client, thread_id)
        assert first["url"].startswith(f"{path}/forebay/files/")
        assert (await client.get(first["url"]))[::2] == (200, _CONTENT)
    server.stop()
    server.start()
    async with ChainlitClient(server.url, path=path, thread_id=thread_id) as again:
        assert again.resumed
        (element,) = again.resumed["elements"]
        status, headers, body = await again.get(element["url"])
        assert (status, body) == (200, _CONTENT)
        assert headers["content-type"] == "application/x-thing"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["content-disposition"].startswith("attachment; filename*=utf-8''p%C3%A4per")
        assert "sandbox" in headers["content-security-policy"]
        status, headers, body = await again.get(element["url"], Range="bytes=255-257")
        assert (status, body) == (206, _CONTENT[255:258])


async def _only(client: ChainlitClient, thread_id: str) -> dict[str, Any]:
    elements = (await client.thread(thread_id))["elements"]
    assert len(elements) == 1
    return dict(elements[0])


@pytest.mark.parametrize("server", ["plain"], indirect=True)
async def test_one_persons_url_does_not_open_anothers_file(server: ChainlitServer) -> None:
    async with ChainlitClient(server.url, login="ann") as ann, ChainlitClient(server.url, login="bob") as bob:
        urls = []
        for client in (ann, bob):
            file = await client.upload("note.txt", client.login.encode())
            await client.say("look", [file])
            urls.append((await _only(client, client.thread_id))["url"])
        assert [(await ann.get(url))[2] for url in urls] == [b"ann", b"bob"], "who has the URL may read"
        # Ann's signature with the key of Bob's file, and the other way round.
        key = re.compile("key=[^&]+")
        (hers,), (his,) = key.findall(urls[0]), key.findall(urls[1])
        assert hers != his
        for url, other in ((urls[0], his), (urls[1], hers)):
            assert (await ann.get(key.sub(other, url)))[0] == 403
        assert (await ann.get(urls[0].partition("&")[0]))[0] == 403
        assert (await ann.get(urls[0] + "0"))[0] == 403


@pytest.mark.parametrize("server", ["plain"], indirect=True)
async def test_a_deleted_chats_file_is_gone(server: ChainlitServer, tmp_path: Path) -> None:
    async with ChainlitClient(server.url) as client:
        await client.say("look", [await client.upload("note.txt", b"gone soon")])
        url = (await _only(client, client.thread_id))["url"]
        await client.delete(client.thread_id)
        assert (await client.get(url))[0] == 404
    assert _files(tmp_path / ".forebay" / "files" / "objects") == []


@pytest.mark.parametrize("server", ["plain"], indirect=True)
async def test_a_killed_server_leaves_nothing_half_done(server: ChainlitServer, tmp_path: Path) -> None:
    async with ChainlitClient(server.url) as client:
        files = [await client.upload(f"{number}.bin", _CONTENT) for number in range(10)]
        await client.say("look", files)
        thread_id = client.thread_id
        async with patience():
            while len((await client.thread(thread_id))["elements"]) < len(files):  # noqa: ASYNC110 - they come one by one
                await asyncio.sleep(0.01)
        server.kill()
    server.start()
    async with ChainlitClient(server.url, thread_id=thread_id) as again:
        assert again.resumed
        found = {
            element["name"]: (await again.get(element["url"]))[2] for element in again.resumed["elements"]
        }
    assert found == {f"{number}.bin": _CONTENT for number in range(10)}


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]
