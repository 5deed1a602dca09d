"""`forebay export`: chats as a file."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from forebay.cli import options, printing
from forebay.cli.application import application_of
from forebay.primitives.visible import visible

if TYPE_CHECKING:
    from forebay.attachments.access import Access
    from forebay.cli.application import Application
    from forebay.database.snapshot import Chosen
    from forebay.transfer.take import Taken


@click.command("export", short_help="Write chats into a file, as lines of JSON.")
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True, path_type=Path))
@options.database_url
@options.app
@click.option(
    "--user", metavar="LOGIN", envvar="FOREBAY_EXPORT_USER", show_envvar=True, help="One person's chats."
)
@click.option(
    "--thread",
    "thread_ids",
    multiple=True,
    metavar="ID",
    envvar="FOREBAY_EXPORT_THREAD",
    show_envvar=True,
    help="One chat; may be said several times.",
)
@click.option(
    "--since",
    type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]),
    metavar="TIME",
    envvar="FOREBAY_EXPORT_SINCE",
    show_envvar=True,
    help="Chats with a step at this time or later: 2026-01-31 or 2026-01-31T12:00:00, UTC.",
)
@click.option(
    "--files",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="FOREBAY_EXPORT_FILES",
    show_envvar=True,
    help="Put the elements' content below this folder; without it, rows only.",
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    envvar="FOREBAY_EXPORT_JSON",
    show_envvar=True,
    help='Say what was written as one JSON object: {"rows": {kind: number}, "files": number, "missing": [keys]}.',
)
def export(
    file: Path,
    database_url: str | None,
    app: Path | None,
    user: str | None,
    thread_ids: tuple[str, ...],
    since: datetime | None,
    folder: Path | None,
    as_json: bool,
) -> None:
    """Write chats into FILE as lines of JSON, or with - to standard output.

    All is as of one moment, and the application goes on meanwhile. The file is the same whether the rows came from
    PostgreSQL or SQLite; its last line has the number of rows and a checksum. It holds what people wrote: keep it as
    you keep the database. `forebay import` brings it into any database of forebay's; jq, DuckDB and pandas read it as
    it is.

    \b
    Examples:
      forebay export chats.jsonl --app app.py
      forebay export - --user ada --files ada/ | gzip > ada.jsonl.gz
    """
    from forebay.database.snapshot import Chosen

    moment = since.replace(tzinfo=UTC).strftime("%Y-%m-%dT%H:%M:%S") if since is not None else None
    taken = asyncio.run(
        take(application_of(app, database_url), file, Chosen(user, _spelled(thread_ids), moment), folder)
    )
    report = {"rows": taken.rows, "files": taken.files, "missing": taken.missing}
    tell(report, as_json=as_json, err=str(file) == "-")
    if taken.missing:
        raise SystemExit(1)


def _spelled(thread_ids: tuple[str, ...]) -> tuple[str, ...]:
    from forebay.model.ids import as_uuid

    return tuple(as_uuid(key) or key for key in thread_ids)


async def take(application: Application, file: Path, chosen: Chosen, folder: Path | None) -> Taken:
    """Write what is chosen into the file, and its contents below the folder. Raises a DatabaseError."""
    from forebay.transfer import take as transfer

    contents = transfer.Contents(access_of(application), folder) if folder is not None else None
    store = application.target.store()
    try:
        with _output(file) as into, options.bar("chats") as advance:
            return await transfer.take(store, into, chosen, contents=contents, progress=advance)
    finally:
        await store.close()


@contextmanager
def _output(file: Path) -> Iterator[BinaryIO]:
    """The file, which is there when it is whole, and readable by its owner alone; or standard output."""
    if str(file) == "-":
        yield sys.stdout.buffer
        return
    part = file.with_name(f"{file.name}.part")
    part.unlink(missing_ok=True)
    part.touch(mode=0o600)
    try:
        with part.open("wb") as into:
            yield into
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def access_of(application: Application) -> Access:
    """The application's storage. Raises StorageError where there is none."""
    from forebay.attachments.access import access

    return access(application.client("that --files could be of"))


def tell(report: Mapping[str, Any], *, as_json: bool, err: bool = False) -> None:
    """Say what was done: each value a number, a text, a list of names, or numbers by what was counted."""
    if as_json:
        printing.say_json(dict(report), err=err)
        return
    for what, found in report.items():
        printing.say(f"{what.replace('_', ' ')}: {_shown(found)}", err=err)


def _shown(found: Any) -> str:
    if isinstance(found, Mapping):
        counted = (
            f"{number:,} {kind if ' ' in kind else kind + 's'}" for kind, number in found.items() if number
        )
        return ", ".join(counted) or "none"
    if isinstance(found, list):
        return "\n".join(["", *(f"  {visible(key)}" for key in found)]) if found else "none"
    return f"{found:,}" if isinstance(found, int | float) else visible(str(found))
