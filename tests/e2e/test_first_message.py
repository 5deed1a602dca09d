"""What an app shows before the first message: it is stored as it was shown last, and only once somebody has spoken."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from typing_extensions import override

from tests.support.chainlit_client import ChainlitClient
from tests.support.chainlit_server import ChainlitServer
from tests.support.patience import PATIENCE
from tests.support.rows import rows

_APP = Path(__file__).parent / "apps" / "asks.py"


class _Asked(ChainlitClient):
    """A person who is asked to pick an action, and picks the first, unless silent."""

    def __init__(self, url: str, *, silent: bool = False) -> None:
        super().__init__(url)
        self._silent = silent
        self.asked, self.ready = asyncio.Event(), asyncio.Event()

    @override
    def _listen(self) -> None:
        super()._listen()
        self._sio.on("ask", self._answer)
        self._sio.on("delete_message", self._unsee)

    async def _answer(self, ask: dict[str, Any]) -> dict[str, Any] | None:
        self.asked.set()
        if self._silent:
            await asyncio.Event().wait()
        payload = {"value": 1}
        return {"id": "1", "name": "go", "label": "Go", "payload": payload, "forId": ask["msg"]["id"]}

    async def _unsee(self, step: dict[str, Any]) -> None:
        self.steps.pop(step["id"], None)

    @override
    async def _see(self, step: dict[str, Any]) -> None:
        await super()._see(step)
        if step["output"] == "ready":
            self.ready.set()


@pytest.mark.parametrize("durability", ["journal", "memory", "commit"])
async def test_what_was_shown_before_the_first_message_is_stored_as_shown_last(
    migrated_url: str, tmp_path: Path, durability: str
) -> None:
    env = {"TEST_DATABASE_URL": migrated_url, "FOREBAY_DURABILITY": durability}
    with ChainlitServer(_APP, tmp_path, env) as server:
        shown: dict[str, Any] = {}
        for _ in range(3):
            async with _Asked(server.url) as client:
                await asyncio.wait_for(client.ready.wait(), PATIENCE)
                shown |= client.steps
        server.stop()
    found = await rows(migrated_url, "SELECT CAST(id AS TEXT) AS id, output FROM steps")
    assert {row["id"]: row["output"] for row in found if row["id"] in shown} == {
        key: step["output"] for key, step in shown.items()
    }
    assert len(shown) == len({row["id"] for row in found}), "what was removed stays removed"
    outputs = [row["output"] for row in found]
    assert outputs.count("**Selected:** Go") == outputs.count("picked go") == 3
    elements = await rows(migrated_url, 'SELECT name, "objectKey" AS object_key FROM elements')
    assert [row["name"] for row in elements if row["object_key"]] == ["terms"] * 3


async def test_a_chat_that_nobody_spoke_in_is_not_stored(migrated_sqlite_url: str, tmp_path: Path) -> None:
    with ChainlitServer(_APP, tmp_path, {"TEST_DATABASE_URL": migrated_sqlite_url}) as server:
        async with _Asked(server.url, silent=True) as client:
            await asyncio.wait_for(client.asked.wait(), PATIENCE)
        server.stop()
    assert await rows(migrated_sqlite_url, "SELECT id FROM threads") == []
    assert await rows(migrated_sqlite_url, "SELECT id FROM steps") == []
