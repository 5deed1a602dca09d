"""What `forebay bench` makes of its figures: ratios, tables, pictures, and what its command line refuses."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import asdict
from pathlib import Path

import pytest
from click.testing import CliRunner

from forebay.bench import plot, tables
from forebay.bench.growth import GROWTH_SCALES, Growth
from forebay.bench.plan import (
    BATCH,
    CHAINLIT,
    FOREBAY,
    FOREBAY_EXTERNAL,
    FOREBAY_MEMORY,
    FOREBAY_READS,
    FULL,
    NO_LAYER,
    SCALES,
    SQLALCHEMY,
    WRITERS,
)
from forebay.bench.report import NoReport, Report, Result
from forebay.bench.targets import TARGETS, Target
from forebay.cli import main

FULL_GROWTH = GROWTH_SCALES["full"]
_THREAD, _PAGE, _LONG = "get_thread, 50 steps", "first page, 1,000 threads", "first page, 50,000 threads"


def _written(speed: float, cpu: float, **more: float | None) -> Result:
    return {
        "writes_per_second": speed, "rows_per_second": speed / 2, "cpu_us_per_write": cpu, "stale_steps": 0.0,
        "missing_steps": 0.0, "steps": 100.0, "connections_idle": 1.0, "connections_peak": 1.0, **more,
    }  # fmt: skip


def _report() -> Report:
    return Report(
        about={"cores": "2", "postgresql": "15", "fsync": "on", "python": "3.11", "chainlit": "2.12"},
        scale=json.loads(json.dumps(asdict(FULL))),
        command="forebay bench --full",
        writes={
            # Three rounds, whose median is not their mean.
            FOREBAY: [_written(10_000, 30), _written(20_000, 20), _written(90_000, 10)],
            FOREBAY_EXTERNAL: [_written(30_000, 16, daemon_cpu_us_per_write=9.0)],
            FOREBAY_MEMORY: [_written(25_000, 15)],
            SQLALCHEMY: [_written(400, 1900, stale_steps=30.0)],
            CHAINLIT: [_written(1_000, 600)],
            NO_LAYER: [{"writes_per_second": 90_000.0, "cpu_us_per_write": 8.0}],
            BATCH: [{"rows_per_second": 40_000.0, "cpu_us_per_row": 5.0}],
        },
        rows={
            FOREBAY: [{"rows_per_second": 20_000.0, "stale_steps": 0.0}],
            BATCH: [{"rows_per_second": 40_000.0}],
        },
        steady={FOREBAY: [_written(10_000, 30, lag_p99_ms=12.5)]},
        reads={
            FOREBAY_READS: {
                _THREAD: [{"p50_ms": 1.0, "p99_ms": 2.0}],
                _PAGE: [{"p50_ms": 0.5, "p99_ms": 2.0}],
                _LONG: [{"p50_ms": 0.6, "p99_ms": 2.0}],
            },
            SQLALCHEMY: {_THREAD: [{"p50_ms": 6.0, "p99_ms": 9.0}], _PAGE: [{"over_ms": 20_000.0}]},
            CHAINLIT: {_THREAD: [{"p50_ms": 3.0, "p99_ms": 9.0}], _PAGE: [{"p50_ms": 8.0, "p99_ms": 9.0}]},
        },
    )


def _target(start: str) -> Target:
    [found] = [target for target in TARGETS if target.figure.startswith(start)]
    return found


@pytest.mark.parametrize(
    ("start", "value", "reached"),
    [
        (f"durable writes/s, journal on, against {SQLALCHEMY}", 50.0, True),
        (f"durable writes/s, journal on, against {CHAINLIT}", 20.0, True),
        ("durable writes/s, journal on, against durability=memory", 80.0, True),
        ("CPU in the process a write, journal on", 20.0, True),
        ("CPU in the process a write, writer=external", 16.0, False),
        ("rows/s", 50.0, False),
        ("stale or missing", 0.0, True),
        (f"get_thread, 50 steps, against {CHAINLIT}", 3.0, True),
        (f"get_thread, 50 steps, against {SQLALCHEMY}", 6.0, False),
        (f"list_threads, 1,000 threads, against {CHAINLIT}", 16.0, True),
        ("list_threads, 50,000 threads", 1.2, True),
        ("event-loop lag", 12.5, False),
        ("connections, idle", 1.0, True),
        ("connections under", 1.0, True),
    ],
)
def test_a_target_is_measured_by_medians(start: str, value: float, reached: bool) -> None:
    target = _target(start)
    measured = target.measure(_report())
    assert measured is not None
    assert measured.value == pytest.approx(value)
    assert not measured.at_least
    assert target.is_reached(measured) is reached


def test_a_peer_that_was_ended_counts_as_slow_as_its_limit_at_least() -> None:
    target = _target(f"list_threads, 1,000 threads, against {SQLALCHEMY}")
    measured = target.measure(_report())
    assert measured is not None
    assert measured.at_least
    assert measured.value == 40_000
    text = tables.markdown(_report())
    assert "> 40,000 x" in text
    assert "> 20 s" in text


def test_what_was_not_measured_is_no_target() -> None:
    assert [target.figure for target in TARGETS if target.measure(Report()) is not None] == []
    half = Report(reads=_report().reads, scale=asdict(FULL))
    assert [grid.title.split(",")[0] for grid in tables.grids(half)] == ["Reads", "What forebay is to reach"]


def test_every_round_counts_for_what_forebay_has_lost() -> None:
    report = _report()
    assert report.lost == 0  # the peers' losses are theirs
    report.writes[FOREBAY][0]["stale_steps"] = 2.0
    report.rows[FOREBAY][0]["missing_steps"] = 1.0
    report.steady[FOREBAY][0]["missing_steps"] = 3.0
    assert report.lost == 6
    assert report.write(FOREBAY, "stale_steps") == 0  # which a median would not show


def test_a_table_has_a_row_for_each_layer_and_says_what_is_the_benchmarks_own() -> None:
    text = tables.markdown(_report())
    assert "| forebay, journal | 20,000 | 10,000 | 20.0 |" in text
    assert "| forebay, external | 30,000 | 15,000 | 16.0 + 9.0 |" in text
    assert f"| {SQLALCHEMY} | 1 / 1 | - | 30 | 0 | 100 |" in text
    assert "20 µs (8 the benchmark's)" in text
    assert "`forebay bench --full`" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.count("|") >= 3 for line in lines)


def test_a_report_is_what_was_saved(tmp_path: Path) -> None:
    path = tmp_path / "new" / "bench.json"
    _report().save(path)
    assert Report.load(path) == _report()


@pytest.mark.parametrize(
    "text", ["", "[]", "{}]", '{"something": 1}'], ids=["empty", "list", "broken", "other"]
)
def test_a_file_of_something_else_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    path.write_text(text)
    with pytest.raises(NoReport, match=r"bench\.json is no result"):
        Report.load(path)


@pytest.mark.parametrize("suffix", plot.SUFFIXES)
def test_a_picture_is_drawn(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / f"bench{suffix}"
    plot.draw(_report(), path)
    starts = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}
    assert path.read_bytes().startswith(starts[suffix])


def test_the_same_figures_give_the_same_picture(tmp_path: Path) -> None:
    paths = [tmp_path / "one.svg", tmp_path / "two.svg"]
    for path in paths:
        plot.draw(_report(), path)
    one, two = (path.read_text() for path in paths)
    assert one == two
    assert "20,000" in one
    assert "&gt; 20,000" in one  # what was ended


@pytest.mark.parametrize("half", ["writes", "reads"])
def test_half_a_report_is_drawn_too(half: str, tmp_path: Path) -> None:
    report = Report(**{half: getattr(_report(), half)})
    plot.draw(report, tmp_path / "half.svg")
    text = (tmp_path / "half.svg").read_text()
    assert ("Reads" in text) is (half == "reads")
    assert ("writes a second" in text) is (half == "writes")


@pytest.mark.parametrize("scale", SCALES.values(), ids=lambda scale: scale.name)
def test_a_tenth_page_is_asked_for_where_there_is_one(scale: object) -> None:
    names = [reading.name for reading in scale.readings]  # type: ignore[attr-defined]
    assert "tenth page, 50 threads" not in names
    assert ("tenth page, 1,000 threads" in names) is (1000 in scale.owned)  # type: ignore[attr-defined]


def test_writers_have_names_of_their_own() -> None:
    assert len({subject.name for subject in WRITERS}) == len(WRITERS)


# ---- the command line


def _saved(tmp_path: Path, report: Report) -> str:
    path = tmp_path / "bench.json"
    report.save(path)
    return str(path)


def test_what_was_saved_is_shown_again(tmp_path: Path) -> None:
    path = _saved(tmp_path, _report())
    drawn = tmp_path / "bench.svg"
    shown = CliRunner().invoke(main, ["bench", "--load", path, "--plot", str(drawn)])
    assert shown.exit_code == 0
    assert "What forebay is to reach" in shown.output
    assert drawn.exists()
    as_json = CliRunner().invoke(main, ["bench", "--load", path, "--json"])
    assert json.loads(as_json.output) == asdict(_report())
    as_markdown = CliRunner().invoke(main, ["bench", "--load", path, "--markdown"])
    assert as_markdown.output == tables.markdown(_report()) + "\n"


def test_a_lost_step_is_an_error(tmp_path: Path) -> None:
    report = _report()
    report.steady[FOREBAY][0]["missing_steps"] = 3.0
    done = CliRunner().invoke(main, ["bench", "--load", _saved(tmp_path, report)])
    assert done.exit_code == 1
    assert "forebay has lost 3 steps" in done.output


def test_a_picture_in_another_format_is_refused_before_anything_is_measured() -> None:
    done = CliRunner().invoke(main, ["bench", "--plot", "bench.gif"])
    assert done.exit_code == 2
    assert ".png, .svg, .pdf" in done.output


def test_without_matplotlib_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name)
    )
    done = CliRunner().invoke(main, ["bench", "--plot", "bench.svg"])
    assert done.exit_code == 1
    assert "pip install 'forebay[bench]'" in done.output


def test_without_a_postgresql_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from forebay.bench import postgres

    monkeypatch.setattr(postgres, "_system_binaries", lambda: iter([]))
    monkeypatch.setattr(postgres, "wheel_binaries", lambda: iter([]))
    done = CliRunner().invoke(main, ["bench", "--quick"])
    assert done.exit_code == 1
    assert "pip install 'forebay[bench]'" in done.output
    assert "Traceback" not in done.output


# ---- growth


def _growth() -> Growth:
    def points(speed: float) -> list[Result]:
        return [
            {"at": float(at), **_written(speed, 30), "read_after_ms": 2.0} for at in FULL_GROWTH.sessions[:3]
        ]

    ended: Result = {"at": 1000.0, "over_s": 60.0}
    return Growth(
        about=_report().about,
        scale=json.loads(json.dumps(asdict(FULL_GROWTH))),
        axes={
            "sessions": {FOREBAY: points(20_000), CHAINLIT: points(1000), SQLALCHEMY: [*points(400), ended]},
            "steps": {
                FOREBAY: [{"at": 0.0, **_written(20_000, 30)}, {"at": 50_000.0, **_written(19_000, 30)}]
            },
        },
    )


def test_a_line_ends_where_nothing_was_measured() -> None:
    assert _growth().line("sessions", SQLALCHEMY, "writes_per_second") == [(10, 400), (50, 400), (200, 400)]
    assert _growth().line("sessions", FOREBAY, "lag_p99_ms") == []
    assert _growth().line("size", FOREBAY, "writes_per_second") == []


def test_what_grows_has_tables_by_place() -> None:
    text = tables.markdown(_growth())
    rows = [line for line in text.splitlines() if line.startswith("| 10 |")]
    assert [row.split(" | ")[1] for row in rows] == [FOREBAY, CHAINLIT, SQLALCHEMY]
    assert f"| 1,000 | {SQLALCHEMY} | > 60 s | - |" in text
    assert "One round on 2 cores" in text


def test_what_grows_is_drawn_one_by_one(tmp_path: Path) -> None:
    drawn = plot.draw_growth(_growth(), tmp_path / "growth.svg")
    assert [path.name for path in drawn] == ["growth-steps.svg", "growth-sessions.svg"]
    assert "chats at once" in drawn[1].read_text()


def test_what_forebay_has_lost_while_something_grows_is_an_error(tmp_path: Path) -> None:
    growth = _growth()
    growth.axes["sessions"][CHAINLIT][0]["stale_steps"] = 5.0
    assert growth.lost == 0
    growth.axes["steps"][FOREBAY][1]["stale_steps"] = 2.0
    growth.save(tmp_path / "growth.json")
    arguments = [
        "bench",
        "--growth",
        "--load",
        str(tmp_path / "growth.json"),
        "--plot",
        str(tmp_path / "x.png"),
    ]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 1
    assert "forebay has lost 2 steps" in done.output
    assert (tmp_path / "x-steps.png").exists()


@pytest.mark.parametrize("option", [("--rounds", "2"), ("--only", "reads")], ids=["rounds", "only"])
def test_what_grows_has_neither_rounds_nor_halves(option: tuple[str, str]) -> None:
    done = CliRunner().invoke(main, ["bench", "--growth", *option])
    assert done.exit_code == 2
    assert "neither --rounds nor --only" in done.output
