"""`forebay config`: the settings in effect, and where each comes from."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from forebay.cli import environment, options, printing
from forebay.cli.application import application_of

if TYPE_CHECKING:
    from forebay.settings import Settings

_DEFAULT = "default"
_HIDDEN = "***"


@dataclass(frozen=True)
class _Setting:
    variable: str
    value: Any
    source: str


@click.command(short_help="The settings in effect, and where each comes from.")
@options.app
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    envvar="FOREBAY_CONFIG_JSON",
    show_envvar=True,
    help='Print one JSON object: {"linger": {"variable": name, "value": value, "source": where from}, …}.',
)
def config(app: Path | None, as_json: bool) -> None:
    """Show the settings that an app started here would have, and where each comes from; secrets are hidden.

    A value comes from a variable of the environment, from Chainlit's .env file, or is the default. What an app's own
    code passes to Settings(...) is seen with --app.

    Exit codes: 0, shown; 1, a value is wrong, and named.

    \b
    Examples:
      forebay config
      forebay config --json | jq .queue_max_bytes
    """
    found = _found(app)
    if as_json:
        printing.say_json({name: asdict(setting) for name, setting in found.items()})
        return
    table = Table("variable", "value", "from", box=None, pad_edge=False, header_style="bold")
    for setting in found.values():
        style = "dim" if setting.source == _DEFAULT else ""
        cells = (setting.variable, _said(setting.value), setting.source)
        table.add_row(*(printing.cell(cell, style) for cell in cells))
    printing.console().print(table)


def _found(app: Path | None) -> dict[str, _Setting]:
    from forebay.settings import Settings, variable_of

    added: dict[str, str] = click.get_current_context().obj
    settings = Settings()
    found = {
        name: _Setting(variable_of(name), _shown(settings, name), _source(name, added))
        for name in Settings.model_fields
    }
    return found if app is None else found | _of_app(app, settings)


def _of_app(app: Path, settings: Settings) -> dict[str, _Setting]:
    """What an app's data layer has otherwise."""
    from forebay.settings import variable_of

    application = application_of(app)
    theirs = application.settings.model_copy(update={"database_url": application.target.url})
    return {
        name: _Setting(variable_of(name), _shown(theirs, name), str(app))
        for name in type(settings).model_fields
        if getattr(theirs, name) != getattr(settings, name)
    }


def _source(name: str, added: dict[str, str]) -> str:
    """The variable that sets a field, in the order in which the settings look for it."""
    from forebay.settings import variable_of

    names = [variable_of(name), *(["DATABASE_URL"] if name == "database_url" else [])]
    spelled = {variable.upper(): variable for variable in os.environ}
    for variable in names:
        if variable in spelled:
            where = f" in {environment.env_file()}" if spelled[variable] in added else ""
            return f"{variable}{where}"
    return _DEFAULT


def _shown(settings: Settings, name: str) -> Any:
    value = getattr(settings, name)
    if isinstance(value, Path):
        return str(value)
    if value is None or type(settings).model_fields[name].repr:
        return value
    return _without_password(value) if name in ("database_url", "read_url") else _HIDDEN


def _without_password(url: str) -> str:
    from forebay.database.urls import location_of, parse_url
    from forebay.errors import SettingsError

    try:
        return location_of(parse_url(url)[0])
    except SettingsError:
        return _HIDDEN


def _said(value: Any) -> str:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)
