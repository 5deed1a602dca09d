"""All that a command prints goes through here: what people wrote is shown, and does nothing to the terminal.

Rich reads `[…]` in a plain string as markup, with links and styles; a terminal obeys control characters, and shows
text that turns its direction as something else. So no other module of the commands makes a console or echoes.
"""

from __future__ import annotations

import codecs
import json
import os
import sys
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from forebay.primitives.visible import visible, visible_lines

# What the commands' own signs are in an encoding that lacks them.
_PLAIN = {
    "✓": "+",
    "✗": "x",
    "·": "-",
    "→": "->",
    "…": "...",
    "█": "#",
    "░": ".",
    "≤": "<=",
    "∞": "inf",
    "µ": "u",
    "—": "-",
}
_HANDLER = "forebay.cli"
_WIDE = 10_000  # columns, where nobody looks: what a program reads is not folded


def prepare_streams() -> None:
    """Let standard output and error take every character, whatever their encoding lacks."""
    codecs.register_error(_HANDLER, _replaced)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors=_HANDLER)


def _replaced(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(_PLAIN.get(char) or _backslashed(char) for char in lacking), error.end


def _backslashed(char: str) -> str:
    return char.encode("ascii", "backslashreplace").decode("ascii")


def console(*, stderr: bool = False) -> Console:
    """A console that takes strings as they are, and does not fold what is piped into a program."""
    made = Console(stderr=stderr, markup=False, emoji=False, highlight=False)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = _WIDE
    return made


def cell(value: object, style: str = "") -> Text:
    """A value for a table or a line, whoever wrote it. It is folded where there is no room, never cut."""
    return Text(visible(str(value)), style, overflow="fold")


def say(text: str, *, err: bool = False) -> None:
    """Print lines; their breaks are the program's own, so what others wrote is made `visible` before it is put in."""
    click.echo(visible_lines(text), err=err)


def say_fields(*fields: str) -> None:
    """Print a line for a program: its fields between tabs."""
    click.echo("\t".join(map(visible, fields)))


def say_json(value: Any, *, indent: int | None = None, err: bool = False) -> None:
    """Print JSON in which what can't be seen is escaped, and other scripts than Latin can be read."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    click.echo(
        "".join(char if char.isprintable() or char == "\n" else _json_escaped(char) for char in text), err=err
    )


def _json_escaped(char: str) -> str:
    return json.dumps(char)[1:-1]
