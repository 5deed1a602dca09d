"""`forebay import` from sources that give whole chats: DynamoDB, what was saved of Literal AI, any data layer."""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from forebay.cli.application import layer_made_by
from forebay.cli.passes import pass_by_pass, told
from forebay.primitives.visible import visible

if TYPE_CHECKING:
    from forebay.cli.application import Application
    from forebay.transfer.chats import Chats
    from forebay.transfer.copy_chats import ChatCopy

FORMS = ("dynamodb", "literal", "layer")


@dataclass(frozen=True)
class Wanted:
    """What is to be done with the source."""

    form: str
    users: Path | None
    app_timezone: str | None
    dry_run: bool
    follow: bool
    final: bool
    yes: bool


def bring_chats(source: str, application: Application, wanted: Wanted) -> tuple[Mapping[str, Any], bool]:
    """The report, and whether no row was refused. Raises a ForebayError, or UsageError."""
    return asyncio.run(_bring(_open(source, wanted), application, wanted))


def _open(source: str, wanted: Wanted) -> Callable[[], Chats]:
    """What opens it: a layer is made in the event loop that it lives in."""
    if (wanted.users is None) == (wanted.form == "layer"):
        raise click.UsageError("--users and --from layer go together: a data layer lists no people")
    if wanted.form == "dynamodb":
        from forebay.transfer.dynamodb import DynamoTable

        return lambda: DynamoTable(source)
    if wanted.form == "literal":
        from forebay.transfer.literal import LiteralFile

        path = Path(source)
        if not path.is_file():
            raise click.UsageError(f"{source}: there is no such file")
        return lambda: LiteralFile(path)
    from forebay.transfer.other_layer import OtherLayer

    assert wanted.users is not None
    names = [line.strip() for line in wanted.users.read_text().splitlines() if line.strip()]
    return lambda: OtherLayer(_layer_of(source), names, source)


def _layer_of(source: str) -> Any:
    """An app, by its @cl.data_layer; or `module:function`, which makes one."""
    module, _, function = source.partition(":")
    if not function:
        return layer_made_by(Path(source))
    sys.path.insert(0, str(Path.cwd()))
    try:
        return getattr(importlib.import_module(module), function)()
    except Exception as failed:  # whatever a module raises when it is loaded
        said = visible(f"{type(failed).__name__}: {failed}")
        raise click.ClickException(f"{source} makes no data layer ({said})") from None


async def _bring(
    opened: Callable[[], Chats], application: Application, wanted: Wanted
) -> tuple[Mapping[str, Any], bool]:
    from forebay.transfer.clocks import zone
    from forebay.transfer.copy_chats import ChatCopy

    zones = (zone(wanted.app_timezone),) if wanted.app_timezone is not None else ()
    source, store = opened(), application.target.store()
    try:
        copy = ChatCopy(source, store, *zones)
        return await (_look(copy) if wanted.dry_run else _copy(copy, wanted))
    finally:
        await source.close()
        await store.close()


async def _look(copy: ChatCopy) -> tuple[Mapping[str, Any], bool]:
    rows, left_out, about = await copy.look()
    return {"rows": rows, "left_out": dict(left_out), "about": about}, True


async def _copy(copy: ChatCopy, wanted: Wanted) -> tuple[Mapping[str, Any], bool]:
    await copy.prepare()
    done = await pass_by_pass(copy, follow=wanted.follow)
    report = told(done)
    if wanted.final:
        report["removed"] = dict(done.brought.removed + (await copy.finish(anyhow=wanted.yes)).removed)
    return report, not done.brought.refused
