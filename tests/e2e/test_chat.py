"""The real Chainlit server and clients on its websocket: what people saw is what the database has."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.support.chainlit_client import ChainlitClient
from tests.support.chainlit_server import ChainlitServer
from tests.support.rows import rows

_RACE = Path(__file__).parent / "apps" / "race.py"
_CLIENTS, _TURNS = 20, 5


async def _chat(url: str, number: int, shown: dict[str, str]) -> None:
    async with ChainlitClient(url, login=f"person{number}") as client:
        for turn in range(_TURNS):
            answer = await client.say(f"question {number}.{turn}")
            shown[answer["id"]] = answer["output"]


async def test_every_answer_that_was_shown_is_stored_whole(migrated_url: str, tmp_path: Path) -> None:
    # With LAYER=sqlalchemy in the environment Chainlit's own layer fails this on PostgreSQL.
    shown: dict[str, str] = {}
    with ChainlitServer(_RACE, tmp_path, {"TEST_DATABASE_URL": migrated_url}) as server:
        await asyncio.gather(*(_chat(server.url, number, shown) for number in range(_CLIENTS)))
        server.stop()
    found = await rows(migrated_url, "SELECT CAST(id AS TEXT) AS id, name, type, input, output FROM steps")
    stored = {row["id"]: row["output"] for row in found}

    assert len(shown) == _CLIENTS * _TURNS
    assert all(output.endswith("and all of it") for output in shown.values())
    assert {key: output for key, output in shown.items() if stored.get(key) != output} == {}
    tools = [row for row in found if row["type"] == "tool"]
    assert len(tools) == 2 * len(shown)
    assert [row for row in tools if row["output"] != f"{row['name']} found {row['input']}"] == []


@pytest.mark.parametrize("ending", ["stop", "kill"])
async def test_a_chat_goes_on_in_the_servers_second_life(
    migrated_postgres_url: str, tmp_path: Path, ending: str
) -> None:
    env = {"TEST_DATABASE_URL": migrated_postgres_url}
    if ending == "kill":  # with nothing in the database yet, and all in the journal
        env |= {"FOREBAY_DURABILITY": "journal", "FOREBAY_LINGER": "10"}
    server = ChainlitServer(_RACE, tmp_path, env)
    with server:
        async with ChainlitClient(server.url) as client:
            said = [await client.say(f"question {turn}") for turn in range(10)]
            thread_id = client.thread_id
            if ending == "kill":
                await asyncio.sleep(0.5)  # an answer is shown before its write is acknowledged
                assert await rows(migrated_postgres_url, "SELECT id FROM steps") == []
                server.kill()
            else:
                server.stop()

        server.start()
        async with ChainlitClient(server.url, thread_id=thread_id) as again:
            history = await again.history()
            assert [(thread["id"], thread["name"]) for thread in history] == [(thread_id, "question 0")]
            thread = await again.thread(thread_id)
            if ending == "stop":
                assert thread["metadata"]["client_type"] == "webapp", "what the disconnect wrote"
            assert again.resumed is not None
            assert [step["id"] for step in again.resumed["steps"]] == [step["id"] for step in thread["steps"]]
            _check_turns(thread["steps"], [answer["output"] for answer in said])
            await again.say("question 10")
            assert len((await again.thread(thread_id))["steps"]) == len(thread["steps"]) + 5


def _check_turns(steps: list[dict[str, Any]], answers: list[str]) -> None:
    """Every turn is there, in order: a question, its run, two tools with their output, the answer."""
    assert [step["type"] for step in steps] == [
        "user_message",
        "run",
        "tool",
        "tool",
        "assistant_message",
    ] * 10
    asked = [step["output"] for step in steps if step["type"] == "user_message"]
    assert asked == [f"question {turn}" for turn in range(10)]
    assert [step["output"] for step in steps if step["type"] == "assistant_message"] == answers
    found = [step["output"] for step in steps if step["type"] == "tool"]
    assert found == [f"{name} found {question}" for question in asked for name in ("search", "read")]


async def test_what_people_do_with_a_chat(migrated_postgres_url: str, tmp_path: Path) -> None:
    with ChainlitServer(_RACE, tmp_path, {"TEST_DATABASE_URL": migrated_postgres_url}) as server:
        async with ChainlitClient(server.url) as client:
            answer = await client.say("the first question")
            thread_id = client.thread_id
            await client.rate(answer["id"], 0)
            await client.rename(thread_id, "A better name")
            steps = {step["id"]: step for step in (await client.thread(thread_id))["steps"]}
            assert steps[answer["id"]]["feedback"]["value"] == 0
            assert [thread["name"] for thread in await client.history()] == ["A better name"]
            assert [thread["id"] for thread in await client.history(search="ALL OF IT")] == [thread_id]
            assert await client.history(search="nowhere said") == []
            await client.disconnect()  # writes the session's metadata, which must not undo the name
            async with ChainlitClient(server.url) as other:
                assert [thread["name"] for thread in await other.history()] == ["A better name"]
                await other.delete(thread_id)
                assert await other.history() == []
