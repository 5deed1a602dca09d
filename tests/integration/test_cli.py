"""The command line: what it teaches, what it does, and how it fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from forebay.cli import main
from tests.support.postgres import PostgresServer, name_of


def _run(*arguments: str, **environment: str) -> Result:
    return CliRunner(env=environment).invoke(main, arguments)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ((), ("demo", "migrate", "--dry-run", "Exit codes")),
        (
            ("demo",),
            ("--host", "--port", "--data", "--open", "FOREBAY_DEMO_PORT", "Example", "no key and no network"),
        ),
        (
            ("migrate",),
            ("--database-url", "FOREBAY_DATABASE_URL", "DATABASE_URL", "--json", "Example", "no row is lost"),
        ),
    ],
)
def test_help_teaches(command: tuple[str, ...], words: tuple[str, ...]) -> None:
    result = _run(*command, "--help")
    assert result.exit_code == 0
    said = " ".join(result.output.split())
    assert [word for word in words if word not in said] == []


def test_the_version_is_the_packages() -> None:
    from importlib.metadata import version

    assert version("forebay") in _run("--version").output


def test_a_migration_is_shown_then_done_then_over(database_url: str) -> None:
    shown = _run("migrate", "--database-url", database_url, "--dry-run")
    assert shown.exit_code == 0
    assert "CREATE TABLE" in shown.output
    again = _run("migrate", "--dry-run", FOREBAY_DATABASE_URL=database_url)
    assert again.output == shown.output, "showing it has changed nothing"

    done = _run("migrate", "--json", DATABASE_URL=database_url)
    assert "created the table steps" in json.loads(done.output)["done"]
    assert _run("migrate", "--database-url", database_url).output == "The tables are up to date.\n"
    over = _run("migrate", "--database-url", database_url, "--dry-run", "--json")
    assert json.loads(over.output) == {"sql": ""}


def test_showing_what_an_empty_file_needs_does_not_make_it(tmp_path: Path) -> None:
    result = _run("migrate", "--database-url", f"sqlite:///{tmp_path / 'chat.db'}", "--dry-run")
    assert result.exit_code == 0
    assert "CREATE TABLE steps" in result.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [(), ("--dry-run",)])
def test_an_unreachable_database_is_named_without_its_password(arguments: tuple[str, ...]) -> None:
    result = _run("migrate", "--database-url", "postgresql://me:hunter2@127.0.0.1:1/db", *arguments)
    assert result.exit_code == 1
    assert "[postgresql://me:***@127.0.0.1:1/db]" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "FOREBAY_DATABASE_URL is not set"),
        ("nonsense", "is not a URL"),
        ("mysql://me:hunter2@host/db", "mysql is not supported"),
        ("postgresql://me:hunter2@host/db?sslmod=require", "unknown parameter sslmod"),
        ("postgresql://me:hunter2@127.0.0.1:1/db", "can't be reached"),
        ("sqlite:////nowhere/at/all/chat.db", "can't be opened"),
    ],
)
def test_a_url_that_does_not_work_is_one_clear_line(url: str, words: str) -> None:
    result = _run("migrate", "--database-url", url)
    assert result.exit_code == 1
    assert words in result.output
    assert result.output.count("\n") == 1
    assert "hunter2" not in result.output


def test_an_unknown_database_or_setting_is_one_clear_line(postgres_server: PostgresServer) -> None:
    result = _run("migrate", "--database-url", postgres_server.url("no_such_database"))
    assert result.exit_code == 1
    assert "no such database" in result.output
    result = _run("migrate", "--database-url", "sqlite://", FOREBAY_LINGER="soon")
    assert result.exit_code == 1
    assert "FOREBAY_LINGER" in result.output
    assert "soon" not in result.output


def test_wrong_usage_exits_with_two() -> None:
    assert _run("migrate", "--no-such-option").exit_code == 2


def test_a_migrated_database_has_every_table(postgres_server: PostgresServer, postgres_url: str) -> None:
    assert _run("migrate", "--database-url", postgres_url).exit_code == 0
    rows = postgres_server.execute(
        "SELECT tablename FROM pg_tables WHERE schemaname = 'public'", name_of(postgres_url)
    )
    assert {"users", "threads", "steps", "elements", "feedbacks", "forebay_checkpoints"} <= {
        row[0] for row in rows
    }
