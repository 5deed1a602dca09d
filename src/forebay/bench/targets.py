"""What forebay is to reach beside its peers, and what it has reached."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from forebay.bench.plan import (
    BATCH,
    CHAINLIT,
    FOREBAY,
    FOREBAY_EXTERNAL,
    FOREBAY_MEMORY,
    FOREBAY_READS,
    NO_LAYER,
    SQLALCHEMY,
)
from forebay.bench.report import Report

_THREAD, _PAGE, _LONG_PAGE = "get_thread, 50 steps", "first page, 1,000 threads", "first page, 50,000 threads"


@dataclass(frozen=True)
class Measured:
    """A value; `at_least`: a peer's part of it was ended at its time limit, so that it is more than this."""

    value: float
    at_least: bool = False


@dataclass(frozen=True)
class Target:
    """`goal` is to be reached from below (`at least`) or kept (`at most`). `measure` is None where it was not run."""

    figure: str
    goal: float
    bound: Literal["at least", "at most"]
    unit: str
    measure: Callable[[Report], Measured | None]

    def is_reached(self, measured: Measured) -> bool:
        """Whether a value is where it should be."""
        return measured.value >= self.goal if self.bound == "at least" else measured.value <= self.goal


def _ratio(above: float | None, below: float | None) -> Measured | None:
    return Measured(above / below) if above is not None and below else None


def _value(value: float | None) -> Measured | None:
    return Measured(value) if value is not None else None


def _writes_against(peer: str) -> Callable[[Report], Measured | None]:
    figure = "writes_per_second"
    return lambda report: _ratio(report.write(FOREBAY, figure), report.write(peer, figure))


def _faster_than(peer: str, reading: str) -> Callable[[Report], Measured | None]:
    def measure(report: Report) -> Measured | None:
        mine, over = report.read(FOREBAY_READS, reading), report.over(peer, reading)
        ratio = _ratio(over if over is not None else report.read(peer, reading), mine)
        return Measured(ratio.value, at_least=over is not None) if ratio else None

    return measure


def _cpu(subject: str) -> Callable[[Report], Measured | None]:
    return lambda report: _value(report.write(subject, "cpu_us_per_write"))


def _percent(ratio: Measured | None) -> Measured | None:
    return Measured(ratio.value * 100) if ratio else None


def _rows(report: Report) -> Measured | None:
    figure = "rows_per_second"
    return _percent(
        _ratio(report.write(FOREBAY, figure, report.rows), report.write(BATCH, figure, report.rows))
    )


def _against_memory(report: Report) -> Measured | None:
    return _percent(_writes_against(FOREBAY_MEMORY)(report))


def _light_cpu(report: Report) -> Measured | None:
    """Less what the benchmark itself costs."""
    mine, own = (report.write(name, "cpu_us_per_write", report.light) for name in (FOREBAY, NO_LAYER))
    return Measured(mine - own) if mine is not None and own is not None else None


def _light_call(report: Report) -> Measured | None:
    return _value(report.write(FOREBAY, "call_p99_ms", report.light))


def _paced_wal(report: Report) -> Measured | None:
    wal = report.write(FOREBAY, "wal_bytes_per_turn", report.paced)
    return Measured(wal / 1000) if wal is not None else None


def _paced(figure: str) -> Callable[[Report], Measured | None]:
    return lambda report: _value(report.write(FOREBAY, figure, report.paced))


def _start(figure: str) -> Callable[[Report], Measured | None]:
    return lambda report: _value(report.write(FOREBAY, figure, report.start))


def _flat(report: Report) -> Measured | None:
    return _ratio(report.read(FOREBAY_READS, _LONG_PAGE), report.read(FOREBAY_READS, _PAGE))


TARGETS: tuple[Target, ...] = (
    Target(f"durable writes/s, journal on, against {SQLALCHEMY}", 50, "at least", "x", _writes_against(SQLALCHEMY)),
    Target(f"durable writes/s, journal on, against {CHAINLIT}", 20, "at least", "x", _writes_against(CHAINLIT)),
    Target("durable writes/s, journal on, against durability=memory", 70, "at least", "%", _against_memory),
    Target("CPU in the process a write, journal on", 25, "at most", "µs", _cpu(FOREBAY)),
    Target("CPU in the process a write, writer=external", 15, "at most", "µs", _cpu(FOREBAY_EXTERNAL)),
    Target("rows/s into the database, each write a row, against the bare batch statement", 70, "at least", "%", _rows),
    Target(
        "stale or missing steps", 0, "at most", "", lambda report: Measured(report.lost) if report.writes else None
    ),
    Target(f"get_thread, 50 steps, against {CHAINLIT}", 2.5, "at least", "x", _faster_than(CHAINLIT, _THREAD)),
    Target(
        f"get_thread, 50 steps, against {SQLALCHEMY} with forebay's indexes",
        8, "at least", "x", _faster_than(SQLALCHEMY, _THREAD),
    ),
    Target(f"list_threads, 1,000 threads, against {CHAINLIT}", 8, "at least", "x", _faster_than(CHAINLIT, _PAGE)),
    Target(
        f"list_threads, 1,000 threads, against {SQLALCHEMY}",
        1500, "at least", "x", _faster_than(SQLALCHEMY, _PAGE),
    ),
    Target("list_threads, 50,000 threads, against 1,000", 1.5, "at most", "x", _flat),
    Target(
        "event-loop lag p99 at a steady 10,000 writes/s", 10, "at most", "ms",
        lambda report: _value(report.write(FOREBAY, "lag_p99_ms", report.steady)),
    ),
    Target("own CPU a write at a steady 1,000 writes/s", 65, "at most", "µs", _light_cpu),
    Target("p99 of the write call at a steady 1,000 writes/s", 25, "at most", "ms", _light_call),
    Target("the database's log a turn, at people's pace", 5.5, "at most", "KB", _paced_wal),
    Target("row versions a turn, at people's pace", 9.5, "at most", "", _paced("row_versions_per_turn")),
    Target("HOT updates, at people's pace", 70, "at least", "%", _paced("hot_percent")),
    Target("CPU from `import forebay` to the first row stored", 700, "at most", "ms", _start("cpu_ms")),
    Target("longest stall of the loop at the start", 20, "at most", "ms", _start("stall_ms")),
    Target("connections, idle", 1, "at most", "", lambda report: _value(report.write(FOREBAY, "connections_idle"))),
    Target(
        "connections under writes", 1, "at most", "",
        lambda report: _value(report.write(FOREBAY, "connections_peak")),
    ),
)  # fmt: skip
