"""The page at the operators' port, in a real browser: what it says of a layer that works, and of one that does not."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page, expect

from forebay import ForebayDataLayer, Settings
from tests.integration.contract import UNREACHABLE, a_step, a_thread
from tests.support.browser import chromium
from tests.support.patience import PATIENCE

_MS = PATIENCE * 1000


@pytest.fixture
async def page() -> AsyncIterator[Page]:
    async with chromium() as browser:
        opened = await browser.new_page(viewport={"width": 900, "height": 760})
        yield opened
        await opened.close()


async def _layer(url: str, folder: Path, **values: Any) -> ForebayDataLayer:
    settings = Settings(journal_dir=folder, metrics_address="127.0.0.1:0", **values)
    layer = ForebayDataLayer(url, settings=settings)
    await layer.start()
    return layer


async def test_what_works_says_so(page: Page, migrated_url: str, tmp_path: Path) -> None:
    layer = await _layer(migrated_url, tmp_path)
    told: list[str] = []
    page.on("console", lambda message: told.append(message.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    thread_id = await a_thread(layer, name="a secret name")
    await layer.create_step(a_step(thread_id, output="a secret answer"))
    await layer.flush()
    assert layer.metrics_url is not None
    await page.goto(f"{layer.metrics_url}/")
    await expect(page.locator("#state")).to_have_text("Ready, and all is well", timeout=_MS)
    written = page.get_by_role("row", name="Written")
    await expect(written).to_contain_text("2 in all", timeout=_MS)
    for _ in range(3):
        await layer.create_step(a_step(thread_id))
    await layer.flush()
    await expect(written).to_contain_text("5 in all", timeout=_MS)  # it looks again by itself
    if folder := os.environ.get("FOREBAY_TEST_SCREENSHOTS"):
        await page.screenshot(path=Path(folder) / "page.png")
    assert "secret" not in await page.content()
    assert thread_id not in await page.content()
    assert told == []  # its own policy lets its own script and style run
    await layer.close()
    await expect(page.locator("#state")).to_have_text("The process does not answer", timeout=_MS)


async def test_what_is_wrong_says_what_to_type(page: Page, tmp_path: Path) -> None:
    layer = await _layer(UNREACHABLE, tmp_path, ready_grace=0.0, close_timeout=0.2)
    await a_thread(layer)
    assert layer.metrics_url is not None
    await page.goto(f"{layer.metrics_url}/")
    await expect(page.locator("#state")).to_have_text("Not ready", timeout=_MS)
    await expect(page.locator("#troubles")).to_contain_text("forebay doctor", timeout=_MS)
    await layer.close()
