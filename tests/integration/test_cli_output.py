"""What the commands print of what people wrote, and where standard output has another encoding."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from forebay.cli import main
from forebay.errors import RowError
from forebay.journal.dead_letters import DeadLetters
from forebay.model.changes import Upsert

_HOSTILE = (
    "[/x]",
    "\x1b]0;OWNED\x07\x1b[2J\x1b[31mAll is well",
    "[link=https://evil.example/][bold green]click",
    "\u202egnp.exe\nthere are no dead letters",
)


@pytest.fixture
def letters(tmp_path: Path) -> Path:
    """A folder with a letter for each hostile id."""
    for key in _HOSTILE:
        change = Upsert("feedbacks", key, {"id": key, "comment": f"{key}\x9b世界"}, None, 100)
        DeadLetters(tmp_path).keep(f"postgresql://h/{key}", change, RowError(f"refused {key}"))
    return tmp_path


def _forebay(*arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(
        [sys.executable, "-m", "forebay.cli", *arguments],
        capture_output=True,
        env={**kept, "CHAINLIT_ENV_FILE": "/nowhere", **environment},
        check=False,
    )


@pytest.mark.parametrize("terminal", [{}, {"FORCE_COLOR": "1", "TERM": "xterm-256color", "COLUMNS": "60"}])
def test_letters_are_listed_whatever_people_wrote(letters: Path, terminal: dict[str, str]) -> None:
    done = _forebay("dead-letters", "list", "--journal-dir", str(letters), **terminal)
    assert (done.returncode, done.stderr) == (0, b"")
    said = done.stdout.decode()
    for sign in ("\x1b]", "\x1b[2J", "\x1b[31m", "\u202e", "\x07"):
        assert sign not in said
    assert "[/x]" in said
    assert said.splitlines()[-1] == "4 letters."


def test_piped_there_is_a_line_for_each_letter(letters: Path) -> None:
    done = _forebay("dead-letters", "list", "--journal-dir", str(letters))
    *lines, total = done.stdout.decode().splitlines()
    assert len(lines) == len(_HOSTILE)
    assert total == "4 letters."
    assert [line.split("\t")[0] for line in lines] == ["1", "2", "3", "4"]
    assert lines[3].split("\t")[3] == "\\u202egnp.exe\\nthere are no dead letters"


def test_a_letter_is_shown_with_its_content_and_nothing_unseen(letters: Path) -> None:
    done = _forebay("dead-letters", "show", "4", "--journal-dir", str(letters), FORCE_COLOR="1")
    said = done.stdout.decode()
    assert all(char.isprintable() or char == "\n" for char in said)
    assert "世界" in said
    assert json.loads(said)["row_id"] == _HOSTILE[3]


@pytest.mark.parametrize("action", [("list",), ("show", "1"), ("discard", "--all", "--yes")])
def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path, action: tuple[str, ...]) -> None:
    result = CliRunner().invoke(main, ["dead-letters", *action, "--journal-dir", str(tmp_path / "nowhere")])
    assert result.exit_code == 1
    assert "there is no folder" in result.stderr
    assert result.stdout == ""


def test_a_file_that_somebody_named_to_do_harm_is_shown_escaped(tmp_path: Path) -> None:
    folder = tmp_path / "\x1b[2J\u202eevil"
    result = CliRunner().invoke(main, ["dead-letters", "list", "--journal-dir", str(folder)])
    assert "\x1b" not in result.output
    assert "\\x1b[2J\\u202eevil" in result.output


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
@pytest.mark.parametrize("command", ["doctor", "status", "config"])
def test_standard_output_may_have_any_encoding(encoding: str, command: str, tmp_path: Path) -> None:
    done = _forebay(
        command,
        PYTHONIOENCODING=encoding,
        CHAINLIT_APP_ROOT=str(tmp_path),
        FOREBAY_JOURNAL_DIR=str(tmp_path / "世界"),
        FOREBAY_DATABASE_URL=f"sqlite:///{tmp_path / 'chat.db'}",
        FOREBAY_METRICS_ADDRESS="127.0.0.1:1",
    )
    assert b"Traceback" not in done.stderr, done.stderr
    assert done.stdout
