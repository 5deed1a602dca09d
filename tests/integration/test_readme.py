"""The README's examples run, and its tables are those of the code."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner
from loadtests.tables import filled

from forebay.cli import main
from forebay.settings import Settings, variable_of

_README = (Path(__file__).parents[2] / "README.md").read_text()
_EXAMPLES = re.findall(r"^```python\n(.*?)^```", _README, re.MULTILINE | re.DOTALL)
_COMMANDS = re.findall(r"^    (forebay [^#\n]+)", _README, re.MULTILINE)


@pytest.mark.parametrize("example", _EXAMPLES, ids=lambda text: text.split("\n")[0])
async def test_an_example_runs(example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), names)
    if "data_layer" in names:
        layer = names["data_layer"]()  # type: ignore[operator]
        assert await layer.get_user("nobody") is None
        await layer.close()
        assert (tmp_path / "chat.db").exists()


@pytest.mark.parametrize("command", _COMMANDS)
def test_a_command_runs(command: str, postgres_url: str, tmp_path: Path) -> None:
    runner, env = CliRunner(), {"FOREBAY_JOURNAL_DIR": str(tmp_path), "FOREBAY_AUTO_MIGRATE": "true"}
    command = command.replace("/path/to/journals", str(tmp_path))
    words = shlex.split(command.replace("postgresql://user:password@host/database", postgres_url))
    result = runner.invoke(main, words[1:], env=env)
    assert result.exit_code == 0, result.output


def test_there_are_examples_and_commands() -> None:
    assert len(_EXAMPLES) == 4
    assert len(_COMMANDS) == 6


def test_the_settings_table_is_that_of_the_code() -> None:
    rows = re.findall(r"^\| `(FOREBAY_\w+)` \| (.*?) \| (.*?) \|$", _README, re.MULTILINE)
    documented = {name: description for name, _, description in rows}
    assert documented == {
        variable_of(name): field.description for name, field in Settings.model_fields.items()
    }


def test_its_pictures_are_there() -> None:
    pictures = re.findall(r"^!\[.+\]\((.+)\)$", _README, re.MULTILINE)
    assert len(pictures) >= 5
    assert [name for name in pictures if not (Path(__file__).parents[2] / name).is_file()] == []


def test_the_measured_tables_are_those_that_were_saved() -> None:
    assert "| forebay, journal |" in _README
    assert filled(_README) == _README, "run `python -m loadtests.tables`"
