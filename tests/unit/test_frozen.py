"""What others build on stays: names may come, none goes or changes. The first release's are in `frozen.json`."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

import forebay
from forebay import ForebayDataLayer
from forebay.cli import main
from forebay.settings import Settings, variable_of
from forebay.telemetry.catalogue import INSTRUMENTS
from forebay.telemetry.logs import LOGGERS

_FROZEN: dict[str, Any] = json.loads(Path(__file__).with_name("frozen.json").read_text())


def _methods() -> dict[str, list[str]]:
    """The data layer's public methods, and each one's parameters with their kinds and defaults."""
    members = inspect.getmembers(ForebayDataLayer, callable)
    return {
        name: [
            f"{parameter.kind.name} {parameter.name}"
            + ("" if parameter.default is inspect.Parameter.empty else f" = {parameter.default!r}")
            for parameter in inspect.signature(method).parameters.values()
        ]
        for name, method in members
        if name == "__init__" or not name.startswith("_")
    }


def _options(command: click.Command, name: str = "forebay") -> Iterator[tuple[str, list[str]]]:
    """Each command with its options, arguments, and the variables that stand for them."""
    spellings = [
        spelling
        for parameter in command.params
        for spelling in (*parameter.opts, *parameter.secondary_opts, parameter.envvar)
        if isinstance(spelling, str)
    ]
    yield name, sorted(spellings)
    for child in getattr(command, "commands", {}).values():
        yield from _options(child, f"{name} {child.name}")


def surface() -> dict[str, Any]:
    """All of it, as it is now: each kind's names, and what belongs to each."""
    return {
        "public names": {name: [] for name in sorted(forebay.__all__)},
        "methods": _methods(),
        "environment": {variable_of(name): [] for name in sorted(Settings.model_fields)},
        "commands": dict(_options(main)),
        "metrics": {one.exposed: [one.kind.value, *one.labels] for one in INSTRUMENTS},
        "loggers": {name: [] for name in LOGGERS},
    }


@pytest.mark.parametrize("kind", _FROZEN)
def test_nothing_that_others_build_on_has_gone(kind: str) -> None:
    now = surface()[kind]
    assert [name for name in _FROZEN[kind] if name not in now] == []


@pytest.mark.parametrize("kind", ["metrics", "methods"])
def test_what_is_there_is_as_it_was(kind: str) -> None:
    now = surface()[kind]
    for name, parts in _FROZEN[kind].items():
        assert [part for part in now[name] if part in parts] == parts, (
            name
        )  # labels too: queries group by them
        added = [part for part in now[name] if part not in parts]
        assert kind == "methods" or not added, name
        assert all(part.startswith("KEYWORD_ONLY") or " = " in part for part in added), name


def test_no_option_has_gone() -> None:
    now = surface()["commands"]
    gone = {name: set(parts) - set(now[name]) for name, parts in _FROZEN["commands"].items()}
    assert {name: parts for name, parts in gone.items() if parts} == {}
