"""The examples and commands of every page run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import chainlit.data
import pytest
from chainlit import User
from chainlit.config import config
from click.testing import CliRunner

from forebay import ForebayDataLayer, Settings
from forebay.cli import main
from tests.docs import texts
from tests.support.patience import patience

_URL = "postgresql://user:password@host/database"
_APP = """
import chainlit as cl

from forebay import ForebayDataLayer


@cl.data_layer
def data_layer():
    return ForebayDataLayer.from_env()
"""


def _examples() -> Iterator[Any]:
    for page in texts.PAGES:
        for example in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
            yield pytest.param(example, id=f"{texts.name_of(page)}: {example.splitlines()[0]}")


def _commands() -> Iterator[Any]:
    """Those below a line that names the database, in the same block."""
    below = rf"^    export FOREBAY_DATABASE_URL={re.escape(_URL)}\n((?:    .*\n)+)"
    for page in texts.PAGES:
        for block in re.findall(below, page.read_text(), re.MULTILINE):
            for command in re.findall(r"^    (forebay [^#\n]*)", block, re.MULTILINE):
                if "--database-url" not in command:
                    yield pytest.param(command.strip(), id=f"{texts.name_of(page)}: {command.strip()}")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the examples leave what they leave; no data layer that a test before has made is taken for theirs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FOREBAY_METRICS_ADDRESS", "127.0.0.1:0")
    monkeypatch.setenv("CHAINLIT_APP_ROOT", str(tmp_path))
    monkeypatch.setattr(chainlit.data, "_data_layer", None)
    monkeypatch.setattr(chainlit.data, "_data_layer_initialized", False)
    monkeypatch.setattr(config.code, "data_layer", None)
    monkeypatch.setattr(config.code, "on_app_startup", None)
    return tmp_path


@pytest.mark.parametrize("example", _examples())
async def test_an_example_runs(example: str, folder: Path) -> None:
    names: dict[str, Any] = {}
    exec(compile(example, "example.py", "exec"), names)
    if "data_layer" in names:
        assert config.code.on_app_startup is not None, "it starts with the app"
        await config.code.on_app_startup()
        layer = chainlit.data.get_data_layer()
        assert isinstance(layer, ForebayDataLayer)
        await _started(layer)
        assert await layer.get_user("nobody") is None
        await layer.close()
        assert (folder / "chat.db").exists()


async def _started(layer: ForebayDataLayer) -> None:
    async with patience():
        while layer.metrics_url is None:  # noqa: ASYNC110 - nothing tells
            await anyio.sleep(0.01)


@pytest.mark.parametrize("command", _commands())
def test_a_command_runs(command: str, postgres_url: str, folder: Path) -> None:
    (folder / "app.py").write_text(_APP)
    environment = {"FOREBAY_JOURNAL_DIR": str(folder), "FOREBAY_AUTO_MIGRATE": "true"}
    environment["FOREBAY_DATABASE_URL"] = postgres_url
    words = shlex.split(command.replace("/path/to/journals", str(folder)))
    if words[1] == "delete-user":
        anyio.run(_log_in, words[2], postgres_url, folder)
    result = CliRunner().invoke(main, words[1:], env=environment)
    assert result.exit_code == 0, result.output


async def _log_in(identifier: str, url: str, folder: Path) -> None:
    layer = ForebayDataLayer(url, settings=Settings(auto_migrate=True, journal_dir=folder))
    await layer.create_user(User(identifier=identifier))
    await layer.close()


def test_there_are_examples_and_commands() -> None:
    assert len(list(_examples())) >= 4
    assert len(list(_commands())) >= 6
