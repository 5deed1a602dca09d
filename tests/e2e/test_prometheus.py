"""A real Prometheus scrapes a real Chainlit app under load, from the listener and from the app's own port."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest

from forebay.telemetry.catalogue import INSTRUMENTS, Kind
from tests.support.chainlit_client import ChainlitClient
from tests.support.chainlit_server import ChainlitServer, free_port
from tests.support.patience import patience
from tests.support.programs import program
from tests.support.prometheus import PrometheusServer

_RACE = Path(__file__).parent / "apps" / "race.py"
_CLIENTS, _TURNS = 10, 3
_SETTLED = " + ".join(
    f"sum(forebay_{name}_total{{job='listener'}})"
    for name in ("changes_coalesced", "rows_written", "changes_dropped", "changes_handed_over")
)
_BALANCE = f"sum(forebay_changes_accepted_total{{job='listener'}}) - ({_SETTLED})"


async def _chat(url: str, number: int) -> None:
    async with ChainlitClient(url, login=f"person{number}") as client:
        for turn in range(_TURNS):
            await client.say(f"question {number}.{turn}")


async def _until(condition: Callable[[], bool]) -> None:
    async with patience():
        while not await asyncio.to_thread(condition):  # noqa: ASYNC110 - Prometheus has nothing to wait on
            await asyncio.sleep(0.1)


@pytest.fixture
def listening(migrated_postgres_url: str, tmp_path: Path) -> ChainlitServer:
    """A Chainlit app whose metrics are on the port `metrics` and in the app; not started."""
    env = {
        "TEST_DATABASE_URL": migrated_postgres_url,
        "FOREBAY_METRICS_ADDRESS": f"127.0.0.1:{free_port()}",
        "FOREBAY_METRICS_IN_APP": "true",
    }
    return ChainlitServer(_RACE, tmp_path, env)


async def test_prometheus_scrapes_an_app_under_load(listening: ChainlitServer, tmp_path: Path) -> None:
    program("promtool")
    address = listening.env["FOREBAY_METRICS_ADDRESS"]
    targets = {"listener": address, "app": listening.url.removeprefix("http://")}
    with PrometheusServer(tmp_path, targets) as prometheus, listening:
        await asyncio.gather(*(_chat(listening.url, number) for number in range(_CLIENTS)))
        await _until(
            lambda: (
                prometheus.query("sum by (job) (forebay_changes_accepted_total) > 0 and on (job) up == 1")
                != []
            )
        )
        for job in targets:
            await _until(lambda job=job: _value(prometheus, f"up{{job='{job}'}}") == 1)  # type: ignore[misc]
        # A turn has a thread, a question, a run, two tools and an answer.
        rows = "sum(forebay_rows_written_total{job='%s',table='steps'})"
        await _until(lambda: _value(prometheus, rows % "listener") >= 5 * _CLIENTS * _TURNS)
        await _until(lambda: _value(prometheus, "forebay_queue_changes{job='listener'}") == 0)
        await _until(lambda: _value(prometheus, _BALANCE) == 0)
        await _until(lambda: _value(prometheus, rows % "app") == _value(prometheus, rows % "listener"))
        assert _value(prometheus, "forebay_ready{job='listener'}") == 1
        assert _value(prometheus, "forebay_queue_oldest_age_seconds{job='listener'}") == 0

        metadata = {name: found[0] for name, found in prometheus.api("metadata").items()}
        listed = {
            instrument.exposed: (
                "gauge" if instrument.kind is Kind.INFO else str(instrument.kind),
                instrument.help,
            )
            for instrument in INSTRUMENTS
        }
        scraped = {name: (found["type"], found["help"]) for name, found in metadata.items()}
        found = {
            instrument.exposed: scraped.get(instrument.exposed) or scraped.get(instrument.name)
            for instrument in INSTRUMENTS
        }
        # Newer servers ask for OpenMetrics, which has a type of its own for the build.
        info = "forebay_build_info"
        assert found.pop(info) in (listed.pop(info), ("info", "Versions of what runs, always 1."))
        assert found == listed
        await _check_with_promtool(f"http://{address}/metrics")


def _value(prometheus: PrometheusServer, expression: str) -> float:
    return sum(value for _, value in prometheus.query(expression))


async def _check_with_promtool(url: str) -> None:
    async with aiohttp.ClientSession() as http, http.get(url) as response:
        text = await response.read()
    done = subprocess.run(
        [program("promtool"), "check", "metrics"], input=text, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.parametrize("root", ["", "/sub"])
async def test_the_app_serves_the_metrics_and_its_own_pages(
    migrated_sqlite_url: str, tmp_path: Path, root: str
) -> None:
    env = {
        "TEST_DATABASE_URL": migrated_sqlite_url,
        "FOREBAY_METRICS_IN_APP": "true",
        "CHAINLIT_ROOT_PATH": root,
    }
    async with aiohttp.ClientSession() as http:
        with ChainlitServer(_RACE, tmp_path, env, path=f"{root}/") as server:
            async with ChainlitClient(server.url, path=root) as client:
                await client.say("a question")
            async with http.get(f"{server.url}{root}/metrics") as response:
                assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
                assert "forebay_changes_accepted_total" in await response.text()
            async with http.get(f"{server.url}{root}/elsewhere") as response:
                assert response.headers["Content-Type"].startswith("text/html")
