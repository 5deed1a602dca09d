"""`forebay demo`, as a new user runs it: over the websocket, and in a real browser."""

from __future__ import annotations

import signal
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import expect

from tests.support.browser import ChatPage, chromium
from tests.support.chainlit_client import ChainlitClient
from tests.support.chainlit_server import ChainlitServer
from tests.support.patience import PATIENCE


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[ChainlitServer]:
    command = ("-m", "forebay.cli", "demo", "--port", "{port}", "--data", str(tmp_path / "data"))
    with ChainlitServer(
        None, tmp_path, {"FOREBAY_DATABASE_URL": "sqlite:///not-this-one.db"}, command
    ) as server:
        yield server


async def test_a_chat_is_there_after_a_restart(demo: ChainlitServer, tmp_path: Path) -> None:
    async with ChainlitClient(demo.url) as client:
        assert "scripted" in (await client.say("help"))["output"]
        answer = await client.say("tell me about the queue")
        assert "nothing overtakes" in answer["output"]
        await client.say('a "file", please')
        said = await client.say("look at this", [await client.upload("note.txt", b"from my disk")])
        assert "*note.txt*" in said["output"]
        thread_id = client.thread_id
    assert demo.stop(signal.SIGINT) == 0
    assert "demo / demo" in demo.log
    assert f"Data     {tmp_path / 'data' / 'chat.db'}\n" in demo.log
    assert stat.S_IMODE((tmp_path / "data" / "secret").stat().st_mode) == 0o600
    assert {path.name for path in tmp_path.iterdir()} == {"data", demo.log_path.name}, "no litter"

    demo.start()
    async with ChainlitClient(demo.url, thread_id=thread_id) as client:
        assert [thread["name"] for thread in await client.history()] == ["help"]
        said = await client.say("what did I say?")
        assert said["output"] == '1. help\n2. tell me about the queue\n3. a "file", please\n4. look at this'
        thread = await client.thread(thread_id)
        assert client.resumed
        for elements in (thread["elements"], client.resumed["elements"]):
            await _check_files(client, elements)
    _check_steps(thread["steps"])


def _check_steps(steps: list[dict[str, Any]]) -> None:
    names = {step["id"]: step["name"] for step in steps}
    nested = [step for step in steps if step["type"] in ("tool", "retrieval")]
    assert [(step["name"], names.get(step["parentId"])) for step in nested] == [
        ("Notebook", "on_message"),
        ("Index", "Notebook"),
        ("Pages", "Notebook"),
    ]
    assert all(step["output"] for step in nested)


async def _check_files(client: ChainlitClient, elements: list[dict[str, Any]]) -> None:
    files = {element["name"]: (element["mime"], await client.get(element["url"])) for element in elements}
    assert {name: (mime, status, body) for name, (mime, (status, _, body)) in files.items()} == {
        "questions.csv": ("text/csv", 200, b"number,question\n1,help\n2,tell me about the queue\n"),
        "note.txt": ("text/plain", 200, b"from my disk"),
    }


def test_a_taken_port_names_the_option(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = _run_demo("--port", port, "--data", str(tmp_path))
    assert done.returncode == 1
    assert f"port {port} on 127.0.0.1 can't be used" in done.stderr
    assert "--port" in done.stderr


def test_a_folder_that_cannot_be_made_names_the_option(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = _run_demo("--data", str(tmp_path / "file" / "data"))
    assert done.returncode == 1
    assert "can't be written" in done.stderr
    assert "--data" in done.stderr


def _run_demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "forebay.cli", "demo", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)


# ---- in a browser


@pytest.fixture
async def chat(demo: ChainlitServer) -> AsyncIterator[ChatPage]:
    async with chromium() as browser, ChatPage.open(browser, demo.url) as chat:
        yield chat


async def test_a_person_finds_the_chat_again(demo: ChainlitServer, chat: ChatPage, tmp_path: Path) -> None:
    await chat.log_in("demo", "demo")
    await expect(chat.page).to_have_title("forebay demo")
    await chat.page.get_by_text("Everything said here is kept").wait_for()
    await chat.page.get_by_role("button", name="What can you do?").click()
    await chat.see("I am scripted")
    await chat.see_end_of_turn()
    await chat.new_chat()

    (tmp_path / "measurements.csv").write_text("day,level\nMonday,4.2\n")
    await chat.send("Keep this for me", tmp_path / "measurements.csv")
    await chat.see("I keep measurements.csv")
    await chat.see_end_of_turn()
    await chat.send("Tell me about the queue")
    await _see_the_answer(chat)

    demo.stop()
    demo.start()
    await chat.go()
    await chat.threads("Keep this for me", "What can you do?")
    await chat.open_thread("Keep this for me")
    await _see_the_answer(chat)
    assert await chat.download("measurements.csv") == b"day,level\nMonday,4.2\n"
    await chat.take_picture("demo")


async def _see_the_answer(chat: ChatPage) -> None:
    """The answer, and in the outer step its two inner ones."""
    await chat.see("nothing overtakes")
    await chat.see_end_of_turn()
    await chat.open_step("Notebook")
    for text in ("Used Index", "Used Pages", "1 of 4 notes"):
        await expect(chat.page.get_by_text(text)).to_be_visible()
