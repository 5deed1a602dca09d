"""The reference, from the code itself: settings, metrics, commands, errors, tables, the API, the layout."""

from __future__ import annotations

import ast
import inspect
import os
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType
from typing import Any, get_args

import click
import sqlalchemy as sa
from annotated_types import Ge, Gt, Le
from pydantic.fields import FieldInfo
from sqlalchemy.dialects import postgresql, sqlite

import forebay
from forebay.cli import main
from forebay.model import schema
from forebay.settings import Settings, variable_of
from forebay.telemetry.catalogue import INSTRUMENTS
from scripts.markdown import code, paragraph, table

_SOURCE = Path(__file__).parents[1] / "src" / "forebay"
DOOR = "Its door:"  # how the paragraph begins that names what other rooms may import of a room
_WIDTH = 100  # of a command's help
_UNITS = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))


# ---- settings


def settings() -> str:
    """Every variable, its default, what it takes, and what it is."""
    header = ("variable", "default", "takes", "what it is")
    return table(header, [_setting(name, field) for name, field in Settings.model_fields.items()])


def _setting(name: str, field: FieldInfo) -> tuple[str, ...]:
    return f"`{variable_of(name)}`", _default(field), _range(field), field.description or ""


def _default(field: FieldInfo) -> str:
    if field.default_factory is not None:
        root = Path(os.environ.get("CHAINLIT_APP_ROOT") or Path.cwd())
        return f"`{field.get_default(call_default_factory=True).relative_to(root)}` in Chainlit's app root"
    if field.default is None:
        return ""
    value = str(field.default).lower() if isinstance(field.default, bool) else str(field.default)
    return code(value) + (f" ({size})" if (size := _bytes(field.default)) else "")


def _bytes(value: object) -> str:
    """A whole number of bytes, for people; empty for what is none."""
    if isinstance(value, int) and not isinstance(value, bool):
        for unit, size in _UNITS:
            if value >= size and value % size == 0:
                return f"{value // size:,} {unit}"
    return ""


def _range(field: FieldInfo) -> str:
    if choices := [value for value in get_args(field.annotation) if isinstance(value, str)]:
        return ", ".join(map(code, choices))
    words = []
    for rule in field.metadata:
        if isinstance(rule, Ge):
            words.append(f"at least {_amount(rule.ge)}")
        if isinstance(rule, Gt):
            words.append(f"more than {_amount(rule.gt)}")
        if isinstance(rule, Le):
            words.append(f"at most {_amount(rule.le)}")
    return ", ".join(words)


def _amount(value: Any) -> str:
    return _bytes(value) or f"{value:,}"


# ---- metrics


def metrics() -> str:
    """Every metric."""
    header = ["| metric | type | labels | what it is |", "| --- | --- | --- | --- |"]
    return "\n".join([*header, *(instrument.row for instrument in INSTRUMENTS)])


# ---- commands


def cli() -> str:
    """What `--help` says, of every command."""
    return "\n\n".join(_commands("forebay", main, None))


def _commands(name: str, command: click.Command, parent: click.Context | None) -> Iterator[str]:
    short = name.rpartition(" ")[2]
    context = click.Context(
        command, parent, short, terminal_width=_WIDTH, max_content_width=_WIDTH, **command.context_settings
    )
    yield f"## {name}\n\n```text\n{command.get_help(context)}\n```"
    if isinstance(command, click.Group):
        for word in sorted(command.commands):
            yield from _commands(f"{name} {word}", command.commands[word], context)


# ---- errors


def errors() -> str:
    """Every error, with what it is also."""
    public = [getattr(forebay, name) for name in forebay.__all__]
    found = [one for one in public if isinstance(one, type) and issubclass(one, BaseException)]
    return table(("error", "is a", "what happened"), map(_error, found))


def _error(error: type[BaseException]) -> tuple[str, ...]:
    bases = ", ".join(f"`{base.__name__}`" for base in error.__bases__)
    return f"`{error.__name__}`", bases, paragraph(error.__doc__ or "")


# ---- tables


def tables() -> str:
    """Every table with its columns and indexes."""
    own = [found for found in schema.metadata.sorted_tables if found.name not in schema.TABLES]
    return "\n\n".join(_table(found) for found in (*schema.TABLES.values(), *own))


def _table(found: sa.Table) -> str:
    header = ("column", "PostgreSQL", "SQLite", "null", "when two writes meet", "first value")
    text = f"### {found.name}\n\n{table(header, [_column(column) for column in found.columns])}"
    indexes = sorted(f"- `{index.name}` on {_indexed(index)}" for index in found.indexes)
    return text + ("\n\nIndexes:\n\n" + "\n".join(indexes) if indexes else "")


