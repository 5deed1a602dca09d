"""`forebay migrate`: bring a database to forebay's tables."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import click

from forebay.cli import options, printing
from forebay.cli.application import application_of
from forebay.primitives.visible import visible

if TYPE_CHECKING:
    from forebay.database.store import Store


@click.command(short_help="Bring a database to forebay's tables.")
@options.database_url
@options.app
@click.option(
    "--dry-run",
    is_flag=True,
    envvar="FOREBAY_MIGRATE_DRY_RUN",
    show_envvar=True,
    help="Print the SQL and change nothing.",
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    envvar="FOREBAY_MIGRATE_JSON",
    show_envvar=True,
    help='Print one JSON object, for a script: {"done": [lines]}, or {"sql": text} with --dry-run.',
)
def migrate(database_url: str | None, app: Path | None, dry_run: bool, as_json: bool) -> None:
    """Bring a database to forebay's tables, in place.

    It takes an empty database, or one that Chainlit's SQLAlchemyDataLayer has used since 2.0. Columns, indexes
    and three tables are added; no row is lost, and SQLAlchemyDataLayer goes on working on the result. A second run
    does nothing. Large PostgreSQL tables stay writable meanwhile.

    \b
    Examples:
      forebay migrate --app app.py --dry-run
      FOREBAY_DATABASE_URL=postgresql://me:secret@localhost/chat forebay migrate
    """
    # On standard error, and on a terminal only: indexes of large tables take minutes.
    with printing.console(stderr=True).status("Looking at the tables" if dry_run else "Migrating the tables"):
        result = asyncio.run(_run(database_url, app, dry_run=dry_run))
    if as_json:
        printing.say_json({"sql": result} if dry_run else {"done": result})
    elif isinstance(result, str):
        printing.say(result or "-- the tables are up to date")
    else:
        printing.say("\n".join(map(visible, result)) or "The tables are up to date.")


async def _run(url: str | None, app: Path | None, *, dry_run: bool) -> str | list[str]:
    from forebay.database.store import Store

    target = application_of(app, url).target
    store = target.store()
    if dry_run and _would_make_a_file(store):
        store = Store("sqlite://", target.settings)  # what an empty database needs is the same
    try:
        return await (store.migration_plan() if dry_run else store.migrate())
    finally:
        await store.close()


def _would_make_a_file(store: Store) -> bool:
    """Whether connecting alone would make the SQLite file. Where it can't be made, the error is welcome."""
    from forebay.database.urls import in_memory, is_postgres

    name = store.url.database or ""
    if is_postgres(store.url) or in_memory(store.url) or name.startswith("file:"):
        return False
    return not Path(name).exists() and Path(name).parent.is_dir()
