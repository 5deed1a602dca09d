"""`forebay purge`: delete chats that nobody has used for a while."""

from __future__ import annotations

import asyncio
import re
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import click
from typing_extensions import override

from forebay.cli import options, printing
from forebay.cli.application import application_of

if TYPE_CHECKING:
    from forebay.cli.application import Application
    from forebay.layer.data_layer import ForebayDataLayer

_UNITS = {"h": "hours", "d": "days", "w": "weeks"}
_AGE = re.compile(r"(\d{1,5})([hdw])")
_SOME_CONTENTS = 'SELECT "objectKey" FROM elements WHERE "objectKey" IS NOT NULL LIMIT 10'


class _Age(click.ParamType[timedelta]):
    name = "age"

    @override
    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """A number and a unit."""
        if isinstance(value, timedelta):
            return value
        found = _AGE.fullmatch(str(value))
        if found is None:
            self.fail("an age is a number and a unit: 36h, 90d, 8w", param, ctx)
        return timedelta(**{_UNITS[found[2]]: int(found[1])})


@click.command(short_help="Delete chats that nobody has used for a while.")
@options.database_url
@options.app
@click.option(
    "--older-than",
    type=_Age(),
    required=True,
    metavar="AGE",
    envvar="FOREBAY_PURGE_OLDER_THAN",
    show_envvar=True,
    help="As 36h, 90d or 8w.",
)
@click.option(
    "--by",
    type=click.Choice(["activity", "created"]),
    default="activity",
    show_default=True,
    envvar="FOREBAY_PURGE_BY",
    show_envvar=True,
    help="The age of the newest step, or since the chat was begun.",
)
@click.option(
    "--user", metavar="LOGIN", envvar="FOREBAY_PURGE_USER", show_envvar=True, help="One person's chats only."
)
@click.option(
    "--without-owner",
    is_flag=True,
    envvar="FOREBAY_PURGE_WITHOUT_OWNER",
    show_envvar=True,
    help="Only chats that are nobody's.",
)
@click.option(
    "--keep-favorites",
    is_flag=True,
    envvar="FOREBAY_PURGE_KEEP_FAVORITES",
    show_envvar=True,
    help="Leave chats with a step that somebody has marked.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    envvar="FOREBAY_PURGE_DRY_RUN",
    show_envvar=True,
    help="Say how many there are, and delete nothing.",
)
@options.any_storage("PURGE")
@options.yes
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    envvar="FOREBAY_PURGE_JSON",
    show_envvar=True,
    help='Print one JSON object, for a script: {"threads": number, "deleted": true or false}.',
)
def purge(
    database_url: str | None,
    app: Path | None,
    older_than: timedelta,
    by: Literal["activity", "created"],
    user: str | None,
    without_owner: bool,
    keep_favorites: bool,
    dry_run: bool,
    any_storage: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Delete chats that nobody has used for a while, with their steps, feedback, elements and contents.

    They are deleted as by their owner, a few at a time, while the application goes on; a run that was ended goes on
    with the next. With --app the storage is the app's own, else the one that the variables name. It asks before it
    deletes, or takes --yes. One job at night is enough: not one in each replica.

    \b
    Examples:
      forebay purge --older-than 90d --dry-run --app app.py
      forebay purge --older-than 52w --keep-favorites --yes
    """
    application = application_of(app, database_url)
    how = {"dry_run": dry_run, "yes": yes, "any_storage": any_storage}
    count = asyncio.run(_run(application, older_than, by, user, without_owner, keep_favorites, **how))
    if as_json:
        printing.say_json({"threads": count, "deleted": not dry_run})
    else:
        printing.say(f"{count:,} chats" + (" would be deleted." if dry_run else " were deleted."))


async def _run(
    application: Application,
    older_than: timedelta,
    by: Literal["activity", "created"],
    user: str | None,
    without_owner: bool,
    keep_favorites: bool,
    *,
    dry_run: bool,
    yes: bool,
    any_storage: bool,
) -> int:
    layer = layer_of(application)
    chosen = partial(
        layer.purge, older_than, by=by, user=user, without_owner=without_owner, keep_favorites=keep_favorites
    )
    try:
        count = await chosen(dry_run=True)
        if dry_run or not count:
            return count
        if not any_storage:
            await require_contents(layer)
        options.confirm(f"Delete {count:,} chats for good?", yes=yes)
        with options.bar("chats") as advance:
            return await chosen(progress=lambda done: advance(done, count))
    finally:
        await layer.close()


async def require_contents(layer: ForebayDataLayer) -> None:
    """Raise ClickException where the storage has none of the contents that rows name: it is not theirs, it seems.

    To delete there what is elsewhere would be a success, and the contents would stay.
    """
    from forebay.attachments.access import access

    client = layer.storage_provider
    found: Any = await layer.execute_sql(_SOME_CONTENTS, {})
    keys = [row["objectKey"] for row in found]
    if client is None or not keys:  # without a storage they are kept in mind, and told
        return
    for key in keys:
        if await access(client).look(key) is not None:
            return
    raise click.ClickException(
        f"the storage ({type(client).__name__}) has none of {len(keys)} contents that rows name, so it is another one:"
        " name the app with --app, or the storage by its variables; if they are lost, take --any-storage"
    )


def layer_of(application: Application, **others: Any) -> ForebayDataLayer:
    """A layer beside the app's: nothing is read late, nothing is scraped, and a delete returns when it is done.

    `others`: settings that differ too.
    """
    from forebay.layer.data_layer import ForebayDataLayer

    target, client = application.target, application.storage()
    changed: dict[str, Any] = {"durability": "commit", "writer": "embedded", **others}
    changed |= {"metrics_address": "off", "read_url": None}
    if client is None:
        changed["storage"] = "none"
    return ForebayDataLayer(
        cast("str", target.url),  # it says what to set where there is none
        dict(target.connect_args),
        target.ssl_require,
        client,
        settings=application.settings.model_copy(update=changed),
    )
