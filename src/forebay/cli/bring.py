"""`forebay import`: chats from an export, or from Chainlit's official layer."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from forebay.cli import options, printing
from forebay.cli.application import application_of
from forebay.cli.bring_chats import FORMS, Wanted, bring_chats
from forebay.cli.passes import pass_by_pass, told, told_rows
from forebay.cli.take_along import access_of, tell

if TYPE_CHECKING:
    from forebay.attachments.access import Access
    from forebay.cli.application import Application
    from forebay.transfer.bring import Brought
    from forebay.transfer.change_over import ChangeOver
    from forebay.transfer.clocks import Zones

_SAMPLED_ROWS = 5000


@dataclass(frozen=True)
class _Wanted:
    """What is to be done with a source that is another layer's."""

    dry_run: bool
    follow: bool
    final: bool
    yes: bool
    verify: int
    views: str | None


@click.command("import", short_help="Bring chats from a file, or from another data layer.")
@click.argument("source", envvar="FOREBAY_IMPORT_SOURCE", metavar="SOURCE")
@options.database_url
@options.app
@click.option(
    "--from",
    "form",
    type=click.Choice(["jsonl", "official", *FORMS]),
    envvar="FOREBAY_IMPORT_FROM",
    show_envvar=True,
    help="What SOURCE is: an export's file, or the database URL of Chainlit's official layer, by default as it looks;"
    " a table of its DynamoDB layer; a file of Literal AI's threads; an app, or module:function, with any data layer.",
)
@click.option(
    "--users",
    type=click.Path(dir_okay=False, exists=True, path_type=Path),
    metavar="FILE",
    envvar="FOREBAY_IMPORT_USERS",
    show_envvar=True,
    help="layer: whose chats, a login name a line.",
)
@click.option(
    "--files",
    "folder",
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    envvar="FOREBAY_IMPORT_FILES",
    show_envvar=True,
    help="jsonl: bring the elements' content from this folder into the storage too.",
)
@click.option(
    "--follow",
    is_flag=True,
    envvar="FOREBAY_IMPORT_FOLLOW",
    show_envvar=True,
    help="not for files: pass after pass, each over what has changed since, until one takes less than 5 seconds or has"
    " no less to copy than the one before.",
)
@click.option(
    "--final",
    is_flag=True,
    envvar="FOREBAY_IMPORT_FINAL",
    show_envvar=True,
    help="not for files: the last pass, when nobody writes there any more; chats deleted there are deleted here.",
)
@click.option(
    "--verify",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    envvar="FOREBAY_IMPORT_VERIFY",
    show_envvar=True,
    help="official: afterwards read N chats, drawn at random, on both sides, and compare them.",
)
@click.option(
    "--views",
    metavar="SCHEMA",
    envvar="FOREBAY_IMPORT_VIEWS",
    show_envvar=True,
    help="official: make its tables as views in this schema of the database, for dashboards.",
)
@click.option(
    "--app-timezone",
    metavar="ZONE",
    envvar="FOREBAY_IMPORT_APP_TIMEZONE",
    show_envvar=True,
    help="not for files: where the application's clock stood, as Europe/Berlin; by default as the rows tell, or UTC.",
)
@click.option(
    "--database-timezone",
    metavar="ZONE",
    envvar="FOREBAY_IMPORT_DATABASE_TIMEZONE",
    show_envvar=True,
    help="official: the same for the database's clock.",
)
@click.option(
    "--feedback-name",
    "feedback_names",
    multiple=True,
    metavar="NAME",
    default=["user_feedback"],
    show_default=True,
    envvar="FOREBAY_IMPORT_FEEDBACK_NAME",
    show_envvar=True,
    help="official: which feedbacks are people's, by their name there; may be said several times.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    envvar="FOREBAY_IMPORT_DRY_RUN",
    show_envvar=True,
    help="Say what is in it, what would be left out, and about how long it takes and how much room; write nothing.",
)
@options.yes
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    envvar="FOREBAY_IMPORT_JSON",
    show_envvar=True,
    help='Say what was done as one JSON object: {"rows": {kind: number}, "deleted": …, "refused": …, "files": number}.',
)
def bring(
    source: str,
    database_url: str | None,
    app: Path | None,
    form: str | None,
    users: Path | None,
    folder: Path | None,
    follow: bool,
    final: bool,
    verify: int,
    views: str | None,
    app_timezone: str | None,
    database_timezone: str | None,
    feedback_names: tuple[str, ...],
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Bring chats into a database: what `forebay export` has written, or another data layer of Chainlit's has stored.

    What the database has that is newer stays, what was deleted there stays deleted, and a second run changes nothing;
    the application goes on meanwhile. People are known by their login names. A file is read whole before anything is
    written: one that was cut or changed is refused. The official layer's tables are read with the right to SELECT
    alone, and stay as they are; a run that was ended goes on with the next. Where its URL holds a password, set
    FOREBAY_IMPORT_SOURCE and name no SOURCE. Exit code 1: some rows were refused, or differ.

    \b
    Examples:
      forebay import chats.jsonl --app app.py
      forebay import postgresql://reader@localhost/official --dry-run
      forebay import postgresql://reader@localhost/official --follow
      forebay import postgresql://reader@localhost/official --final --verify 100
      forebay import chats --from dynamodb --follow
      forebay import old_app.py --from layer --users people.txt
    """
    application = application_of(app, database_url)
    if form in FORMS:
        if folder is not None or verify or views or database_timezone:
            raise click.UsageError(
                "--files, --verify, --views and --database-timezone are not for this source"
            )
        wanted_chats = Wanted(form, users, app_timezone, dry_run, follow, final, yes)
        report, is_good = bring_chats(source, application, wanted_chats)
    elif users is not None:
        raise click.UsageError("--users is for --from layer")
    elif (form or ("official" if "://" in source else "jsonl")) == "jsonl":
        if follow or final or verify or views or app_timezone or database_timezone:
            raise click.UsageError(
                "an export is brought at once: --follow, --final, --verify and time zones are not for it"
            )
        report, is_good = _bring_file(Path(source), application, folder, dry_run=dry_run)
    else:
        if folder is not None:
            raise click.UsageError(
                "--files is for an export: the official layer's contents stay in its storage"
            )
        wanted = _Wanted(dry_run, follow, final, yes, verify, views)
        zones = (app_timezone, database_timezone)
        report, is_good = asyncio.run(_change_over(source, application, zones, feedback_names, wanted))
    tell(report, as_json=as_json)
    if not is_good:
        raise SystemExit(1)


def _bring_file(
    path: Path, application: Application, folder: Path | None, *, dry_run: bool
) -> tuple[Mapping[str, Any], bool]:
    from forebay.transfer import lines

    if not path.is_file():
        raise click.UsageError(f"{path}: there is no such file")
    if dry_run:
        found = lines.verify(path)
        return {"rows": found, "about": _estimate(path, sum(found.values()))}, True
    brought = asyncio.run(_bring(application, path, folder))
    return told_rows(brought), not brought.refused


def _estimate(path: Path, rows: int) -> dict[str, int]:
    from forebay.transfer import lines
    from forebay.transfer.estimate import Sample

    sample, some = Sample(), list(islice(lines.rows(path), _SAMPLED_ROWS))
    sample.add(some)
    return sample.of(len(some) / rows if rows else 0)


async def _bring(application: Application, path: Path, folder: Path | None) -> Brought:
    from forebay.transfer.bring import bring_export

    access: Access | None = access_of(application) if folder is not None else None
    store = application.target.store()
    try:
        with options.bar("rows") as advance:
            return await bring_export(store, path, advance, access, folder)
    finally:
        await store.close()


async def _change_over(
    source_url: str,
    application: Application,
    zones: tuple[str | None, str | None],
    feedback_names: tuple[str, ...],
    wanted: _Wanted,
) -> tuple[Mapping[str, Any], bool]:
    from forebay.database.official import Official
    from forebay.transfer.change_over import ChangeOver, Choices

    source, store = Official(source_url, application.settings), application.target.store()
    try:
        change_over = ChangeOver(source, store, Choices(*zones, feedback_names))
        return await (_look(change_over) if wanted.dry_run else _copy(change_over, wanted))
    finally:
        await source.close()
        await store.close()


async def _look(change_over: ChangeOver) -> tuple[Mapping[str, Any], bool]:
    looked, zones, about = await change_over.look()
    report = {"rows": looked.rows, "left_out": looked.left_out, "without_uuid": looked.no_uuids}
    return {**report, "clocks": _shown(zones), "may_be_hidden": list(looked.hidden), "about": about}, True


async def _copy(change_over: ChangeOver, wanted: _Wanted) -> tuple[Mapping[str, Any], bool]:
    zones = await change_over.prepare()
    printing.say(f"clocks: {_shown(zones)}", err=True)
    done = await pass_by_pass(change_over, follow=wanted.follow)
    report = told(done)
    is_good = not done.brought.refused
    if wanted.verify:
        compared, differences = await change_over.verify(wanted.verify)
        report |= {
            "compared": compared,
            "different": [f"{one.table} {one.key} {one.column}" for one in differences],
        }
        is_good = is_good and not differences
    if wanted.views:
        await change_over.make_views(wanted.views)
        report["views"] = wanted.views
    if wanted.final:
        removed = await change_over.finish(anyhow=wanted.yes)
        report["removed"] = dict(done.brought.removed + removed.removed)
    return report, is_good


def _shown(zones: Zones) -> str:
    return f"application {zones.application}, database {zones.database}"
