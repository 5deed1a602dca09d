"""`forebay bench`: forebay beside Chainlit's own layers, on a real PostgreSQL."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from forebay.cli import printing

if TYPE_CHECKING:
    from forebay.bench.growth import Growth
    from forebay.bench.plan import Part
    from forebay.bench.postgres import PostgresServer
    from forebay.bench.report import Report
    from forebay.bench.run import Tell

    Expect = Callable[[int], None]

_SUFFIXES = (".png", ".svg", ".pdf")


@click.command(short_help="Measure forebay beside Chainlit's own layers.")
@click.option("--quick", "scale", flag_value="quick", help="A minute or so: enough to see the outline.")
@click.option(
    "--full",
    "scale",
    flag_value="full",
    help="Ten minutes or so: the figures of docs/performance, a million steps.",
)
@click.option("--tiny", "scale", flag_value="tiny", hidden=True)
@click.option(
    "--growth",
    is_flag=True,
    envvar="FOREBAY_BENCH_GROWTH",
    show_envvar=True,
    help="Measure how it goes on as things grow, instead: the tables (with --full to 5,000,000 steps), the chats"
    " at once, a step's size, the network's distance to the database.",
)
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    envvar="FOREBAY_BENCH_ROUNDS",
    show_envvar=True,
    help="Measurements of each layer, of which the median counts.",
)
@click.option(
    "--only",
    type=click.Choice(["writes", "reads"]),
    envvar="FOREBAY_BENCH_ONLY",
    show_envvar=True,
    help="One half of it.",
)
@click.option(
    "--url",
    envvar="FOREBAY_BENCH_URL",
    show_envvar=True,
    metavar="URL",
    help="A PostgreSQL server to measure on, whose role may create databases; by default one is started.",
)
@click.option(
    "--load",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    envvar="FOREBAY_BENCH_LOAD",
    show_envvar=True,
    help="Measure nothing: show, draw and check what --save has kept.",
)
@click.option(
    "--save",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="FOREBAY_BENCH_SAVE",
    show_envvar=True,
    help="Keep every round's figures as JSON.",
)
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="FOREBAY_BENCH_PLOT",
    show_envvar=True,
    help=f"Draw it into a file, whose suffix says the format: {', '.join(_SUFFIXES)}. With --growth a file"
    " for each thing that grows, whose name is put behind this one's.",
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    envvar="FOREBAY_BENCH_JSON",
    show_envvar=True,
    help="Print one JSON object instead of tables.",
)
@click.option(
    "--markdown",
    "as_markdown",
    is_flag=True,
    envvar="FOREBAY_BENCH_MARKDOWN",
    show_envvar=True,
    help="Print the tables as Markdown.",
)
def bench(
    scale: str | None,
    growth: bool,
    rounds: int | None,
    only: Part | None,
    url: str | None,
    load: Path | None,
    save: Path | None,
    plot: Path | None,
    as_json: bool,
    as_markdown: bool,
) -> None:
    """Measure forebay beside SQLAlchemyDataLayer, ChainlitDataLayer and what the database alone can do.

    On one PostgreSQL that syncs to disk, each measurement a process of its own on a fresh database, the layers
    alternating over the rounds: chats that write, a steady load, reads among full tables; stale and missing steps
    are counted. It starts a PostgreSQL where this machine has one, or the one that `pip install 'forebay[bench]'`
    brings. Nothing that it makes stays, on a server of yours neither. FOREBAY_* settings are not taken over.

    Exit codes: 0, done; 1, forebay has lost a step, or an error; 2, wrong usage.

    \b
    Examples:
      forebay bench --quick
      forebay bench --full --save bench.json --plot bench.svg
      forebay bench --load bench.json --markdown
      forebay bench --growth --full --save growth.json --plot growth.svg
    """
    _check_plot(plot)
    if growth and (rounds or only):
        raise click.UsageError("--growth takes neither --rounds nor --only")
    report = _loaded(load, growth=growth) if load else _measured(scale or "normal", growth, rounds, only, url)
    if save is not None:
        report.save(save)
    if plot is not None:
        _draw(report, plot)
    _show(report, as_json=as_json, as_markdown=as_markdown)
    if report.lost:
        raise click.ClickException(
            f"forebay has lost {report.lost} steps: this must not happen, please report it"
        )


def _check_plot(path: Path | None) -> None:
    """Before anything is measured for minutes."""
    if path is None:
        return
    if path.suffix not in _SUFFIXES:
        raise click.BadParameter(f"its suffix is to be one of {', '.join(_SUFFIXES)}", param_hint="--plot")
    if importlib.util.find_spec("matplotlib") is None:
        raise click.ClickException("--plot needs matplotlib: pip install 'forebay[bench]'")


def _loaded(path: Path, *, growth: bool) -> Report | Growth:
    from forebay.bench.growth import Growth
    from forebay.bench.report import Report

    return Growth.load(path) if growth else Report.load(path)


def _measured(
    scale: str, growth: bool, rounds: int | None, only: Part | None, url: str | None
) -> Report | Growth:
    from forebay.bench.postgres import PostgresServer

    with PostgresServer(url=url, durable=True) as server, _progress() as progress:
        bar = progress.add_task("starting", total=None)

        def tell(what: str) -> None:
            progress.update(bar, advance=1, description=what)

        def expect(measurements: int) -> None:
            progress.update(bar, total=measurements)

        report = (
            _measured_growth(server, scale, tell, expect)
            if growth
            else _measured_layers(server, scale, rounds, only, tell, expect)
        )
    words = ("--growth" if growth else "", "" if scale == "normal" else f"--{scale}")
    chosen = (f"--rounds {rounds}" if rounds else "", f"--only {only}" if only else "")
    report.command = " ".join(filter(None, ("forebay bench", *words, *chosen)))
    return report


def _measured_layers(
    server: PostgresServer, scale: str, rounds: int | None, only: Part | None, tell: Tell, expect: Expect
) -> Report:
    from forebay.bench import run
    from forebay.bench.plan import PARTS, SCALES

    chosen = SCALES[scale] if rounds is None else replace(SCALES[scale], rounds=rounds)
    parts: Sequence[Part] = PARTS if only is None else (only,)
    expect(run.steps_of(chosen, parts))
    return asyncio.run(run.run(server, chosen, parts, tell))


def _measured_growth(server: PostgresServer, scale: str, tell: Tell, expect: Expect) -> Growth:
    from forebay.bench import growth

    chosen = growth.GROWTH_SCALES[scale]
    expect(chosen.points)
    return asyncio.run(growth.run(server, chosen, tell))


def _draw(report: Report | Growth, path: Path) -> None:
    from forebay.bench import plot
    from forebay.bench.report import Report

    if isinstance(report, Report):
        plot.draw(report, path)
    else:
        plot.draw_growth(report, path)


def _progress() -> Progress:
    columns = (TextColumn("{task.description:<36}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=printing.console(stderr=True), transient=True)


def _show(report: Report | Growth, *, as_json: bool, as_markdown: bool) -> None:
    from forebay.bench import tables

    if as_json:
        printing.say_json(vars(report))
    elif as_markdown:
        printing.say(tables.markdown(report))
    else:
        console = printing.console()
        for grid in tables.grids(report):
            console.print(grid.rich())
            console.print()
