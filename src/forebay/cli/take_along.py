"""`forebay export` and `forebay import`: chats as a file, and back."""

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
    from forebay.transfer.bring import Brought
    from forebay.transfer.take import Contents, Taken


@click.command("export")
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
        _take(application_of(app, database_url), file, Chosen(user, _spelled(thread_ids), moment), folder)
    )
    report = {"rows": taken.rows, "files": taken.files, "missing": taken.missing}
    _tell(report, as_json=as_json, err=str(file) == "-")
    if taken.missing:
        raise SystemExit(1)


def _spelled(thread_ids: tuple[str, ...]) -> tuple[str, ...]:
    from forebay.model.ids import as_uuid

    return tuple(as_uuid(key) or key for key in thread_ids)


async def _take(application: Application, file: Path, chosen: Chosen, folder: Path | None) -> Taken:
    from forebay.transfer.take import Contents, take

    contents: Contents | None = Contents(_access(application), folder) if folder is not None else None
    store = application.target.store()
    try:
        with _output(file) as into, options.bar("chats") as advance:
            return await take(store, into, chosen, contents=contents, progress=advance)
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


@click.command("import")
@click.argument("file", type=click.Path(dir_okay=False, exists=True, path_type=Path))
@options.database_url
@options.app
@click.option(
    "--files",
    "folder",
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    envvar="FOREBAY_IMPORT_FILES",
    show_envvar=True,
    help="Bring the elements' content from this folder into the storage too.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    envvar="FOREBAY_IMPORT_DRY_RUN",
    show_envvar=True,
    help="Look whether the file is whole, say what is in it, and write nothing.",
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    envvar="FOREBAY_IMPORT_JSON",
    show_envvar=True,
    help='Say what was done as one JSON object: {"rows": {kind: number}, "deleted": …, "refused": …, "files": number}.',
)
def bring(
    file: Path, database_url: str | None, app: Path | None, folder: Path | None, dry_run: bool, as_json: bool
) -> None:
    """Bring what `forebay export` has written into a database.

    The file is read whole before anything is written: one that was cut or changed is refused. What the database has
    that is newer stays, what was deleted there stays deleted, and a second run changes nothing; the application goes on
    meanwhile. People are known by their login names. Exit code 1: some rows were refused.

    \b
    Example:
      forebay import chats.jsonl --app app.py
    """
    from forebay.transfer import lines

    if dry_run:
        _tell({"rows": lines.verify(file)}, as_json=as_json)
        return
    brought = asyncio.run(_bring(application_of(app, database_url), file, folder))
    report = {
        "rows": dict(brought.rows),
        "deleted": dict(brought.deleted),
        "refused": dict(brought.refused),
        "files": brought.files,
    }
    _tell(report, as_json=as_json)
    if brought.refused:
        raise SystemExit(1)


async def _bring(application: Application, file: Path, folder: Path | None) -> Brought:
    from forebay.transfer.bring import Bringer

    access: Access | None = _access(application) if folder is not None else None
    store = application.target.store()
    try:
        with options.bar("rows") as advance:
            return await Bringer(store, access, folder).bring(file, advance)
    finally:
        await store.close()


def _access(application: Application) -> Access:
    from forebay.attachments.access import access

    return access(application.client("that --files could be of"))


def _tell(report: Mapping[str, Any], *, as_json: bool, err: bool = False) -> None:
    if as_json:
        printing.say_json(dict(report), err=err)
        return
    for what, found in report.items():
        if isinstance(found, Mapping):
            counted = ", ".join(f"{number:,} {kind}s" for kind, number in found.items() if number)
            shown = counted or "none"
        elif isinstance(found, list):
            shown = "\n".join(["", *(f"  {visible(key)}" for key in found)]) if found else "none"
        else:
            shown = f"{found:,}"
        printing.say(f"{what}: {shown}", err=err)
