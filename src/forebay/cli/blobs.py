"""`forebay blobs`: content in the storage that no element's row names, and what is in a former storage."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from forebay.cli import options, printing
from forebay.cli.application import application_of
from forebay.cli.move import move
from forebay.errors import StorageError
from forebay.primitives.visible import visible

if TYPE_CHECKING:
    from forebay.attachments.access import Listed
    from forebay.attachments.orphans import Comparison, Orphans

_HOUR = 3600.0


@click.group(short_help="Elements' content in the storage.")
def blobs() -> None:
    """Look after elements' content in the storage.

    The storage is the one that the application uses when it passes none: Chainlit's variables name it (BUCKET_NAME,
    APP_AWS_…, APP_GCS_…, APP_AZURE_…), or else it is the folder FOREBAY_STORAGE_DIR.

    \b
    Example:
      forebay blobs orphans --app app.py
    """


blobs.add_command(move)


@blobs.command(short_help="Find, and delete, contents that no row names.")
@options.database_url
@options.app
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
    "--prefix",
    default="",
    envvar="FOREBAY_BLOBS_PREFIX",
    show_envvar=True,
    help="Look at all keys that begin so, whatever their form, and at no others.",
)
@click.option(
    "--delete", is_flag=True, envvar="FOREBAY_BLOBS_DELETE", show_envvar=True, help="Delete what is found."
)
@options.yes
@click.option("--all", "every", is_flag=True, help="Delete also if that is most of what is there.")
@click.option(
    "--forget-others",
    is_flag=True,
    help="The other databases whose contents are in the storage are gone: it is this one's alone.",
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    envvar="FOREBAY_BLOBS_JSON",
    show_envvar=True,
    help='Print one JSON object, for a script: {"orphans": [{"key", "bytes"}], "deleted": number}.',
)
def orphans(
    database_url: str | None,
    app: Path | None,
    older_than: float,
    prefix: str,
    delete: bool,
    yes: bool,
    every: bool,
    forget_others: bool,
    as_json: bool,
) -> None:
    """Find content that no element's row names: what a crash or a failed delete has left behind.

    It works for the folder, S3, Google Cloud Storage and Azure. Without --prefix only objects are looked at whose
    keys have an id among their parts, as every layer of Chainlit's makes them; others are not an element's.

    A storage belongs to one database, and bears its mark. What is in another's is not deleted, and most of what there
    is only with --all.

    \b
    Example:
      forebay blobs orphans --database-url sqlite:///chat.db --delete
    """
    wish = _Wish(older_than * _HOUR, prefix, delete, yes, every, forget_others, as_json)
    asyncio.run(_run(database_url, app, wish))


@dataclass(frozen=True, slots=True)
class _Wish:
    age: float
    prefix: str
    delete: bool
    yes: bool
    every: bool
    forget_others: bool
    as_json: bool


async def _run(url: str | None, app: Path | None, wish: _Wish) -> None:
    from forebay.attachments.access import access
    from forebay.attachments.orphans import Orphans

    application = application_of(app, url)
    settings, client = application.settings, application.client("to look into")
    store = application.target.store()
    try:
        sut = Orphans(store, access(client), settings.journal_dir, wish.prefix)
        with printing.console(stderr=True).status("Comparing the storage with the rows"):
            comparison = await sut.compare(time.time() - wish.age)
        deleted = await _delete(sut, comparison, wish) if wish.delete else 0
    finally:
        await store.close()
    _tell(comparison.orphans, deleted, as_json=wish.as_json)


async def _delete(sut: Orphans, comparison: Comparison, wish: _Wish) -> int:
    from forebay.attachments.orphans import require_ours

    if wish.forget_others:
        await sut.forget_others()
    require_ours(await sut.others())
    count = len(comparison.orphans)
    if comparison.would_take_most and not wish.every:
        raise StorageError(
            f"{count} of the {comparison.looked_at} objects that were looked at have no row in this database: nothing"
            " was deleted. Is it the right database? If it is, say --all"
        )
    if count:
        options.confirm(f"Delete {count} objects, {_size(comparison.orphans)} bytes, for good?", yes=wish.yes)
    return await sut.delete(comparison.orphans)


def _tell(found: Sequence[Listed], deleted: int, *, as_json: bool) -> None:
    if as_json:
        listed = [{"key": orphan.object_key, "bytes": orphan.size} for orphan in found]
        printing.say_json({"orphans": listed, "deleted": deleted})
        return
    for orphan in found:
        printing.say(f"{orphan.size:>12}  {visible(orphan.object_key)!r}")
    printing.say(f"{len(found)} without a row, {_size(found)} bytes; {deleted} deleted.")


def _size(found: Sequence[Listed]) -> int:
    return sum(orphan.size for orphan in found)
