"""A person with one chat open in two windows: the one that is closed last undoes nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from tests.support.chainlit_client import ChainlitClient
from tests.support.chainlit_server import ChainlitServer
from tests.support.patience import patience
from tests.support.rows import rows

_WINDOWS = Path(__file__).parent / "apps" / "windows.py"


async def _metadata_with(client: ChainlitClient, key: str) -> dict[str, Any]:
    """The thread's metadata, once a closed window has written it."""
    async with patience():
        while True:
            metadata: dict[str, Any] = (await client.thread(client.thread_id))["metadata"]
            if key in metadata:
                return metadata
            await asyncio.sleep(0.05)


async def test_a_closed_window_undoes_neither_a_rename_nor_an_unshare(
    migrated_url: str, tmp_path: Path
) -> None:
    with ChainlitServer(_WINDOWS, tmp_path, {"TEST_DATABASE_URL": migrated_url}) as server:
        async with ChainlitClient(server.url) as first:
            await first.say("First words")
            await first.share(first.thread_id, True)
            second = ChainlitClient(server.url, thread_id=first.thread_id)
            async with second:
                assert second.resumed is not None
                assert second.resumed["metadata"]["is_shared"] is True
                await second.rename(first.thread_id, "Renamed")
                await second.share(first.thread_id, False)
                await second.disconnect(clear=True)
                await first.disconnect(clear=True)
                metadata = await _metadata_with(first, "name")
        server.stop()
    assert metadata["name"] == "Ada"
    (row,) = await rows(migrated_url, "SELECT name, CAST(metadata AS TEXT) AS metadata FROM threads")
    assert row["name"] == "Renamed"
    assert '"is_shared": false' in row["metadata"].replace('":', '": ').replace(":  ", ": ")
