"""`forebay blobs orphans`: content in the storage that no element's row names."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

import click
from rich.console import Console

from forebay.errors import StorageError

if TYPE_CHECKING:
    from chainlit.data.storage_clients.base import BaseStorageClient

    from forebay.attachments.providers import Listed
    from forebay.database.store import Store
    from forebay.settings import Settings

_BATCH = 1000
_HOUR = 3600.0
# By the primary key where there are many; its text is the second part of the object key.
_POSTGRES_QUERY = """
SELECT "objectKey" AS key FROM elements WHERE id IN (
    SELECT CAST(value AS UUID) FROM json_array_elements_text(CAST(:ids AS JSON)) AS given(value))
"""
_SQLITE_QUERY = """
SELECT "objectKey" AS key FROM elements WHERE "objectKey" IN (SELECT value FROM json_each(:keys))
"""


@click.group(short_help="Elements' content in the storage.")
def blobs() -> None:
    """Look after elements' content in the storage.

    The storage is the one that the application uses when it passes none: Chainlit's variables name it (BUCKET_NAME,
    APP_AWS_…, APP_GCS_…, APP_AZURE_…), or else it is the folder FOREBAY_STORAGE_DIR.

    \b
    Example:
      forebay blobs orphans --database-url postgresql://me@localhost/chat
    """


@blobs.command()
@click.option(
    "--database-url",
    envvar=["FOREBAY_DATABASE_URL", "DATABASE_URL"],
    show_envvar=True,
    metavar="URL",
    help="The database: postgresql://user:password@host/name or sqlite:///path/to/file.",
)
@click.option(
    "--older-than",
    type=click.FloatRange(min=0),
    default=24.0,
    show_default=True,
    envvar="FOREBAY_BLOBS_OLDER_THAN",
    show_envvar=True,
    metavar="HOURS",
    help="Leave out what is younger: its row may be on its way.",
)
@click.option(
    "--delete", is_flag=True, envvar="FOREBAY_BLOBS_DELETE", show_envvar=True, help="Delete what is found."
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    envvar="FOREBAY_BLOBS_JSON",
    show_envvar=True,
    help='Print one JSON object, for a script: {"orphans": [{"key", "bytes"}], "deleted": number}.',
)
def orphans(database_url: str | None, older_than: float, delete: bool, as_json: bool) -> None:
    """Find content that no element's row names: what a crash or a failed delete has left behind.

    It works for the folder, S3 and Google Cloud Storage. In a bucket only objects are looked at whose keys have the
    form that Chainlit gives them; others are not forebay's.

    \b
    Example:
      forebay blobs orphans --database-url sqlite:///chat.db --delete
    """
    with Console(stderr=True).status("Comparing the storage with the rows"):
        found, deleted = asyncio.run(_run(database_url, older_than * _HOUR, delete=delete))
    if as_json:
        listed = [{"key": orphan.object_key, "bytes": orphan.size} for orphan in found]
        click.echo(json.dumps({"orphans": listed, "deleted": deleted}))
        return
    for orphan in found:
        click.echo(f"{orphan.size:>12}  {orphan.object_key.encode('utf-8', 'replace').decode()!r}")
    size = sum(orphan.size for orphan in found)
    click.echo(f"{len(found)} without a row, {size} bytes; {deleted} deleted.")


async def _run(url: str | None, age: float, *, delete: bool) -> tuple[list[Listed], int]:
    from forebay.attachments.folder import LocalStorageClient
    from forebay.attachments.providers import configured_storage
    from forebay.database.store import Store
    from forebay.settings import Settings

    settings = Settings()
    client = configured_storage(settings)
    if client is None:
        raise StorageError("FOREBAY_STORAGE=none: there is no storage to look into")
    store = Store(url, settings)
    try:
        found = [orphan async for orphan in _orphans(store, client, settings, time.time() - age)]
    finally:
        await store.close()
    deleted = 0
    if delete:
        for orphan in found:
            deleted += bool(await client.delete_file(orphan.object_key))
        if isinstance(client, LocalStorageClient):
            client.sweep()
    return found, deleted


async def _orphans(
    store: Store, client: BaseStorageClient, settings: Settings, before: float
) -> AsyncIterator[Listed]:
    from forebay.attachments.providers import listed
    from forebay.attachments.spool import waiting_keys

    waiting = waiting_keys(settings.journal_dir)
    candidates = (
        one
        for one in listed(client)
        if one.modified < before and one.object_key not in waiting and _is_an_elements(one.object_key)
    )
    for batch in _batches(candidates):
        known = await _known(store, [one.object_key for one in batch])
        for one in batch:
            if one.object_key not in known:
                yield one


def _batches(objects: Iterator[Listed]) -> Iterator[list[Listed]]:
    while batch := [*itertools.islice(objects, _BATCH)]:
        yield batch


def _is_an_elements(object_key: str) -> bool:
    """Whether it is `{user}/{element}/{name}`, or without the name."""
    parts = object_key.split("/")
    try:
        return len(parts) > 1 and bool(uuid.UUID(parts[1]))
    except ValueError:
        return False


async def _known(store: Store, keys: list[str]) -> set[str]:
    """Those that a row names."""
    from forebay.database.urls import is_postgres

    if is_postgres(store.url):
        rows = await store.execute_sql(
            _POSTGRES_QUERY, {"ids": json.dumps([key.split("/")[1] for key in keys])}
        )
    else:
        rows = await store.execute_sql(_SQLITE_QUERY, {"keys": json.dumps(keys)})
    return {row["key"] for row in rows} if isinstance(rows, list) else set()
