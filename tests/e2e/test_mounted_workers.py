"""Chainlit in several workers of one command: each takes its share of the chats, and one scrape has all of them."""

from __future__ import annotations

import os
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.chainlit_client import ChainlitClient
from tests.support.chainlit_server import ChainlitServer, free_port
from tests.support.patience import patience
from tests.support.rows import become

_APPS = Path(__file__).parent / "apps"
_WRITTEN = "forebay_rows_written_total"


_long = pytest.mark.skipif(
    os.environ.get("FOREBAY_TEST_LONG") != "1",
    reason="FOREBAY_TEST_LONG=1; the listeners alone are tested always",
)


@_long
async def test_one_scrape_has_what_all_workers_wrote(migrated_postgres_url: str, tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    env = {"TEST_DATABASE_URL": migrated_postgres_url, "FOREBAY_METRICS_ADDRESS": address}
    command = ("-m", "uvicorn", "mounted:app", "--app-dir", str(_APPS), "--workers", "2", "--port", "{port}")
    with ChainlitServer(None, tmp_path, env, command, path="/chat/") as server:
        try:
            said = 0
            async with patience(), aiohttp.ClientSession() as http:
                while len(written := await _written(http, address)) < 2 or min(written.values()) == 0:
                    async with ChainlitClient(server.url, path="/chat") as client:
                        answer = await client.say(f"question {said}")
                        assert answer["output"].endswith("and all of it")
                        said += 1
                        # Its next request may meet another worker than its chat has.
                        assert len(await client.history()) == min(said, 20)
                query = "SELECT count(*) AS n FROM steps WHERE type = 'user_message'"
                await become(migrated_postgres_url, query, [{"n": said}])
                steps = f"SELECT count(*) >= 5 * {said} AS enough FROM steps"
                await become(migrated_postgres_url, steps, [{"enough": True}])
        finally:
            server.stop()


async def _written(http: aiohttp.ClientSession, address: str) -> dict[str, float]:
    """How many rows each worker has written, in one scrape."""
    async with http.get(f"http://{address}/metrics") as response:
        families = text_string_to_metric_families(await response.text())
    samples = [sample for family in families for sample in family.samples if sample.name == _WRITTEN]
    found: dict[str, float] = {}
    for sample in samples:
        worker = sample.labels.get("worker", "")
        found[worker] = found.get(worker, 0) + sample.value
    return found
