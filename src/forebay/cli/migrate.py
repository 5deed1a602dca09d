"""`forebay migrate`: bring a database to forebay's tables."""

from __future__ import annotations

import asyncio
import json

import click


@click.command()
@click.option(
    "--database-url",
    envvar=["FOREBAY_DATABASE_URL", "DATABASE_URL"],
    show_envvar=True,
    metavar="URL",
    help="The database: postgresql://user:password@host/name or sqlite:///path/to/file.",
)
@click.option("--dry-run", is_flag=True, help="Print the SQL and change nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for a script.")
def migrate(database_url: str | None, dry_run: bool, as_json: bool) -> None:
    """Bring a database to forebay's tables, in place.

    It takes an empty database, or one that Chainlit's SQLAlchemyDataLayer has used since 2.0. Columns, indexes
    and one table are added; no row is lost, and SQLAlchemyDataLayer goes on working on the result. A second run
    does nothing. Large PostgreSQL tables stay writable meanwhile.

    \b
    Example:
      forebay migrate --database-url postgresql://me@localhost/chat --dry-run
    """
    from forebay.settings import Settings
    from forebay.store import Store

    async def run() -> str | list[str]:
        store = Store(database_url, Settings())
        try:
            return await (store.migration_plan() if dry_run else store.migrate())
        finally:
            await store.close()

    result = asyncio.run(run())
    if as_json:
        click.echo(json.dumps({"sql": result} if dry_run else {"done": result}))
    elif dry_run:
        click.echo(result or "-- the tables are up to date")
    else:
        click.echo("\n".join(result) or "The tables are up to date.")
