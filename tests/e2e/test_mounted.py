"""Mounted in another application, Chainlit closes nothing; forebay's lifespan does."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.support.chainlit_client import ChainlitClient
from tests.support.chainlit_server import ChainlitServer
from tests.support.patience import FOR_EVER


async def test_what_is_queued_is_written_when_the_parent_application_ends(
    migrated_sqlite_url: str, tmp_path: Path
) -> None:
    # The shutdown must not wait for what lingers, nor lose it.
    env = {"TEST_DATABASE_URL": migrated_sqlite_url, "TEST_LINGER": str(FOR_EVER)}
    command = (str(Path(__file__).parent / "apps" / "mounted.py"), "{port}")
    with ChainlitServer(None, tmp_path, env, command, path="/chat/") as server:
        async with ChainlitClient(server.url, path="/chat") as client:
            said = [(await client.say(f"question {turn}"))["output"] for turn in range(3)]
            assert _rows(migrated_sqlite_url, "SELECT output FROM steps") == []
            server.stop()
            thread_id = client.thread_id
    query = "SELECT output FROM steps WHERE type = 'assistant_message' ORDER BY \"createdAt\""
    assert _rows(migrated_sqlite_url, query) == [(output,) for output in said]
    assert _rows(migrated_sqlite_url, "SELECT id, name FROM threads") == [(thread_id, "question 0")]


def _rows(url: str, query: str) -> list[Any]:
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
        return connection.execute(query).fetchall()
