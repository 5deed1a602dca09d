"""`forebay dead-letters`: what the database refused, and what to do about it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import orjson
from rich.table import Table

from forebay.cli import options, printing
from forebay.cli.application import application_of

if TYPE_CHECKING:
    from forebay.database.store import Store
    from forebay.journal.dead_letters import DeadLetters, Letter

_as_json = click.option(
    "--json",
    "as_json",
    is_flag=True,
    envvar="FOREBAY_DEAD_LETTERS_JSON",
    show_envvar=True,
    help="Print JSON, for a script.",
)


def _chosen(command: Callable[..., Any]) -> Callable[..., Any]:
    command = click.option("--all", "every", is_flag=True, help="All letters.")(command)
    return click.argument("ids", nargs=-1, type=int, metavar="[ID]...")(command)


@click.group("dead-letters", short_help="Rows that the database refused.")
def dead_letters() -> None:
    """Rows that the database refused: look at them, retry them, discard them.

    Each is one change of one row, with the error. They are in the journals' folder, and stay there until they
    are retried with success or discarded. A letter holds what the row held: its content is shown by `show` alone.
    """


@dead_letters.command("list")
@options.app
@options.journal_dir
@_as_json
def list_(app: Path | None, journal_dir: Path | None, as_json: bool) -> None:
    """List the letters, the oldest first, without their content.

    \b
    Example:
      forebay dead-letters list --journal-dir /var/lib/chat/journals
    """
    letters = _letters(journal_dir, app).find()
    if as_json:
        printing.say_json([_summary(letter) for letter in letters])
    elif not letters:
        printing.say("There are no dead letters.")
    else:
        _show_all(letters)
        printing.say(f"{len(letters)} {'letter' if len(letters) == 1 else 'letters'}.")


def _show_all(letters: Sequence[Letter]) -> None:
    """A table for who looks; for a program a letter a line, its fields between tabs."""
    rows = [(str(one.id), _time(one), one.table, one.row_id, one.error) for one in letters]
    console = printing.console()
    if not console.is_terminal:
        for row in rows:
            printing.say_fields(*row)
        return
    table = Table("id", "refused at", "table", "row", "error", box=None)
    for row in rows:
        table.add_row(*map(printing.cell, row))
    console.print(table)


@dead_letters.command()
@click.argument("letter_id", type=int, metavar="ID")
@options.app
@options.journal_dir
def show(letter_id: int, app: Path | None, journal_dir: Path | None) -> None:
    """Print one letter with the refused values, as JSON.

    \b
    Example:
      forebay dead-letters show 7
    """
    (letter,) = _find(_letters(journal_dir, app), [letter_id], every=False)
    printing.say_json({**_summary(letter), **_content(letter)}, indent=2)


@dead_letters.command()
@_chosen
@options.database_url
@options.app
@options.journal_dir
@_as_json
def retry(
    ids: tuple[int, ...],
    every: bool,
    database_url: str | None,
    app: Path | None,
    journal_dir: Path | None,
    as_json: bool,
) -> None:
    """Write letters to the database again, once what they were refused for is mended.

    What has been written to a row since the letter was refused stays: an old value never replaces a newer one.
    A letter of a thread that has been deleted meanwhile is forgotten. Exit code 1: some were refused again.

    \b
    Example:
      forebay dead-letters retry --all --app app.py
    """
    letters = _letters(journal_dir, app)
    done = asyncio.run(_retry(letters, _find(letters, ids, every=every), database_url, app))
    _tell(done, as_json=as_json)
    if done["refused"]:
        raise SystemExit(1)


@dead_letters.command()
@_chosen
@options.yes
@options.app
@options.journal_dir
@_as_json
def discard(
    ids: tuple[int, ...], every: bool, yes: bool, app: Path | None, journal_dir: Path | None, as_json: bool
) -> None:
    """Forget letters for good, with the values in them. With --all it asks first.

    \b
    Example:
      forebay dead-letters discard 7 8
    """
    letters = _letters(journal_dir, app)
    found = _find(letters, ids, every=every)
    if every and found:
        options.confirm(f"Forget {len(found)} letters for good?", yes=yes)
    for letter in found:
        letters.remove(letter.id)
    _tell({"discarded": [letter.id for letter in found]}, as_json=as_json)


def _letters(journal_dir: Path | None, app: Path | None) -> DeadLetters:
    from forebay.journal.dead_letters import DeadLetters

    folder = options.folder_of(journal_dir, app)
    if not folder.is_dir():
        raise click.ClickException(f"there is no folder {folder}; name the journals' folder by --journal-dir")
    return DeadLetters(folder)


def _find(letters: DeadLetters, ids: Sequence[int], *, every: bool) -> list[Letter]:
    if bool(ids) == every:
        raise click.UsageError("name the letters by their ids, or all of them with --all")
    found = letters.find(None if every else ids)
    if missing := set(ids) - {letter.id for letter in found}:
        raise click.ClickException(
            f"there is no letter {', '.join(map(str, sorted(missing)))}; see `forebay dead-letters list`"
        )
    return found


async def _retry(
    letters: DeadLetters, found: Sequence[Letter], url: str | None, app: Path | None
) -> dict[str, list[int]]:
    store = application_of(app, url).target.store()
    done: dict[str, list[int]] = {"written": [], "thread_deleted": [], "refused": []}
    try:
        for letter in found:
            done[await _retry_one(letters, letter, store)].append(letter.id)
    finally:
        await store.close()
    return done


async def _retry_one(letters: DeadLetters, letter: Letter, store: Store) -> str:
    from forebay.errors import RowError

    if not letter.is_for(store.label, await store.own_id()):
        raise click.ClickException(f"letter {letter.id} is for {letter.database}, not for {store.location}")
    try:
        dead = await store.apply([letter.change], late=True)
    except RowError as error:
        letters.refused_again(letter.id, error)
        return "refused"
    letters.remove(letter.id)
    return "thread_deleted" if dead else "written"


def _tell(done: dict[str, list[int]], *, as_json: bool) -> None:
    if as_json:
        printing.say_json(done)
        return
    for what, ids in done.items():
        printing.say(f"{what.replace('_', ' ')}: {len(ids)}")


def _time(letter: Letter) -> str:
    return datetime.fromtimestamp(letter.made_at, UTC).isoformat(timespec="seconds")


def _summary(letter: Letter) -> dict[str, Any]:
    return {
        "id": letter.id,
        "refused_at": _time(letter),
        "database": letter.database,
        "table": letter.table,
        "row_id": letter.row_id,
        "sqlstate": letter.sqlstate,
        "error": letter.error,
    }


def _content(letter: Letter) -> dict[str, Any]:
    from forebay.model.changes import Upsert, encode

    if not isinstance(letter.change, Upsert):
        return {"change": "delete"}
    (parts,) = orjson.loads(encode([letter.change]))
    return {"change": "upsert", "values": parts[3], "removed": parts[4]}
