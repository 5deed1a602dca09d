"""Chromium, and Chainlit's page in it as a person uses it."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from playwright.async_api import (
    Browser,
    BrowserContext,
    Error,
    Locator,
    Page,
    Request,
    async_playwright,
    expect,
)

from tests.support.programs import program

SLOW = 60_000.0  # milliseconds: how long anything may take on a busy machine
_ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    # The page asks for fonts outside; a test talks to this machine alone.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
_SCREENSHOTS = "FOREBAY_TEST_SCREENSHOTS"


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """A headless Chromium. Skips the test where there is none."""
    path = program("chromium")
    expect.set_options(timeout=SLOW)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=[*_ARGUMENTS], timeout=SLOW)
        yield browser
        await browser.close()


class ChatPage:
    """Chainlit's page at `url` in a window of its own.

    `troubles` holds what a page without faults has none of: its errors, and requests to the server that failed.
    """

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.troubles: list[str] = []
        page.on("pageerror", self._note_error)
        page.on("requestfailed", self._note_failure)
        page.on("response", lambda response: self._note_status(response.status, response.url))

    @classmethod
    @asynccontextmanager
    async def open(cls, browser: Browser, url: str) -> AsyncIterator[ChatPage]:
        """A window of somebody new."""
        context: BrowserContext = await browser.new_context(
            viewport={"width": 1280, "height": 900}, accept_downloads=True, locale="en-US"
        )
        context.set_default_timeout(SLOW)
        yield cls(await context.new_page(), url)
        await context.close()

    def _note_failure(self, request: Request) -> None:
        # A player that seeks gives up the request that it no longer needs.
        given_up = request.resource_type == "media" or request.failure == "net::ERR_ABORTED"
        if request.url.startswith(self.url) and not given_up:
            self.troubles.append(f"{request.failure}: {request.url}")

    def _note_error(self, error: Error) -> None:
        # Who leaves a page while a PDF is drawn there ends that.
        if "Worker was terminated" not in str(error):
            self.troubles.append(f"error: {error}")

    def _note_status(self, status: int, url: str) -> None:
        if url.startswith(self.url) and status >= 400:
            self.troubles.append(f"{status}: {url}")

    # ---- what a person does

    async def log_in(self, name: str = "demo", password: str = "demo") -> None:
        await self.page.goto(f"{self.url}/login")
        await self.page.fill("input[type=email], input#email", name)
        await self.page.fill("input[type=password]", password)
        await self.page.keyboard.press("Enter")
        await self.see_connection()
        self.troubles.clear()  # the page asked who is here, and was told: nobody

    async def send(self, text: str, *files: Path) -> None:
        """Send a message, with files."""
        await self.see_connection()
        if files:
            await self.page.set_input_files("#upload-button-input", list(files))
            for file in files:
                await expect(self.page.locator("#attachments").get_by_text(file.name)).to_be_visible()
        await self.page.click("#chat-input")
        await self.page.keyboard.type(text)
        await expect(self.page.locator("#chat-submit")).to_be_enabled()
        await self.page.click("#chat-submit")

    async def see_connection(self) -> None:
        """Wait for the socket: what is typed or attached before is lost."""
        await expect(self.page.locator("#upload-button")).to_be_enabled()

    async def see(self, text: str) -> None:
        """Wait until the chat shows a message with this text."""
        await expect(self._message(text)).to_be_visible()

    async def see_end_of_turn(self) -> None:
        """Wait until the server has nothing more to say."""
        await expect(self.page.locator("#chat-submit")).to_be_visible()

    async def open_step(self, name: str, number: int = 0) -> None:
        """Open the step of this name; `number` counts those that have it."""
        await self.page.locator(f"#step-{name}").nth(number).click()

    async def praise(self, comment: str) -> None:
        """A thumb up for the last answer, with a comment."""
        await self.page.locator(".positive-feedback-off").last.click()
        await self.page.get_by_placeholder("Your feedback...").fill(comment)
        await self.page.click("#submit-feedback")
        await self.see_praise()

    async def see_praise(self) -> None:
        await expect(self.page.locator(".positive-feedback-on")).to_have_count(1)

    async def new_chat(self) -> None:
        await self.page.click("#new-chat-button")
        confirm = self.page.locator("#new-chat-dialog #confirm")
        await confirm.click()
        await expect(confirm).to_be_hidden()
        await expect(self.page.locator("[data-step-type]")).to_have_count(0)

    async def rename(self, old: str, new: str) -> None:
        await self._choose(old, "rename")
        await self.page.fill("#name", new)
        await self.page.get_by_role("button", name="Confirm").click()
        await expect(self.page.get_by_text("Thread renamed!")).to_be_visible()
        await expect(self.thread(new)).to_be_visible()

    async def delete(self, name: str) -> None:
        await self._choose(name, "delete")
        await self.page.get_by_role("button", name="Confirm").click()
        await expect(self.page.get_by_text("Chat deleted")).to_be_visible()
        await expect(self.thread(name)).to_have_count(0)

    async def find(self, words: str, name: str) -> None:
        """Search for words, and open the chat of this name that is found."""
        await self.page.click("#search-chats-button")
        await self.page.get_by_placeholder("Search conversations...").fill(words)
        # Before the answer is there the list holds what was found for nothing.
        found = self.page.locator(f"[cmdk-item][data-value='{words}-{await self.thread_id(name)}' i]")
        await expect(found).to_have_count(1)
        await expect(self.page.locator("[cmdk-item]")).to_have_count(1)
        await found.click()

    async def open_thread(self, name: str) -> None:
        await self.thread(name).click()

    async def reload(self) -> None:
        await self.page.reload()
        await self.see_connection()

    async def go(self, path: str = "/") -> None:
        """Type an address."""
        await self.page.goto(f"{self.url}{path}")
        await self.see_connection()

    async def leave(self) -> None:
        """Close the page, and keep the window."""
        await self.page.goto("about:blank")

    # ---- what a person sees

    def thread(self, name: str) -> Locator:
        """A chat in the sidebar."""
        return self.page.locator("#thread-history li").filter(has_text=re.compile(f"^{re.escape(name)}$"))

    async def threads(self, *names: str) -> None:
        """Wait until the sidebar has these chats, and no other."""
        await expect(self.page.locator("#thread-history li")).to_have_text([*names])

    async def thread_names(self) -> list[str]:
        """The chats in the sidebar, now."""
        return await self.page.locator("#thread-history li").all_inner_texts()

    async def thread_id(self, name: str) -> str:
        identifier = await self.thread(name).get_attribute("id")
        assert identifier is not None
        return identifier.removeprefix("thread-")

    async def download(self, name: str) -> bytes:
        """What a click on a file gives."""
        async with self.page.expect_download() as started:
            await self.page.locator("a[download]", has_text=name).last.click()
        return Path(await (await started.value).path()).read_bytes()

    async def take_picture(self, name: str) -> None:
        """A picture of the window, if the environment names a folder for them."""
        if folder := os.environ.get(_SCREENSHOTS):
            await self.page.screenshot(path=Path(folder) / f"{name}.png", animations="disabled")

    def _message(self, text: str) -> Locator:
        return self.page.locator("[data-step-type$=_message]", has_text=text).last

    async def _choose(self, name: str, action: str) -> None:
        await self.thread(name).hover()
        await self.thread(name).locator("#thread-options").click()
        await self.page.click(f"#{action}-thread")
