"""The database goes away while people log in and chat: what they began is theirs when it is back."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.support.chainlit_client import ChainlitClient
from tests.support.chainlit_server import ChainlitServer
from tests.support.patience import patience
from tests.support.postgres import PostgresServer

_RACE = Path(__file__).parent / "apps" / "race.py"


async def _in_the_sidebar(client: ChainlitClient) -> list[str]:
    """The threads there, as soon as there are any; the page fails for as long as the database is away."""
    async with patience():
        while True:
            try:
                found = [str(thread["id"]) for thread in await client.history()]
            except AssertionError:
                found = []
            if found:
                return found
            await asyncio.sleep(0.1)


@pytest.mark.parametrize("durability", ["journal", "memory"])
async def test_what_people_began_is_theirs(
    durable_postgres_server: PostgresServer, tmp_path: Path, durability: str
) -> None:
    url = durable_postgres_server.create_database()
    env = {"TEST_DATABASE_URL": url, "FOREBAY_AUTO_MIGRATE": "true", "FOREBAY_DURABILITY": durability}
    with ChainlitServer(_RACE, tmp_path, env) as server:
        async with ChainlitClient(server.url, login="seen") as before:
            await before.say("hello")
        await asyncio.to_thread(durable_postgres_server.crash)
        async with (
            ChainlitClient(server.url, login="seen") as seen,
            ChainlitClient(server.url, login="new") as new,
        ):
            said = {client: await client.say("still there?") for client in (seen, new)}
            await asyncio.to_thread(durable_postgres_server.start)
            for client in (seen, new):
                assert client.thread_id in await _in_the_sidebar(client)
                thread = await client.thread(client.thread_id)
                assert thread["userIdentifier"] == client.login
                assert said[client]["id"] in {step["id"] for step in thread["steps"]}
        server.stop()
