"""`forebay doctor`: what is wrong, and what to do."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from forebay.cli import options, printing
from forebay.cli.application import application_of
from forebay.errors import SettingsError

if TYPE_CHECKING:
    from forebay.doctor import Finding

_MARKS = {"ok": ("✓", "green"), "note": ("·", "dim"), "warning": ("!", "yellow"), "error": ("✗", "red")}
_WARNED = 3


@click.command(short_help="What is wrong, and what to do.")
@options.database_url
@click.option(
    "--app",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    envvar="FOREBAY_DOCTOR_APP",
    show_envvar=True,
    help="A Chainlit app, whose own data layer is then checked: its URL, its settings and its storage client.",
)
@click.option(
    "--replicas",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    envvar="FOREBAY_DOCTOR_REPLICAS",
    show_envvar=True,
    help="How many processes will run, each with a pool of its own.",
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    envvar="FOREBAY_DOCTOR_JSON",
    show_envvar=True,
    help='Print one JSON array: [{"check", "level": "ok|note|warning|error", "found", "remedy"}, …].',
)
def doctor(database_url: str | None, app: Path | None, replicas: int, as_json: bool) -> None:
    """Check what an app started here depends on, and say what to do about each finding.

    The database (reachable, version, TLS, clock, connections, pooler, tables, indexes, standby), the journals' folder
    (local, writable, how fast it syncs, room, what was left in it), dead letters, the metrics' address, the storage of
    elements' content, and the secret that signs logins. Nothing that it writes stays.

    Exit codes: 0, nothing is wrong; 3, there are warnings; 1, something does not work; 2, wrong usage.

    \b
    Examples:
      forebay doctor
      forebay doctor --app app.py --replicas 4
      forebay doctor --json | jq '.[] | select(.level == "error")'
    """
    with _quiet():
        findings = asyncio.run(_examine(database_url, app, replicas, None if as_json else _print))
    if as_json:
        printing.say_json([asdict(finding) for finding in findings])
    levels = Counter(str(finding.level) for finding in findings)
    if not as_json:
        printing.say(f"{levels['error']} errors, {levels['warning']} warnings")
    raise SystemExit(1 if levels["error"] else _WARNED if levels["warning"] else 0)


@contextmanager
def _quiet() -> Iterator[None]:
    """No log lines: what the checks run into, they tell themselves."""
    logger = logging.getLogger("forebay")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


async def _examine(url: str | None, app: Path | None, replicas: int, tell: Any) -> list[Finding]:
    findings = []
    async for finding in _checks(url, app, replicas):
        findings.append(finding)
        if tell is not None:
            tell(finding)
    return findings


async def _checks(url: str | None, app: Path | None, replicas: int) -> AsyncIterator[Finding]:
    from forebay.doctor.database import check_database, database_of
    from forebay.doctor.disk import check_disk
    from forebay.doctor.findings import error, note, ok, warning
    from forebay.doctor.surroundings import check_metrics, check_secret, check_storage
    from forebay.settings import remedy_of, unknown_variables

    try:
        application = application_of(app, url)
        target, storage = application.target, application.storage()
    except SettingsError as wrong:
        yield error(
            "settings", str(wrong), "mend the variable that is named; `forebay config` shows them all"
        )
        return
    if not application.is_forebays:
        yield note(
            "app", "it is still on SQLAlchemyDataLayer", "return a ForebayDataLayer with the same arguments"
        )
    yield ok("settings", f"durability={target.settings.durability} writer={target.settings.writer}")
    for name, near in unknown_variables().items():
        yield warning("settings", f"{name} sets nothing", remedy_of(near))
    async for finding in check_database(target, replicas):
        yield finding
    whose = await database_of(target)
    for finding in (
        *await asyncio.to_thread(lambda: list(check_disk(target.settings, *whose))),
        *check_secret(),
    ):
        yield finding
    async for finding in check_storage(storage):
        yield finding
    async for finding in check_metrics(target.settings):
        yield finding


def _print(finding: Finding) -> None:
    mark, style = _MARKS[finding.level]
    line = (
        Text(f"{mark} ", style)
        .append(f"{finding.check:<15}", "bold not dim")
        .append(printing.cell(finding.found, "default"))
    )
    console = printing.console()
    console.print(line, soft_wrap=True)
    for remedy in (finding.remedy or "").splitlines():
        console.print(printing.cell(f"{'':17}→ {remedy}", style), soft_wrap=True)
