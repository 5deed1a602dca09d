"""Plain LangChain tools, which run in a thread whose event loop ends with them: what they show is stored."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.support.chainlit_client import ChainlitClient
from tests.support.chainlit_server import ChainlitServer
from tests.support.rows import rows

pytest.importorskip("langchain_core", reason="pip install langchain-core")

_APP = Path(__file__).parent / "apps" / "tools.py"
_SAID = ("one", "two", "three")


@pytest.mark.parametrize("durability", ["journal", "memory", "commit"])
async def test_what_a_tools_own_loop_shows_is_stored(
    migrated_url: str, tmp_path: Path, durability: str
) -> None:
    env = {"TEST_DATABASE_URL": migrated_url, "FOREBAY_DURABILITY": durability}
    shown: dict[str, str] = {}

    async def chat(server: ChainlitServer, login: str) -> None:
        async with ChainlitClient(server.url, login) as person:
            for text in _SAID:
                answer = await person.say(text)
                assert answer["output"] == f"Answer: {text.upper()}, and all of it"
            shown.update({key: step["output"] for key, step in person.steps.items()})

    with ChainlitServer(_APP, tmp_path, env) as server:
        await asyncio.gather(chat(server, "ada"), chat(server, "bob"))
        server.stop()
    found = await rows(migrated_url, "SELECT CAST(id AS TEXT) AS id, output FROM steps")
    stored = {row["id"]: row["output"] for row in found}
    assert {key: stored.get(key) for key in shown} == shown
    for text in _SAID:
        assert list(stored.values()).count(f"note: {text}") == 2
        assert list(stored.values()).count(f"found {text}") == 2
