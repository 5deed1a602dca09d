"""Each file of examples/, run as its README says, on the real server; what was said is looked for in the database."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.support.chainlit_client import ChainlitClient
from tests.support.chainlit_server import ChainlitServer
from tests.support.patience import patience
from tests.support.rows import rows

_EXAMPLES = Path(__file__).parents[2] / "examples"
_PATH = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))  # chainlit, forebay, uvicorn
_KEY = "the key of the file server"
_SAID = "SELECT type, output FROM steps WHERE type <> 'run' ORDER BY \"createdAt\""


def _server(name: str, folder: Path, url: str, **env: str) -> ChainlitServer:
    script = "import os, sys; os.execv(sys.argv[1], sys.argv[1:])"
    command = {
        "mounted.py": ("-m", "uvicorn", "mounted:app", "--app-dir", str(_EXAMPLES), "--port", "{port}"),
        "external_writer.sh": ("-c", script, str(_EXAMPLES / name), "--headless", "--port", "{port}"),
    }.get(name)
    env |= {"PATH": _PATH, "FOREBAY_DATABASE_URL": url, "FOREBAY_METRICS_ADDRESS": "127.0.0.1:0"}
    path = "/chat/" if name == "mounted.py" else "/"
    return ChainlitServer(_EXAMPLES / name, folder, env, command, path)


@pytest.mark.parametrize("name", ["minimal.py", "mounted.py", "external_writer.sh"])
async def test_a_chat_is_kept_and_goes_on(name: str, migrated_postgres_url: str, tmp_path: Path) -> None:
    with _server(name, tmp_path, migrated_postgres_url) as server:
        async with ChainlitClient(server.url, "ada", path=server.mounted_at) as client:
            assert (await client.say("Hello"))["output"] == "You said: Hello"
        server.stop()
        said = [tuple(row.values()) for row in await rows(migrated_postgres_url, _SAID)]
        assert said == [("user_message", "Hello"), ("assistant_message", "You said: Hello")]
        # With a writer of its own it is that which has taken the journal, and not the server.
        assert ("owned=True" in server.log) == (name == "external_writer.sh")

        server.start()
        place = {"thread_id": client.thread_id, "path": server.mounted_at}
        async with ChainlitClient(server.url, "ada", **place) as again:
            assert [thread["name"] for thread in await again.history()] == ["Hello"]
            assert (await again.say("Still there?"))["output"] == "You said: Still there?"
        assert server.stop(signal.SIGINT) == 0, server.log
        assert len(await rows(migrated_postgres_url, _SAID)) == 4


class _Files:
    """A file server as the example's client expects it."""

    def __init__(self) -> None:
        self.files: dict[str, tuple[str, bytes]] = {}
        self.app = web.Application()
        self.app.router.add_route("*", "/{name:.*}", self._answer)

    async def _answer(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if request.method == "GET":
            self._check_signature(request)
            mime, content = self.files[name]
            return web.Response(body=content, content_type=mime)
        if request.headers["Authorization"] != f"Bearer {_KEY}":
            raise web.HTTPForbidden
        if request.method == "PUT":
            self.files[name] = (request.content_type, await request.read())
        elif request.method == "DELETE":
            del self.files[name]
        return web.Response()

    def _check_signature(self, request: web.Request) -> None:
        address, until = request.url.with_query(None), request.query["until"]
        signature = hmac.new(_KEY.encode(), f"{address} {until}".encode(), hashlib.sha256).hexdigest()
        if not hmac.compare_digest(signature, request.query["signature"]) or int(until) < time.time():
            raise web.HTTPForbidden


@pytest.fixture
async def files() -> AsyncIterator[tuple[str, _Files]]:
    """A file server's URL, and what it has."""
    server = _Files()
    async with TestServer(server.app) as running:
        yield str(running.make_url("/attachments")), server


async def test_files_lie_on_the_server_of_ones_own(
    files: tuple[str, _Files], migrated_sqlite_url: str, tmp_path: Path
) -> None:
    url, there = files
    env = {"FILE_SERVER_URL": url, "FILE_SERVER_KEY": _KEY}
    with _server("own_storage.py", tmp_path, migrated_sqlite_url, **env) as server:
        async with ChainlitClient(server.url, "ada") as client:
            await client.say("Hello")
            async with patience():  # a read waits for an upload, but not for ever
                while not (elements := (await client.thread(client.thread_id))["elements"]):  # noqa: ASYNC110 - nothing tells
                    await asyncio.sleep(0.05)
            (element,) = elements
            assert element["url"].startswith(f"{url}/")
            status, _, content = await client.get(element["url"])
            assert (status, content) == (200, b"You said: Hello")
            assert (await client.get(re.sub("until=.", "until=9", element["url"])))[0] == 403
            (row,) = await rows(migrated_sqlite_url, 'SELECT name, "objectKey" FROM elements')
            assert row["name"] == "answer.txt"
            assert there.files == {f"attachments/{row['objectKey']}": ("text/plain", b"You said: Hello")}
            await client.delete(client.thread_id)
            async with patience():
                while there.files:  # noqa: ASYNC110 - nothing tells
                    await asyncio.sleep(0.05)


async def test_an_export_is_read(migrated_sqlite_url: str, tmp_path: Path) -> None:
    with _server("minimal.py", tmp_path, migrated_sqlite_url) as server:
        async with ChainlitClient(server.url, "ada") as ada, ChainlitClient(server.url, "bob") as bob:
            await ada.rate((await ada.say("Hello"))["id"], 1)
            await ada.say("And?")
            await bob.rate((await bob.say("Hello"))["id"], 0)
        server.stop()
        _run("forebay", "export", "chats.jsonl", env=server.env, folder=tmp_path)
    table = _run("python", str(_EXAMPLES / "read_export.py"), "chats.jsonl", env=server.env, folder=tmp_path)
    header, _, *days = (line.split() for line in table.splitlines())
    assert header == ["questions", "people", "rated", "liked"]
    # Added up, since midnight may have come in between; who asks on two days counts on both.
    questions, people, rated, liked = (
        sum(map(float, column)) for column in list(zip(*days, strict=True))[1:]
    )
    assert (questions, rated, liked) == (3, 2, 1)
    assert people >= 2


def _run(*command: str, env: dict[str, str], folder: Path) -> str:
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
