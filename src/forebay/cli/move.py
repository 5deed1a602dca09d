"""`forebay blobs move`: contents of a former storage are brought into the one that is in use."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.progress import Progress

from forebay.cli import options, printing
from forebay.cli.application import application_of
from forebay.errors import SettingsError
from forebay.primitives.visible import visible

if TYPE_CHECKING:
    from forebay.attachments.mover import Mover, Plan, Tally
    from forebay.cli.application import Application
    from forebay.database.store import Store


@click.command(short_help="Bring contents into another storage.")
@options.database_url
@options.app
@click.option(
    "--dry-run",
    is_flag=True,
    envvar="FOREBAY_BLOBS_DRY_RUN",
    show_envvar=True,
    help="Only say what would be moved.",
)
@click.option("--keep", is_flag=True, help="Leave the contents in the former storage too.")
@options.yes
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    envvar="FOREBAY_BLOBS_JSON",
    show_envvar=True,
    help='Print one JSON object, for a script: {"moved", "already_there", "left": [{"key", "why"}], …}.',
)
def move(
    database_url: str | None, app: Path | None, dry_run: bool, keep: bool, yes: bool, as_json: bool
) -> None:
    """Bring contents from FOREBAY_FORMER_STORAGE into the storage that is in use.

    Each content that a row names is stored, read back, compared, and then deleted in the former storage. Run it when
    all of the app's processes have the new storage, as the user that the app runs as. It may be stopped and run again.

    \b
    Exit codes: 0, nothing is left to be moved; 1, some contents stayed, and are named.

    \b
    Examples:
      FOREBAY_STORAGE=s3 FOREBAY_FORMER_STORAGE=folder forebay blobs move --dry-run
      FOREBAY_FORMER_STORAGE=folder forebay blobs move --app app.py
    """
    if not asyncio.run(_run(application_of(app, database_url), _Wish(dry_run, keep, yes, as_json))):
        raise click.exceptions.Exit(1)


@dataclass(frozen=True, slots=True)
class _Wish:
    dry_run: bool
    keep: bool
    yes: bool
    as_json: bool


async def _run(application: Application, wish: _Wish) -> bool:
    store = application.target.store()
    try:
        return await _move(_mover(store, application, wish), wish)
    finally:
        await store.close()


def _mover(store: Store, application: Application, wish: _Wish) -> Mover:
    from forebay.attachments.access import access
    from forebay.attachments.mover import Mover
    from forebay.attachments.providers import former_storage

    current = application.storage()
    former = former_storage(application.settings, current)
    if current is None or former is None:
        raise SettingsError("FOREBAY_FORMER_STORAGE is not set: it names the storage to move from")
    return Mover(store, access(current), access(former), keep=wish.keep)


async def _move(mover: Mover, wish: _Wish) -> bool:
    with printing.console(stderr=True).status("Looking at the former storage"):
        plan = await mover.plan()
    if wish.dry_run:
        _say(
            wish,
            _planned(plan),
            f"{plan.objects} to be moved, {plan.size} bytes; {plan.unnamed} without a row stay.",
        )
        return True
    if plan.objects == 0:
        _say(wish, _planned(plan), f"0 to be moved; {plan.unnamed} without a row stay.")
        return True
    await mover.require_ours()
    await mover.require_two()
    options.confirm(f"Move {plan.objects} contents, {plan.size} bytes?", yes=wish.yes)
    with Progress(console=printing.console(stderr=True), disable=wish.as_json) as progress:
        bar = progress.add_task("Moving", total=plan.size or None)
        tally = await mover.move(lambda one: progress.advance(bar, one.size))
    _tell(tally, plan, wish)
    return tally.is_complete


def _planned(plan: Plan) -> dict[str, Any]:
    return {"to_move": plan.objects, "bytes": plan.size, "unnamed": plan.unnamed}


def _tell(tally: Tally, plan: Plan, wish: _Wish) -> None:
    from forebay.attachments.mover import Fate

    counted = {fate.value: tally.fates[fate] for fate in Fate}
    left = [{"key": key, "why": why} for key, why in tally.why.items()]
    if not wish.as_json:
        for key, why in tally.why.items():
            printing.say(f"{visible(key)!r}: {why}", err=True)
    said = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counted.items() if count)
    document = {**counted, "bytes": tally.size, "unnamed": plan.unnamed, "left": left}
    _say(wish, document, f"{said or 'nothing was there any more'}; {tally.size} bytes moved.")


def _say(wish: _Wish, document: dict[str, Any], line: str) -> None:
    if wish.as_json:
        printing.say_json(document)
    else:
        printing.say(line)