def _column(column: sa.Column[Any]) -> tuple[str, ...]:
    types = (str(column.type.compile(dialect())) for dialect in (postgresql.dialect, sqlite.dialect))
    return (
        f"`{column.name}`" + (", key" if column.primary_key else ""),
        *map(code, types),
        "yes" if column.nullable else "no",
        _MEETING.get(column.info.get("merge", ...), ""),
        _first(column),
    )


_MEETING: dict[object, str] = {
    schema.Merge.LAST: "the newer stays",
    schema.Merge.FIRST: "the older stays",
    schema.Merge.MAX: "the greater stays",
    schema.Merge.MIN: "the smaller stays",
    schema.Merge.KEYS: "key by key, the newer",
}


def _first(column: sa.Column[Any]) -> str:
    default = schema.default_of(column)
    if default is None:
        return ""
    return "the time of the change" if default is schema.NOW else f"`{default!r}`"


def _indexed(index: sa.Index) -> str:
    return ", ".join(f"`{str(one).partition('.')[2]}`" for one in index.expressions)


# ---- the API


def api() -> str:
    """The data layer's methods, and what else is public."""
    layer = forebay.ForebayDataLayer
    return "\n\n".join(
        [
            _entry("ForebayDataLayer", layer, layer.__init__),
            *(_member(name, member) for name, member in vars(layer).items() if not name.startswith("_")),
            _entry("lifespan", forebay.lifespan, forebay.lifespan),
            _entry("LocalStorageClient", forebay.LocalStorageClient, forebay.LocalStorageClient.__init__),
        ]
    )


def _member(name: str, member: Any) -> str:
    if isinstance(member, property):
        return f"### {name}\n\n{_text(member)}"
    plain = member.__func__ if isinstance(member, classmethod) else member
    assert isinstance(plain, FunctionType), name
    return _entry(name, plain, plain, level=3)


def _entry(name: str, described: Any, called: Any, *, level: int = 2) -> str:
    signature = inspect.signature(called)
    shown = [p for p in signature.parameters.values() if p.name not in ("self", "cls")]
    lines = "".join(f"    {parameter},\n" for parameter in _marked(shown))
    call = f"{name}(\n{lines})" if lines else f"{name}()"
    result = str(signature.return_annotation)
    waits = inspect.iscoroutinefunction(called) or result.startswith("Awaitable[")
    text = f"{'await ' if waits else ''}{call}{_result(result)}"
    return f"{'#' * level} {name}\n\n```text\n{text}\n```\n\n{_text(described)}"


def _marked(parameters: list[inspect.Parameter]) -> Iterator[str]:
    """With the `*` before those that are by keyword only."""
    marked = False
    for parameter in parameters:
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and not marked:
            marked = True
            yield "*"
        default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
        yield f"{parameter.name}: {parameter.annotation}{default}"


def _result(annotation: str) -> str:
    """What a call gives; nothing where that is nothing."""
    if annotation.startswith("Awaitable["):
        annotation = annotation.removeprefix("Awaitable[").removesuffix("]")
    return "" if annotation in ("None", str(inspect.Signature.empty)) else f" -> {annotation}"


def _text(described: Any) -> str:
    return inspect.cleandoc(described.__doc__ or "")


# ---- the layout


def layout() -> str:
    """Each room with its modules, and what each says of itself."""
    rooms = [path.parent for path in sorted(_SOURCE.rglob("__init__.py")) if path.parent != _SOURCE]
    ground = "### forebay\n\nThe ground floor: what every room may import.\n\n" + _modules(_SOURCE)
    return "\n\n".join([ground, *(_room(folder) for folder in rooms if not _is_revisions(folder))])


def _is_revisions(folder: Path) -> bool:
    return folder.name == "versions"  # Alembic's, a file a revision


def _room(folder: Path) -> str:
    name = folder.relative_to(_SOURCE).as_posix()
    parts = _paragraphs(folder / "__init__.py")
    says = [parts[0], *(part for part in parts[1:] if part.startswith(DOOR))]
    return "\n\n".join([f"### {name}", *says, _modules(folder)])


def _modules(folder: Path) -> str:
    found = [path for path in sorted(folder.glob("*.py")) if path.name not in ("__init__.py", "__main__.py")]
    return table(("module", "what it is"), [(f"`{path.name}`", _says(path)) for path in found])


def _says(path: Path) -> str:
    """The first paragraph of a module's docstring; it is not imported."""
    return _paragraphs(path)[0]


def _paragraphs(path: Path) -> list[str]:
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    return [paragraph(part) for part in text.split("\n\n")]
