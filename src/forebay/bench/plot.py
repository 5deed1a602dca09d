"""A report as a picture: writes, CPU, reads. Needs matplotlib, which the extra `bench` installs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forebay.bench.growth import AXIS_NAMES, Growth, names
from forebay.bench.plan import (
    CHAINLIT,
    FOREBAY,
    FOREBAY_COMMIT,
    FOREBAY_EXTERNAL,
    FOREBAY_MEMORY,
    FOREBAY_READS,
    SQLALCHEMY,
)
from forebay.bench.report import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".png", ".svg", ".pdf")
# Okabe and Ito's colours, which the colour-blind tell apart.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#555555"
_LAYERS = (FOREBAY, FOREBAY_EXTERNAL, FOREBAY_MEMORY, FOREBAY_COMMIT, CHAINLIT, SQLALCHEMY)
_READERS = {FOREBAY_READS: BLUE, CHAINLIT: GREEN, SQLALCHEMY: ORANGE}
_HATCHES = {BLUE: "", GREEN: "//", ORANGE: ".."}  # for those who see no colours, and for print
_DROPPED = ("tenth page", "get_thread, 20 ")  # the picture's readers look for the outline


def draw(report: Report, path: Path) -> None:
    """Draw a report into a file, whose suffix says the format. The same report gives the same file."""
    pyplot = prepared()
    panels = [panel for panel in (_writes, _cpu, _reads) if panel is not _reads or report.reads]
    panels = [panel for panel in panels if panel is _reads or report.writes]
    widths = [1.6 if panel is _reads else 1.0 for panel in panels]
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(4.2 * len(panels), 4.2), width_ratios=widths, squeeze=False
    )
    for number, (panel, axis) in enumerate(zip(panels, axes[0], strict=True)):
        panel(report, axis, named=number == 0)
    save(figure, path)


def prepared() -> Any:
    """matplotlib's pyplot, drawing into files, in the style of all pictures here."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update(
        {
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": 10,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "svg.hashsalt": "forebay",  # or the ids in it are others each time
            "svg.fonttype": "none",  # text stays text: small, sharp and searchable
            "hatch.linewidth": 0.7,
            "hatch.color": "white",
        }
    )
    return pyplot


