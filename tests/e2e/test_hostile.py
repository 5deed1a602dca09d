"""Somebody at the real server who knows each id of another's chat, which is shared, and sends whatever they like.

FOREBAY_TEST_LONG=1 sends all of it; otherwise what names the other's rows, and a part of the rest.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import uuid
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import pytest
import socketio
from yarl import URL

from tests.e2e import hostile
from tests.support.chainlit_client import ChainlitClient
from tests.support.chainlit_server import ChainlitServer, free_port
from tests.support.patience import patience
from tests.support.rows import rows

_RACE = Path(__file__).parent / "apps" / "race.py"
_SECRET = "only ann knows this"
_LONG = os.environ.get("FOREBAY_TEST_LONG") == "1"
_ONE_IN = 1 if _LONG else 12
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_T = TypeVar("_T")


def _some(everything: Iterable[_T], victim: hostile.Victim) -> list[_T]:
    """All that names something of the victim's, and a part of the rest."""
    theirs = {*map(str, vars(victim).values())}
    chosen = [(one, any(key in repr(one).lower() for key in theirs)) for one in everything]
    return [one for place, (one, names) in enumerate(chosen) if names or place % _ONE_IN == 0]


class _Attack:
    """Ann's shared chat with a file, and Eve beside it."""

    def __init__(self, server: ChainlitServer, ann: ChainlitClient, eve: ChainlitClient) -> None:
        self.server, self.ann, self.eve = server, ann, eve
        self.inputs = 0

    async def prepare(self, url: str) -> None:
        file = await self.ann.upload("secret.txt", _SECRET.encode())
        answer = await self.ann.say(_SECRET, [file])
        feedback_id = await self.ann.rate(answer["id"], 1)
        await self.ann.share(self.ann.thread_id, True)
        mine = await self.eve.say("mine")
        self.before = await self._anns()
        (user,) = await rows(url, "SELECT id FROM users WHERE identifier = 'ann'")
        (element,) = self.before["elements"]
        self.victim = hostile.Victim(
            self.ann.thread_id, answer["id"], element["id"], feedback_id, str(user["id"])
        )
        self.own = hostile.Own(self.eve.thread_id, self.eve._session_id, mine["id"])

    async def _anns(self) -> dict[str, Any]:
        """Her thread; a file's URL is signed anew each time."""
        thread = await self.ann.thread(self.ann.thread_id)
        for element in thread["elements"]:
            assert (await self.ann.get(element.pop("url")))[::2] == (200, _SECRET.encode())
        return thread

    async def check(self) -> None:
        """Nothing of Ann's has changed, and she goes on."""
        assert await self._anns() == self.before
        assert (await self.ann.say("goes on"))["output"].endswith("and all of it")
        self.before = await self._anns()

    async def send(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, bytes]:
        self.inputs += 1
        data = json.dumps(body).encode() if body is not None else None
        headers = {"Content-Type": "application/json", **headers}
        url = URL(self.server.url + path, encoded=True)
        try:
            async with self.eve._http.request(method, url, data=data, headers=headers) as response:
                return response.status, await response.read()
        except aiohttp.ClientError:  # what the server will not even read
            return 0, b""


@pytest.fixture
async def attack(
    request: pytest.FixtureRequest, migrated_postgres_url: str, tmp_path: Path
) -> AsyncIterator[_Attack]:
    port = free_port()
    env = {"TEST_DATABASE_URL": migrated_postgres_url, "FOREBAY_METRICS_ADDRESS": f"127.0.0.1:{port}"}
    with ChainlitServer(_RACE, tmp_path, env) as server:
        async with ChainlitClient(server.url, "ann") as ann, ChainlitClient(server.url, "eve") as eve:
            made = _Attack(server, ann, eve)
            await made.prepare(migrated_postgres_url)
            yield made
            await made.check()
            async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{port}/metrics") as got:
                metrics = await got.text()
        server.stop()
        assert "forebay_dead_letters 0.0" in metrics
        assert not {_SECRET, made.victim.user_id, made.victim.thread_id} & {*re.findall(r"[\w -]+", metrics)}
        assert _SECRET not in server.log
        assert [line for line in server.log.splitlines() if _CONTROL.search(line)] == []
        named = "steps", "elements", "feedbacks"
        counts = "SELECT count(*) AS n FROM {} WHERE \"threadId\" = '{}'"
        for table in named:  # what Ann has seen is all there is
            (found,) = await rows(migrated_postgres_url, counts.format(table, made.victim.thread_id))
            assert found["n"] == (len(made.before[table]) if table != "feedbacks" else 1)


async def test_what_anybody_sends_changes_nothing_of_anothers_and_shows_nothing(attack: _Attack) -> None:
    await _send_all(attack)
    await attack.check()
    await _put_files(attack)
    await _log_in(attack)
    assert attack.inputs > (4_000 if _LONG else 500)


