"""`forebay delete-user`: delete a person, with all that there is of them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import click

from forebay.cli import options, printing
from forebay.cli.application import application_of
from forebay.cli.purge import layer_of, require_contents
from forebay.cli.take_along import take
from forebay.primitives.visible import visible

if TYPE_CHECKING:
    from forebay.cli.application import Application
    from forebay.layer.deletion import Deleted

_OUT_OF_REACH = (
    "Out of reach: backups, standbys that lag, exports, other machines' journals, others' logs, feedback on other"
    " people's chats, and what the database keeps of deleted rows until it cleans up."
)


@click.command("delete-user", short_help="Delete a person, with all that there is of them.")
@click.argument("login")
@options.database_url
@options.app
@click.option(
    "--export",
    "export",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    envvar="FOREBAY_DELETE_USER_EXPORT",
    show_envvar=True,
    help="Write their chats into this file first, as `forebay export --user` does.",
)
@click.option(
    "--files",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    envvar="FOREBAY_DELETE_USER_FILES",
    show_envvar=True,
    help="With --export: put the elements' content below this folder.",
)
@click.option(
    "--wait",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    envvar="FOREBAY_DELETE_USER_WAIT",
    show_envvar=True,
    help="How long to wait for what running processes still hold; by default as long as they keep journals, and a"
    " minute.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    envvar="FOREBAY_DELETE_USER_DRY_RUN",
    show_envvar=True,
    help="Say what there is, and delete nothing.",
)
@options.any_storage("DELETE_USER")
@options.yes
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    envvar="FOREBAY_DELETE_USER_JSON",
    show_envvar=True,
    help='Print one JSON object, for a script: {"rows": {table: number}, "letters": number, "damaged": [paths],'
    ' "deleted": true or false}.',
)
def delete_user(
    login: str,
    database_url: str | None,
    app: Path | None,
    export: Path | None,
    folder: Path | None,
    wait: float | None,
    dry_run: bool,
    any_storage: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Delete the person who logs in as LOGIN: their row, chats, feedback, elements, contents.

    Also what is in the journals' folder: journals that were left behind are written out, their dead letters and
    uploads go, and what running processes hold of it is waited for. What open sessions still write is dropped, and who
    logs in with that name afterwards is somebody new. End their sessions first, and take their login away, or they
    will be. A run that was ended, or that a storage has failed, is gone on with by the next.

    Exit codes: 0, nothing is left; 1, something is, which it names, or an error.

    \b
    Examples:
      forebay delete-user ada@example.org --app app.py --dry-run
      forebay delete-user ada@example.org --app app.py --export ada.jsonl --yes
    """
    if folder is not None and export is None:
        raise click.UsageError("--files goes with --export")
    application = application_of(app, database_url)
    how = {"dry_run": dry_run, "yes": yes, "any_storage": any_storage}
    done = asyncio.run(_run(application, login, export, folder, wait, **how))
    report = {"rows": done.rows, "letters": done.letters, "damaged": [str(path) for path in done.damaged]}
    if as_json:
        printing.say_json({**report, "deleted": not dry_run})
        return
    printing.say(f"{_shown(done)} {'would be' if dry_run else 'are'} deleted.")
    for path in done.damaged:
        printing.say(f"Damaged, so that nobody can tell whose it is: {visible(str(path))}")
    if not dry_run:
        printing.say(_OUT_OF_REACH)


async def _run(
    application: Application,
    login: str,
    export: Path | None,
    folder: Path | None,
    wait: float | None,
    *,
    dry_run: bool,
    yes: bool,
    any_storage: bool,
) -> Deleted:
    # What it adopts itself need not be kept: the database has it, or it is dropped.
    layer = layer_of(application, journal_keep=0.0)
    from forebay.layer.deletion import patience_for

    patience = patience_for(application.settings.journal_keep) if wait is None else wait
    try:
        found = await layer.delete_user(login, dry_run=True)
        if not found.known:
            raise click.ClickException("nobody has this login")
        if dry_run:
            return found
        if not any_storage:
            await require_contents(layer)
        options.confirm(f"Delete {visible(login)} for good, with {_shown(found)}?", yes=yes)
        if export is not None:
            await _export(application, login, export, folder)
        threads = found.rows["threads"]
        with options.bar("chats") as advance:
            return await layer.delete_user(
                login, patience=patience, progress=lambda done: advance(done, threads)
            )
    finally:
        await layer.close()


async def _export(application: Application, login: str, export: Path, folder: Path | None) -> None:
    from forebay.database.snapshot import Chosen

    taken = await take(application, export, Chosen(login), folder)
    if taken.missing:
        raise click.ClickException(
            f"the storage does not give {len(taken.missing)} contents; nothing was deleted"
        )


def _shown(found: Deleted) -> str:
    return ", ".join(f"{number:,} {table}" for table, number in found.rows.items())
