"""From outside a room only the names of its door are imported, which the docstring of its `__init__` lists.

What the `__init__` itself has is taken from there: what is behind may be moved without asking anybody.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import forebay

_SOURCE = Path(forebay.__file__).parent
_ROOMS = ("attachments", "database", "doctor", "journal", "layer", "pipeline", "telemetry", "transfer")
_OPEN = ("attachments", "pipeline")  # the rooms whose `__init__` has names
_LOOKS_IN = "bench"  # it measures what is inside


def _taken(source: str, room: str) -> Iterator[tuple[str, str, str]]:
    """Of a module in this room, the names that it takes of others': the other room, the name, and the module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            assert not any(alias.name.startswith("forebay.") for alias in node.names), (
                "take names, not a room"
            )
        elif isinstance(node, ast.ImportFrom) and (module := node.module or "").startswith("forebay"):
            other = module.split(".")[1:2]
            for alias in node.names:
                theirs = other[0] if other else alias.name
                if theirs in _ROOMS and theirs != room:
                    yield theirs, alias.name, module


def _door(init: str) -> set[str]:
    door = re.search(
        r"^Its door: (.*?)\.$", ast.get_docstring(ast.parse(init)) or "", re.MULTILINE | re.DOTALL
    )
    return set(re.findall(r"`(\w+)`", door[1])) if door else set()


def _exported(init: str) -> set[str]:
    """What the room's `__init__` itself has."""
    for node in ast.parse(init).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    return set()


@pytest.fixture(scope="module")
def taken() -> dict[str, set[tuple[str, str]]]:
    """By room, what the others take of it, and from which module."""
    found: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for path in _SOURCE.rglob("*.py"):
        inside = path.relative_to(_SOURCE).parts[:-1]
        room = inside[0] if inside else ""
        if room != _LOOKS_IN:
            for other, name, module in _taken(path.read_text(), room):
                found[other].add((name, module))
    return found


@pytest.mark.parametrize("room", _ROOMS)
def test_others_take_what_is_at_the_door_and_nothing_else(
    room: str, taken: dict[str, set[tuple[str, str]]]
) -> None:
    init = (_SOURCE / room / "__init__.py").read_text()
    assert {name for name, _ in taken[room]} | _exported(init) == _door(init), (
        f"the docstring of {room}/__init__.py names its door"
    )


@pytest.mark.parametrize("room", _OPEN)
def test_what_the_room_itself_has_is_taken_from_there(
    room: str, taken: dict[str, set[tuple[str, str]]]
) -> None:
    exported = _exported((_SOURCE / room / "__init__.py").read_text())
    ways = {module for name, module in taken[room] if name in exported}
    assert ways == {f"forebay.{room}"}


@pytest.mark.parametrize("room", _OPEN)
def test_what_the_room_itself_has_is_there(room: str) -> None:
    door = import_module(f"forebay.{room}")
    assert [name for name in door.__all__ if getattr(door, name) is None] == []
    with pytest.raises(AttributeError):
        door.nothing  # noqa: B018


def test_every_room_has_a_door_or_needs_none() -> None:
    rooms = {path.parent.name for path in _SOURCE.glob("*/__init__.py")}
    assert rooms - {*_ROOMS} == {"bench", "cli", "demo", "model", "primitives"}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from forebay.layer.dicts import thread as t", [("layer", "thread")]),
        ("from forebay.database import error_codes", [("database", "error_codes")]),
        ("def f():\n    from forebay.layer.dicts import thread", [("layer", "thread")]),
        ("from forebay import journal", [("journal", "journal")]),
        ("from forebay.journal.log import Log", []),
        ("from forebay.model.changes import fold\nfrom forebay.errors import RowError", []),
    ],
)
def test_what_is_taken_is_seen(source: str, found: list[tuple[str, str]]) -> None:
    assert [(room, name) for room, name, _ in _taken(source, "journal" if not found else "cli")] == found


def test_a_door_may_have_more_than_one_line() -> None:
    assert _door('"""A room.\n\nIts door: `a`,\n`b`.\n\nMore of `c`.\n"""') == {"a", "b"}