def save(figure: Any, path: Path) -> None:
    """Write a picture; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.set_layout_engine("constrained")
    # Without the date the same figures give the same file.
    metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix, {})
    figure.savefig(path, dpi=150, metadata=metadata, facecolor="white")
    prepared().close(figure)


def _writes(report: Report, axis: Axes, *, named: bool) -> None:
    _bars(report, axis, "writes_per_second", "{:,.0f}", named=named)
    axis.set_title("Durable writes a second\nmore is better")


def _cpu(report: Report, axis: Axes, *, named: bool) -> None:
    _bars(report, axis, "cpu_us_per_write", "{:,.0f}", named=named)
    axis.set_title("CPU a write, µs\nless is better")


def _bars(report: Report, axis: Axes, figure: str, written: str, *, named: bool) -> None:
    values = {name: value for name in _LAYERS if (value := report.write(name, figure)) is not None}
    colors = [_READERS.get(name, BLUE) for name in values]
    bars = axis.barh(range(len(values)), list(values.values()), color=colors, height=0.7)
    for bar, color in zip(bars, colors, strict=True):
        bar.set_hatch(_HATCHES[color])
    axis.bar_label(bars, [written.format(value) for value in values.values()], padding=3)
    axis.set_yticks(range(len(values)), list(values) if named else [""] * len(values))
    axis.invert_yaxis()
    axis.set_xlim(0, max(values.values(), default=1) * 1.3)
    axis.xaxis.set_visible(False)
    axis.spines["bottom"].set_visible(False)


def _reads(report: Report, axis: Axes, *, named: bool) -> None:
    readings = [name for name in report.readings if not name.startswith(_DROPPED)]
    names = [name for name in _READERS if name in report.reads]
    height = 0.8 / len(names)
    for number, name in enumerate(names):
        values = [_read(report, name, reading) for reading in readings]
        places = [place + (number - (len(names) - 1) / 2) * height for place in range(len(readings))]
        color = _READERS[name]
        bars = axis.barh(places, values, height, color=color, hatch=_HATCHES[color], label=_label(name))
        axis.bar_label(bars, _written(report, name, readings), padding=2, fontsize=7)
    axis.set_xscale("log")
    axis.set_yticks(range(len(readings)), readings)
    axis.invert_yaxis()
    axis.margins(x=0.2)
    axis.set_title("Reads, median, ms\nless is better; logarithmic")
    axis.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.06), ncols=3, frameon=False)
    axis.set_xticks([])
    axis.xaxis.set_minor_locator(_no_ticks())


def _no_ticks() -> Any:
    from matplotlib.ticker import NullLocator

    return NullLocator()


def _label(name: str) -> str:
    return f"{name}, forebay's indexes" if name == SQLALCHEMY else name


def _read(report: Report, name: str, reading: str) -> float:
    return report.over(name, reading) or report.read(name, reading) or 0.0


def _written(report: Report, name: str, readings: Sequence[str]) -> list[str]:
    values = [(_read(report, name, reading), report.over(name, reading)) for reading in readings]
    return [
        f"{'> ' if over else ''}{value:,.0f}" if value >= 10 else f"{value:.2g}" for value, over in values
    ]


_LINES = {FOREBAY: (BLUE, "o", "-"), CHAINLIT: (GREEN, "s", "--"), SQLALCHEMY: (ORANGE, "^", ":")}
_FIGURES = {
    "writes_per_second": "Durable writes\na second",
    "read_after_ms": "A thread of 50 steps is read,\nmedian, ms",
    "read_during_p99_ms": "… while the chats write,\np99, ms",
}


def draw_growth(growth: Growth, path: Path) -> list[Path]:
    """A picture for each axis, whose name is put behind the file's; the files."""
    drawn = []
    for axis in names(growth):
        drawn.append(path.with_stem(f"{path.stem}-{axis}"))
        _draw_axis(growth, axis, drawn[-1])
    return drawn


def _draw_axis(growth: Growth, axis: str, path: Path) -> None:
    figure, panels = prepared().subplots(1, len(_FIGURES), figsize=(10.5, 3.2))
    for panel, (name, title) in zip(panels, _FIGURES.items(), strict=True):
        for subject, (color, marker, style) in _LINES.items():
            if points := growth.line(axis, subject, name):
                at, values = zip(*points, strict=True)
                panel.plot(at, values, color=color, marker=marker, linestyle=style, label=subject)
        panel.set_title(title)
        _scale_axis(panel, axis, growth.scale)
        _log_scale(panel, [value for subject in _LINES for _, value in growth.line(axis, subject, name)])
        panel.grid(axis="y", alpha=0.3)
        panel.set_xlabel(AXIS_NAMES[axis])
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    save(figure, path)


def _log_scale(panel: Axes, values: Sequence[float]) -> None:
    """From one power of ten to another, so that nothing between them needs a label."""
    panel.set_yscale("log")
    if values:
        panel.set_ylim(10 ** math.floor(math.log10(min(values))), 10 ** math.ceil(math.log10(max(values))))
    panel.yaxis.set_major_formatter(_plain_numbers())
    panel.yaxis.set_minor_locator(_no_ticks())


def _scale_axis(panel: Axes, axis: str, scale: dict[str, Any]) -> None:
    points = scale[{"steps": "steps", "sessions": "sessions", "size": "sizes", "distance": "distances"}[axis]]
    if points[0] == 0:  # which has no logarithm
        panel.set_xscale("symlog", linthresh=min(points[1:], default=1))
    else:
        panel.set_xscale("log")
    panel.set_xticks(points, [_short(point) for point in points])
    panel.xaxis.set_minor_locator(_no_ticks())


def _short(number: float) -> str:
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:g}{letter}"
    return f"{number:g}"


def _plain_numbers() -> Any:
    from matplotlib.ticker import FuncFormatter

    return FuncFormatter(lambda value, _: f"{value:,g}")
