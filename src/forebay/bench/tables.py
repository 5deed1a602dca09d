"""A report as tables, for a terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich.table import Table

from forebay.bench.growth import AXIS_NAMES, Growth, names
from forebay.bench.plan import NO_LAYER, READERS, SQLALCHEMY, WRITERS
from forebay.bench.report import Report, Result, Runs
from forebay.bench.targets import TARGETS, Measured, Target

_NONE = "-"


@dataclass(frozen=True)
class Grid:
    """A table: what it shows, its columns, its rows."""

    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]

    def rich(self) -> Table:
        """For a terminal."""
        table = Table(title=self.title, title_justify="left", title_style="bold")
        for number, name in enumerate(self.header):
            # Wide enough for every word, so that no number is broken in two.
            words = [word for row in self.rows for word in row[number].split()]
            justify: Literal["left", "right"] = "left" if number == 0 or name == "layer" else "right"
            table.add_column(name, justify=justify, min_width=max(map(len, words), default=0))
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """As Markdown."""
        lines = [self.header, ("---",) + ("---:",) * (len(self.header) - 1), *self.rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def grids(report: Report | Growth) -> list[Grid]:
    """Everything that was measured, and what it is beside the targets."""
    if isinstance(report, Growth):
        return [_growth_grid(report, axis) for axis in names(report)]
    found = [
        _writes(report), _costs(report), _floors(report), _steady(report), _light(report), _paced(report),
        _start(report), _reads(report), _targets(report),
    ]  # fmt: skip
    return [grid for grid in found if grid.rows]


def markdown(report: Report | Growth) -> str:
    """All tables as Markdown, with what they were measured on."""
    about = report.about
    how = f"Medians of {report.scale['rounds']} rounds" if isinstance(report, Report) else "One round"
    measured_on = (
        f"{how} on {about['cores']} cores, PostgreSQL {about['postgresql']} (fsync {about['fsync']}) beside them,"
        f" Python {about['python']}, Chainlit {about['chainlit']}: `{report.command}`."
    )
    return "\n\n".join([*(f"**{grid.title}**\n\n{grid.markdown()}" for grid in grids(report)), measured_on])


def _number(value: float | None, digits: int = 0) -> str:
    return _NONE if value is None else f"{value:,.{digits}f}"


def _ms(value: float | None) -> str:
    """Three figures of it."""
    if value is None:
        return _NONE
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _layers(report: Report) -> list[str]:
    return [subject.name for subject in WRITERS if not subject.is_floor and subject.name in report.writes]


def _writes(report: Report) -> Grid:
    header = ("layer", "writes/s", "rows/s", "CPU a write, µs", "call p50 / p99, ms", "loop lag p99, ms")
    title = f"{report.scale.get('sessions', '')} chats at once, nine writes a turn into five rows"
    return Grid(title, header, [_speed(report, report.writes, name) for name in _layers(report)])


def _speed(report: Report, runs: Runs, name: str) -> tuple[str, ...]:
    def of(figure: str) -> float | None:
        return report.write(name, figure, runs)

    cpu = _number(of("cpu_us_per_write"), 1)
    if (daemon := of("daemon_cpu_us_per_write")) is not None:
        cpu += f" + {daemon:.1f}"
    calls = f"{_ms(of('call_p50_ms'))} / {_ms(of('call_p99_ms'))}"
    speed = (_number(of("writes_per_second")), _number(of("rows_per_second")))
    return (name, *speed, cpu, calls, _ms(of("lag_p99_ms")))


def _costs(report: Report) -> Grid:
    header = ("layer", "connections, idle / most", "memory, MiB", "stale steps", "missing", "of")
    rows = []
    for name in _layers(report):
        if name == NO_LAYER:
            continue
        figures = (
            "connections_idle",
            "connections_peak",
            "peak_mib",
            "stale_steps",
            "missing_steps",
            "steps",
        )
        idle, most, *others = (_number(report.write(name, figure)) for figure in figures)
        rows.append((name, f"{idle} / {most}", *others))
    return Grid("What that took, and what was lost", header, rows)


def _floors(report: Report) -> Grid:
    header = ("The same rows, without a layer", "rows/s", "CPU a row, µs")
    rows = []
    for subject in WRITERS:
        if subject.is_floor and subject.name in report.writes:
            speed, cpu = (report.write(subject.name, name) for name in ("rows_per_second", "cpu_us_per_row"))
            rows.append((subject.name, _number(speed), _number(cpu, 1)))
    for name in report.rows:
        if not any(subject.name == name and subject.is_floor for subject in WRITERS):
            speed = report.write(name, "rows_per_second", report.rows)
            cpu = report.write(name, "cpu_us_per_write", report.rows)
            rows.append((f"for comparison: {name}, each write a row", _number(speed), _number(cpu, 1)))
    return Grid("What the database alone takes", header, rows)


def _steady(report: Report) -> Grid:
    title = (
        f"A steady {report.scale.get('steady_rate', 0):,} writes/s, whether the ones before are done or not"
    )
    rows = [_speed(report, report.steady, name) for name in report.steady]
    return Grid(title, _writes(report).header, rows)


def _light(report: Report) -> Grid:
    title = (
        f"A steady {report.scale.get('light_rate', 0):,} writes/s of few people, as most servers have them"
    )
    rows = [_speed(report, report.light, name) for name in report.light]
    return Grid(title, _writes(report).header, rows)


def _paced(report: Report) -> Grid:
    header = ("layer", "log, KB", "row versions", "of updates HOT, %")
    rows = []
    for name in report.paced:
        wal, versions, hot = (
            report.write(name, figure, report.paced)
            for figure in ("wal_bytes_per_turn", "row_versions_per_turn", "hot_percent")
        )
        rows.append(
            (name, _number(None if wal is None else wal / 1000, 1), _number(versions, 1), _number(hot))
        )
    return Grid("What a turn of nine writes costs the database at people's pace", header, rows)


def _start(report: Report) -> Grid:
    header = ("from `import forebay` to the first row", "CPU, ms", "of it imports, ms", "longest stall, ms")
    rows = []
    for name in report.start:
        figures = ("cpu_ms", "import_cpu_ms", "stall_ms")
        rows.append((name, *(_number(report.write(name, figure, report.start)) for figure in figures)))
    return Grid("The start", header, rows)


def _reads(report: Report) -> Grid:
    names = [subject.name for subject in READERS if subject.name in report.reads]
    labels = [f"{name}, forebay's indexes" if name == SQLALCHEMY else name for name in names]
    rows = [(reading, *(_read(report, name, reading) for name in names)) for reading in report.readings]
    title = f"Reads, p50 / p99 in ms, among {report.scale.get('others', 0):,} steps of others"
    return Grid(title, ("read", *labels), rows)


def _read(report: Report, subject: str, reading: str) -> str:
    if (over := report.over(subject, reading)) is not None:
        return f"> {over / 1000:g} s"
    return f"{_ms(report.read(subject, reading))} / {_ms(report.read(subject, reading, 'p99_ms'))}"


def _targets(report: Report) -> Grid:
    rows = []
    for target in TARGETS:
        measured = target.measure(report)
        if measured is not None:
            reached = "yes" if target.is_reached(measured) else "no"
            rows.append((target.figure, _goal(target), _measured(report, target, measured), reached))
    return Grid("What forebay is to reach", ("figure", "target", "measured", "reached"), rows)


def _goal(target: Target) -> str:
    goal = f"{target.goal:,g}"
    return " ".join(filter(None, (target.bound if target.goal else "", goal, target.unit)))


def _measured(report: Report, target: Target, measured: Measured) -> str:
    value = _ms(measured.value) if measured.value % 1 else f"{measured.value:,.0f}"
    text = " ".join(filter(None, (">" if measured.at_least else "", value, target.unit)))
    own = report.write(NO_LAYER, "cpu_us_per_write")
    if target.unit == "µs" and own is not None:
        text += f" ({own:.0f} the benchmark's)"
    return text


def _growth_grid(growth: Growth, axis: str) -> Grid:
    header = (
        AXIS_NAMES[axis], "layer", "writes/s", "CPU a write, µs", "call p99, ms", "a thread is read, ms",
        "… while chats write, p99, ms", "stale", "missing",
    )  # fmt: skip
    found = [(result, subject) for subject, results in growth.axes[axis].items() for result in results]
    ordered = sorted(found, key=lambda pair: pair[0].get("at") or 0)
    return Grid(
        f"Growing: {AXIS_NAMES[axis]}", header, [_growth_row(result, subject) for result, subject in ordered]
    )


def _growth_row(result: Result, subject: str) -> tuple[str, ...]:
    at = f"{result.get('at') or 0:,.15g}"
    if (over := result.get("over_s")) is not None:
        return (at, subject, f"> {over:g} s", *[_NONE] * 6)
    return (
        at,
        subject,
        _number(result.get("writes_per_second")),
        _number(result.get("cpu_us_per_write")),
        _ms(result.get("call_p99_ms")),
        _ms(result.get("read_after_ms")),
        _ms(result.get("read_during_p99_ms")),
        _number(result.get("stale_steps")),
        _number(result.get("missing_steps")),
    )
