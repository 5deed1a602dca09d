"""A person at Chainlit's own page, in a real browser: what was done is in the database, and stays."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, expect

from tests.support.browser import ChatPage, chromium
from tests.support.chainlit_server import ChainlitServer
from tests.support.rows import become, rows

pytestmark = pytest.mark.asyncio(loop_scope="module")

_APPS = Path(__file__).parent / "apps"
_AUDIO_SECONDS = 300
_CONTENT = bytes(range(256)) * 500
_TABLES = {"threads": "id", "steps": '"threadId"', "elements": '"threadId"', "feedbacks": '"threadId"'}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as browser:
        yield browser


@pytest.fixture
def linger() -> str:
    """How long the first change of a batch waits for others, in seconds."""
    return "0.005"


@pytest.fixture
def server(migrated_url: str, tmp_path: Path, linger: str) -> Iterator[ChainlitServer]:
    (tmp_path / "public" / "elements").mkdir(parents=True)
    shutil.copy(_APPS / "files" / "Tally.jsx", tmp_path / "public" / "elements")
    env = {"TEST_DATABASE_URL": migrated_url, "FOREBAY_METRICS_ADDRESS": "off", "FOREBAY_LINGER": linger}
    env["AUDIO_SECONDS"] = str(_AUDIO_SECONDS)
    with ChainlitServer(_APPS / "browser.py", tmp_path, env) as server:
        yield server


@pytest_asyncio.fixture(loop_scope="module")
async def chat(server: ChainlitServer, browser: Browser) -> AsyncIterator[ChatPage]:
    async with ChatPage.open(browser, server.url) as chat:
        yield chat


async def test_a_chats_life(
    chat: ChatPage, server: ChainlitServer, migrated_url: str, tmp_path: Path
) -> None:
    await chat.log_in("ann")
    await _begin(chat, tmp_path)
    thread_id = await chat.thread_id("The first chat")
    await become(
        migrated_url,
        'SELECT t.name, f.value, f.comment FROM threads t JOIN feedbacks f ON f."threadId" = t.id',
        [{"name": "The first chat", "value": 1, "comment": "It helped"}],
    )

    await chat.reload()
    await _see_the_beginning(chat)
    await chat.new_chat()
    await chat.send("something else")
    await chat.see("Answer to something else, and all of it")
    await chat.threads("something else", "The first chat")
    await chat.open_thread("The first chat")
    await _see_the_beginning(chat)
    await chat.send("and then?")
    await chat.see("Answer to and then?, and all of it")
    await chat.see_end_of_turn()
    await chat.open_thread("something else")
    await chat.see("Answer to something else, and all of it")
    await chat.find("found and THEN", "The first chat")
    await _see_the_beginning(chat)
    await chat.see("Answer to and then?, and all of it")
    assert chat.troubles == []

    url = await chat.page.locator("a[download]").get_attribute("href")
    await chat.delete("The first chat")
    await _see_that_it_is_gone(chat, migrated_url, thread_id)
    await chat.reload()
    await chat.threads("something else")
    assert (await chat.page.request.get(f"{server.url}{url}")).status == 404
    server.stop()
    server.start()
    await chat.go()
    await chat.threads("something else")
    await chat.page.goto(f"{server.url}/thread/{thread_id}")
    await chat.threads("something else")
    await _see_that_it_is_gone(chat, migrated_url, thread_id)


async def _begin(chat: ChatPage, folder: Path) -> None:
    """A question with a file, its answer and steps, a thumb up, a name."""
    file = folder / "päper ☂.bin"
    file.write_bytes(_CONTENT)
    await chat.send("what is a forebay", file)
    await chat.see("Answer to what is a forebay, and all of it")
    await chat.see_end_of_turn()
    await _open_the_steps(chat)
    await chat.praise("It helped")
    await chat.rename("what is a forebay", "The first chat")


async def _open_the_steps(chat: ChatPage) -> None:
    for name in ("search", "read"):
        await chat.open_step(name)
        await expect(chat.page.get_by_text(f"{name} found what is a forebay")).to_be_visible()


async def _see_the_beginning(chat: ChatPage) -> None:
    await chat.see("what is a forebay")
    await chat.see("Answer to what is a forebay, and all of it")
    await chat.see_praise()
    await _open_the_steps(chat)
    assert await chat.download("päper ☂.bin") == _CONTENT


async def _see_that_it_is_gone(chat: ChatPage, url: str, thread_id: str) -> None:
    for table, column in _TABLES.items():
        assert await rows(url, f"SELECT id FROM {table} WHERE CAST({column} AS TEXT) = '{thread_id}'") == []
    assert len(await rows(url, "SELECT * FROM forebay_tombstones")) == 1


# What is not read at once stays out of the database, so it is the journal that gives it back.
@pytest.mark.parametrize("linger", ["10"])
async def test_a_server_that_is_killed_in_a_conversation(
    chat: ChatPage, server: ChainlitServer, migrated_url: str
) -> None:
    await chat.log_in("ann")
    asked = ["question one", "question two", "question three"]
    for question in asked:
        await chat.send(question)
        await chat.see(f"Answer to {question}, and all of it")
        await chat.see_end_of_turn()
    await chat.send("hang")
    await chat.see("half-way")
    server.kill()
    stored = [row["output"] for row in await rows(migrated_url, "SELECT output FROM steps")]
    assert "search found hang" not in stored

    server.start()
    await chat.go()
    await chat.open_thread("question one")
    for question in asked:
        await chat.see(f"Answer to {question}, and all of it")
    await chat.see("hang")
    for number, question in enumerate([*asked, "hang"]):
        await chat.open_step("search", number)
        await expect(chat.page.get_by_text(f"search found {question}")).to_be_visible()
    await chat.send("question four")
    await chat.see("Answer to question four, and all of it")


@pytest.mark.parametrize("migrated_url", ["sqlite"], indirect=True)
async def test_a_chat_that_goes_on_is_at_the_top(chat: ChatPage) -> None:
    await chat.log_in("ann")
    for question in ("older", "newer"):
        await chat.send(question)
        await chat.see(f"Answer to {question}, and all of it")
        await chat.see_end_of_turn()
        await chat.new_chat()
    await chat.open_thread("older")
    await chat.send("goes on")
    await chat.see("Answer to goes on, and all of it")
    assert await chat.thread_names() == ["older", "newer"], "at once"
    await chat.reload()
    await expect(chat.thread("older")).to_be_visible()
    assert await chat.thread_names() == ["older", "newer"], "after a reload"


@pytest.mark.parametrize("migrated_url", ["sqlite"], indirect=True)
async def test_every_kind_of_element_in_a_chat_that_is_resumed(
    chat: ChatPage, server: ChainlitServer
) -> None:
    await chat.log_in("ann")
    await chat.send("show all")
    await chat.see("All kinds")
    await chat.page.locator("#tally", has_text="Counted 7").click()
    await expect(chat.page.locator("#tally")).to_have_text("Counted 8")
    await chat.leave()
    server.stop()
    server.start()

    await chat.go()
    await chat.open_thread("show all")
    await chat.see("All kinds")
    await _see_the_still_ones(chat)
    await _see_the_pdf(chat)
    await _hear_the_end(chat)
    await _watch(chat)
    assert await chat.download("page.html") == b"<script>alert(1)</script>"
    assert chat.troubles == []


async def _see_the_still_ones(chat: ChatPage) -> None:
    page = chat.page
    image = page.locator("img.inline-image")
    await image.scroll_into_view_if_needed()
    await expect(image).to_have_js_property("naturalWidth", 60)
    await expect(page.locator(".inline-text")).to_have_text("Words within an element")
    await expect(page.locator(".inline-plotly .gtitle")).to_have_text("A figure")
    await expect(page.get_by_role("cell", name="Bern")).to_be_visible()
    await expect(page.get_by_role("cell", name="42")).to_be_visible()
    await expect(page.locator("#tally")).to_have_text("Counted 8")


async def _see_the_pdf(chat: ChatPage) -> None:
    """As a small picture, as a large one, and in a window of its own."""
    page = chat.page
    small = page.locator(".inline-pdf")
    await expect(small.locator("canvas")).to_be_visible()
    await small.click()
    await expect(page.locator(".react-pdf__Page__textContent")).to_have_text("A page of the test")
    async with page.context.expect_page() as opened:
        await page.get_by_title("Print/Open PDF").click()
    window = await opened.value
    await window.wait_for_load_state()
    await _see_the_viewer(window)
    await window.close()
    await page.keyboard.press("Escape")
    await expect(page.locator(".react-pdf__Page__textContent")).to_have_count(0)


async def _see_the_viewer(window: Page) -> None:
    """Chromium's own viewer, which is an extension in a frame; the file alone would be a download."""
    while not any(frame.url.startswith("chrome-extension:") for frame in window.frames):
        await window.wait_for_event("framenavigated")


async def _hear_the_end(chat: ChatPage) -> None:
    """The player jumps to the end without loading what is before."""
    player = chat.page.locator("audio")
    await expect(player).to_have_js_property("duration", _AUDIO_SECONDS)
    async with chat.page.expect_response(
        lambda response: (
            response.status == 206
            and not response.request.headers.get("range", "bytes=0-").startswith("bytes=0-")
        )
    ):
        await player.evaluate(f"player => {{ player.currentTime = {_AUDIO_SECONDS - 1} }}")
    await chat.page.wait_for_function("() => !document.querySelector('audio').seeking")
    await expect(player).to_have_js_property("error", None)


async def _watch(chat: ChatPage) -> None:
    """The clip plays, and jumps to where it is told."""
    player = chat.page.locator(".inline-video video")
    await expect(player).to_have_js_property("videoWidth", 160)
    await player.evaluate("player => { player.currentTime = 8 }")
    await chat.page.wait_for_function(
        "() => { const p = document.querySelector('.inline-video video');"
        " return !p.seeking && p.currentTime >= 8 && p.readyState >= 2 }"
    )
    await expect(player).to_have_js_property("error", None)
