"""The quiet spells of a layer that closes: how long each lasts is the test's to say."""

from __future__ import annotations

import asyncio

import anyio
import pytest

from forebay.pipeline import pipeline
from tests.support.patience import FOR_EVER, patience


class QuietSpells:
    """From here on a spell lasts until it is ended."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self._begun: asyncio.Queue[asyncio.Event] = asyncio.Queue()
        sleep = anyio.sleep

        async def last(seconds: float) -> None:
            if seconds != FOR_EVER:
                await sleep(seconds)
                return
            end = asyncio.Event()
            self._begun.put_nowait(end)
            await end.wait()

        monkeypatch.setattr(pipeline, "_QUIET_SPELL", FOR_EVER)
        monkeypatch.setattr(anyio, "sleep", last)

    def over(self) -> None:
        """From now on none lasts."""
        self._monkeypatch.setattr(pipeline, "_QUIET_SPELL", 0.0)

    async def next(self) -> asyncio.Event:
        """Wait until one begins; what ends it."""
        async with patience():
            return await self._begun.get()
