"""Mounted in another application, Chainlit closes nothing; forebay's lifespan does."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import aiohttp

from tests.support.chainlit_server import ChainlitServer


async def test_what_is_queued_is_written_when_the_parent_application_ends(
    migrated_sqlite_url: str, tmp_path: Path
) -> None:
    # A linger of ten seconds: the shutdown must not wait for it, nor lose what waits.
    env = {"TEST_DATABASE_URL": migrated_sqlite_url, "FOREBAY_LINGER": "10"}
    command = (str(Path(__file__).parent / "apps" / "mounted.py"), "{port}")
    with ChainlitServer(None, tmp_path, env, command, path="/chat/") as server:
        thread_id = "3e0bdb0c-58bb-4a8a-9a49-1f0a4a7f3b7f"
        async with aiohttp.ClientSession(server.url, cookie_jar=aiohttp.CookieJar(unsafe=True)) as http:
            login = {"username": "ann", "password": "x"}
            async with http.post("/chat/login", data=login) as response:
                assert response.status == 200
            async with http.post("/queue", params={"thread_id": thread_id}) as response:
                assert response.status == 200
        path = migrated_sqlite_url.removeprefix("sqlite:///")
        with sqlite3.connect(path) as connection:
            assert connection.execute("SELECT name FROM threads").fetchall() == []
        server.stop()
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT id, name FROM threads").fetchall() == [(thread_id, "queued")]