async def _send_all(attack: _Attack) -> None:
    for method, path, body in _some(hostile.requests(attack.victim, attack.own), attack.victim):
        status, answer = await attack.send(method, path, body)
        assert _SECRET.encode() not in answer or "/share/" in path, (method, path, body, status)
        if status >= 400:  # nor where what is
            assert not any(word in answer for word in (b"postgres:", b"127.0.0.1", b"/tmp")), answer[:200]
    await attack.check()
    for place, (name, data) in enumerate(_some(hostile.events(attack.victim, attack.own), attack.victim)):
        try:
            json.dumps(data)
            await attack.eve._sio.emit(name, data)
        except RecursionError:  # deeper than the client goes
            continue
        attack.inputs += 1
        if place % 50 == 49:
            await asyncio.sleep(0.1)
    for opened in _some(hostile.connects(attack.victim), attack.victim):
        await _open(attack, opened)


async def _open(attack: _Attack, auth: dict[str, Any]) -> None:
    """A chat that says something, in whatever thread, and has at another's element."""
    cookies = attack.eve._http.cookie_jar.filter_cookies(URL(attack.server.url))
    header = {"Cookie": "; ".join(f"{name}={morsel.value}" for name, morsel in cookies.items())}
    session_id, resumed = str(uuid.uuid4()), dict[str, Any]()
    sio = socketio.AsyncClient(reconnection=False)
    sio.on("resume_thread", resumed.update)
    attack.inputs += 1
    try:
        await sio.connect(
            attack.server.url,
            socketio_path="/ws/socket.io",
            transports=["websocket"],
            headers=header,
            auth={"sessionId": session_id, **auth},
        )
    except socketio.exceptions.ConnectionError:
        return
    message = {
        "id": str(uuid.uuid4()),
        "name": "eve",
        "type": "user_message",
        "output": "x",
        "createdAt": "x",
    }
    await sio.emit("connection_successful")
    await sio.emit("client_message", {"message": {**message, "threadId": ""}, "fileReferences": []})
    victim = attack.victim
    theirs = {"id": victim.element_id, "forId": victim.step_id, "threadId": "", "type": "custom", "name": "x"}
    for method in ("PUT", "DELETE"):
        element = {**theirs, "display": "inline", "props": {}}
        await attack.send(method, "/project/element", {"element": element, "sessionId": session_id})
    await sio.disconnect()
    assert _SECRET not in json.dumps(resumed)


async def _put_files(attack: _Attack) -> None:
    """Files of any name harm nobody, and a URL opens one file."""
    references = []
    for name, mime in [*hostile.uploads()][:: 1 if _LONG else 4]:
        attack.inputs += 1
        try:
            references.append(await attack.eve.upload(name, b"<script>alert(1)</script>", mime))
        except (UnicodeEncodeError, AssertionError):  # a name that no client can send, or a type that is none
            continue
    await attack.eve.say("files", references)
    shown: list[dict[str, Any]] = []
    async with patience():  # Chainlit sends a message's elements in a task
        while len(shown) < len(references):
            elements = (await attack.eve.thread(attack.eve.thread_id))["elements"]
            shown = [element for element in elements if element["type"] != "custom"]
    assert len(shown) > 10
    for element in shown:
        status, headers, _ = await attack.eve.get(element["url"])
        assert status == 200
        if not headers["content-type"].startswith("text/plain"):
            assert headers["content-disposition"].startswith("attachment")
    (secret,) = (await attack.ann.thread(attack.ann.thread_id))["elements"]
    other_key = dict(part.split("=", 1) for part in secret["url"].partition("?")[2].split("&"))["key"]
    for url, headers in hostile.urls(shown[0]["url"], other_key):
        status, answer = await attack.send("GET", url, None, **headers)
        assert _SECRET.encode() not in answer
        assert b"root:" not in answer
        assert status in (403, 404) or b"<!doctype html>" in answer, (url, status)  # Chainlit's own page
    for asked in hostile.RANGES:
        status, answer = await attack.send("GET", shown[0]["url"], None, Range=asked)
        assert status < 500
        assert len(answer) < 100_000, asked


async def _log_in(attack: _Attack) -> None:
    """Whoever logs in by an odd name is somebody else."""
    spelled = [name for name in hostile.spellings("ann") if name != "ann"]
    names = [*spelled, *(name for name in hostile.TEXTS if len(name) < 100)]
    for name in names[:: 1 if _LONG else 4]:
        try:
            name.encode()
        except UnicodeEncodeError:
            continue
        attack.inputs += 1
        async with patience(), ChainlitClient(attack.server.url, name or "nobody") as somebody:
            assert _SECRET not in json.dumps(await somebody.history())
