"""A room that has a door is entered through it: what is behind may be moved without asking anybody."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

_SOURCE = Path(__file__).parents[2] / "src" / "forebay"
# What an operator's commands do with a storage, its room offers to them alone.
_OPERATORS = {"cli", "transfer"}


def _imports(room: str) -> Iterator[tuple[Path, str, str]]:
    """Who imports which name of which module of the room, from outside."""
    for path in _SOURCE.rglob("*.py"):
        if path.relative_to(_SOURCE).parts[0] in {room, *_OPERATORS}:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"forebay.{room}"):
                for alias in node.names:
                    yield path, node.module or "", alias.name


@pytest.mark.parametrize("room", ["attachments"])
def test_from_outside_a_room_only_the_names_of_its_door(room: str) -> None:
    names = set(import_module(f"forebay.{room}").__all__)
    found = [*_imports(room)]
    assert found
    assert [one for one in found if one[1] != f"forebay.{room}" or one[2] not in names] == []


@pytest.mark.parametrize("room", ["attachments"])
def test_each_name_of_a_door_is_there(room: str) -> None:
    door = import_module(f"forebay.{room}")
    assert [name for name in door.__all__ if getattr(door, name) is None] == []
    with pytest.raises(AttributeError):
        door.nothing  # noqa: B018
