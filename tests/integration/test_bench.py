"""`forebay bench` from end to end, as small as it gets: every layer, every kind of figure, nothing left behind."""

from __future__ import annotations

import json
import math
import uuid

import pytest
from click.testing import CliRunner

from forebay import ForebayDataLayer, Settings
from forebay.bench import writes
from forebay.bench.plan import CHAINLIT, READERS, ROW_WRITERS, SQLALCHEMY, STEADY, TINY, WRITERS, Subject
from forebay.bench.processes import MeasurementFailed, Processes
from forebay.bench.report import Report, Runs
from forebay.bench.workload import Written
from forebay.cli import main
from tests.support.postgres import PostgresServer

_LAYER_FIGURES = {
    "writes_per_second", "cpu_us_per_write", "call_p50_ms", "call_p99_ms", "peak_mib", "connections_idle",
    "connections_peak", "stale_steps", "missing_steps", "rows_per_second",
}  # fmt: skip
_FLOOR_FIGURES = {"rows_per_second", "cpu_us_per_row", "peak_mib"}


def _databases(server: PostgresServer) -> set[str]:
    return {row[0] for row in server.execute("SELECT datname FROM pg_database")}


@pytest.fixture(scope="module")
def report(postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Report:
    folder = tmp_path_factory.mktemp("bench")
    before = _databases(postgres_server)
    arguments = ["bench", "--tiny", "--json", "--url", postgres_server.home]
    arguments += ["--save", str(folder / "bench.json"), "--plot", str(folder / "bench.svg")]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert _databases(postgres_server) <= before  # other tests may have dropped theirs meanwhile
    assert (folder / "bench.svg").exists()
    loaded = Report.load(folder / "bench.json")
    assert json.loads(done.stdout)["writes"] == loaded.writes
    return loaded


def test_every_subject_is_measured(report: Report) -> None:
    assert list(report.writes) == [subject.name for subject in WRITERS]
    assert list(report.rows) == [subject.name for subject in ROW_WRITERS]
    assert list(report.steady) == [subject.name for subject in STEADY]
    assert list(report.reads) == [subject.name for subject in READERS]


@pytest.mark.parametrize("subject", WRITERS, ids=lambda subject: subject.name)
def test_every_figure_is_there(report: Report, subject: Subject) -> None:
    kind, name = subject.kind, subject.name
    [result] = report.writes[name]
    expected = _FLOOR_FIGURES if subject.is_floor else _LAYER_FIGURES
    if kind == "none":
        expected = expected - {"stale_steps", "missing_steps", "rows_per_second"}
    assert expected <= result.keys()
    assert all(math.isfinite(value) for value in result.values() if value is not None)


def test_forebay_loses_nothing_and_all_of_it_is_written(report: Report) -> None:
    assert report.lost == 0
    steps = TINY.sessions * TINY.turns * 5
    for runs in (report.writes, report.rows):
        for name, [result] in runs.items():
            if name.startswith("forebay"):
                assert result["steps"] == steps
                assert result["rows_per_second"] == pytest.approx(steps / (result["seconds"] or 0))


def test_the_peers_lose_no_whole_step(report: Report) -> None:
    for name in (SQLALCHEMY, CHAINLIT):
        [result] = report.writes[name]
        assert result["missing_steps"] == 0
        assert result["steps"] == TINY.sessions * TINY.peer_turns * 5


def test_forebay_has_one_connection(report: Report) -> None:
    for runs in (report.writes, report.steady):
        for name, [result] in runs.items():
            if name.startswith("forebay"):
                assert result["connections_idle"] == 1
                # At its close a reader may forget the checkpoint.
                assert (result["connections_peak"] or 0) <= 2
    assert report.write(CHAINLIT, "connections_idle") == 10  # so they are counted


def test_each_kind_of_read_is_measured(report: Report) -> None:
    for subject in READERS:
        found = report.reads[subject.name]
        assert list(found) == [reading.name for reading in TINY.readings]
        assert all((result["p50_ms"] or 0) > 0 for [result] in found.values())


@pytest.mark.usefixtures("chainlit_context")
async def test_stale_and_missing_steps_are_found(migrated_postgres_url: str) -> None:
    layer = ForebayDataLayer(migrated_postgres_url, settings=Settings(durability="memory"))
    thread_id, steps = str(uuid.uuid4()), [str(uuid.uuid4()) for _ in range(4)]
    for step_id in steps[:3]:
        await layer.create_step({"id": step_id, "threadId": thread_id, "output": "last"})
    await layer.close()
    written = Written()
    written.last = {**dict.fromkeys(steps, "last"), steps[0]: "newer"}
    found = await writes.audit(WRITERS[0], migrated_postgres_url, written, 2.0)
    assert found == {"stale_steps": 1, "missing_steps": 1, "steps": 4, "rows_per_second": 1.5}


async def test_an_order_that_fails_says_why() -> None:
    async with Processes() as processes:
        with pytest.raises(MeasurementFailed, match=r"tables failed: .*Connect"):
            await processes.order(
                "tables", subject={"name": "x", "kind": "chainlit"}, url="postgresql://x@127.0.0.1:1/x"
            )
        # The next one is obeyed all the same.
        assert (await processes.order("nothing", subject={"name": "x", "kind": "none"}, url="")).results == []


async def test_a_read_that_takes_too_long_ends_its_process(
    postgres_server: PostgresServer, report: Report
) -> None:
    from dataclasses import replace

    from forebay.bench import seed
    from forebay.bench.run import Bench

    async with Bench(postgres_server, lambda _: None) as bench:
        url = await bench.fill("forebay", seed.groups((50,), 200))
        hasty = replace(TINY, limit=0.0005)
        found: Runs = {}
        await bench.read(found, READERS[1], url, hasty)
    assert list(found) == [reading.name for reading in TINY.readings]
    assert all(results == [{"over_ms": 0.5}] for results in found.values())
