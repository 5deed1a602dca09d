"""`forebay bench --growth` from end to end, as small as it gets, and the network's distance that it makes."""

from __future__ import annotations

import time
from pathlib import Path

import asyncpg
from click.testing import CliRunner

from forebay.bench.growth import AXES, GROWTH_SCALES, SUBJECTS, Growth
from forebay.bench.proxy import DelayingProxy
from forebay.cli import main
from tests.support.patience import PATIENCE, patience
from tests.support.postgres import PostgresServer

_ROUND_TRIP = 0.03  # seconds


def test_everything_that_grows_is_measured(postgres_server: PostgresServer, tmp_path: Path) -> None:
    arguments = ["bench", "--growth", "--tiny", "--url", postgres_server.home]
    arguments += ["--save", str(tmp_path / "growth.json"), "--plot", str(tmp_path / "growth.svg")]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    growth, scale = Growth.load(tmp_path / "growth.json"), GROWTH_SCALES["tiny"]
    places = dict(zip(AXES, (scale.steps, scale.sessions, scale.sizes, scale.distances), strict=True))
    for axis, at in places.items():
        assert (tmp_path / f"growth-{axis}.svg").exists()
        for subject in SUBJECTS:
            for figure in ("writes_per_second", "read_after_ms", "read_during_ms", "missing_steps"):
                assert [place for place, _ in growth.line(axis, subject.name, figure)] == list(at)
    assert growth.lost == 0
    [[_, far]] = growth.line("distance", SUBJECTS[0].name, "read_after_ms")
    [[_, near]] = growth.line("sessions", SUBJECTS[0].name, "read_after_ms")
    assert far >= scale.distances[-1] > 0  # a read can't be there sooner
    assert near > 0


async def test_an_answer_takes_a_round_trip(postgres_url: str) -> None:
    async with DelayingProxy(postgres_url, _ROUND_TRIP) as proxy:
        connection = await asyncpg.connect(proxy.url(postgres_url))
        started = time.perf_counter()
        assert await connection.fetchval("SELECT 1") == 1
        # The statement is prepared in one round trip, and run in another.
        assert time.perf_counter() - started >= 2 * _ROUND_TRIP
        text = "x" * 3_000_000
        assert await connection.fetchval("SELECT $1::text", text) == text
        await connection.close()


async def test_pieces_do_not_wait_for_one_another(postgres_url: str) -> None:
    async with DelayingProxy(postgres_url, _ROUND_TRIP) as proxy:
        connection = await asyncpg.connect(proxy.url(postgres_url))
        statement = await connection.prepare("SELECT repeat('x', 20000000)")
        # That many pieces, one behind the other, would take longer than anybody waits.
        proxy._delay = 2 * PATIENCE / (20_000_000 / 65536)
        async with patience():
            assert len(await statement.fetchval()) == 20_000_000
        await connection.close()


async def test_a_proxy_ends_with_its_connections_open(postgres_url: str) -> None:
    async with DelayingProxy(postgres_url, 0) as proxy:
        connection = await asyncpg.connect(proxy.url(postgres_url))
        assert await connection.fetchval("SELECT 1") == 1
    connection.terminate()
