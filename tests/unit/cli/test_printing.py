"""What commands print: people's text does nothing to the terminal, whatever its encoding."""

from __future__ import annotations

import ast
import io
import json
import sys
from pathlib import Path

import pytest
from rich.console import Console

from forebay.cli import printing

_CLI = Path(__file__).parents[3] / "src" / "forebay" / "cli"
_HOSTILE = "\x1b]0;OWNED\x07\x1b[2J[/x][link=https://evil.example/][bold]\u202eclick\n:smile:"


def test_no_other_module_of_the_commands_prints() -> None:
    printing_calls = {"echo", "secho", "Console", "print"}
    for path in sorted(_CLI.glob("*.py")):
        if path.name == "printing.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                owner = ast.unparse(node.func).rpartition(".")[0]
                of_a_console = name == "print" and owner in ("console", "printing.console()")
                assert name not in printing_calls or of_a_console, f"{path.name}:{node.lineno}"


def test_a_cell_is_neither_markup_nor_control(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=400, markup=False, emoji=False, highlight=False)
    console.print(printing.cell(_HOSTILE))
    assert "\x1b" not in out.getvalue()
    assert "[link=https://evil.example/][bold]\\u202eclick\\n:smile:" in out.getvalue()


def test_json_escapes_what_can_not_be_seen_and_is_read_back_the_same(
    capsys: pytest.CaptureFixture[str],
) -> None:
    value = {"text": f"{_HOSTILE} 世界 \x7f\x9b\U000e0041", "n": [1, None]}
    printing.say_json(value, indent=2)
    said = capsys.readouterr().out
    assert json.loads(said) == value
    assert "世界" in said
    assert all(char.isprintable() or char == "\n" for char in said)


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_every_encoding_takes_every_character(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    printing.prepare_streams()
    sys.stdout.write("✓ → ≤ 5 µs 世 \ud800\n")
    sys.stdout.flush()
    said = raw.getvalue().decode(encoding)
    expected = {
        "cp1252": "+ -> <= 5 µs \\u4e16 \\ud800\n",
        "ascii": "+ -> <= 5 us \\u4e16 \\ud800\n",
        "utf-8": "✓ → ≤ 5 µs 世 \\ud800\n",
    }
    assert said == expected[encoding]


def test_what_is_piped_is_not_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert printing.console().width > 1000
