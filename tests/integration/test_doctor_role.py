"""`forebay doctor` on the role and the server's promises: each found, with the statement to type, and gone after it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest
from click.testing import CliRunner

from forebay.cli import main
from tests.support.postgres import PostgresServer, Standby, name_of


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FOREBAY_JOURNAL_DIR", str(tmp_path / "journals"))


def _found(url: str, **environment: str) -> dict[str, dict[str, Any]]:
    result = CliRunner(env=environment).invoke(main, ("doctor", "--json", "--database-url", url))
    return {finding["check"]: finding for finding in json.loads(result.output)}


class Role:
    """A role of the chat servers, with the rights of deploy/postgres/grants.sql."""

    def __init__(self, server: PostgresServer, url: str) -> None:
        self.name = f"app_{uuid.uuid4().hex[:8]}"
        self._server, self._database = server, name_of(url)
        parts = urlsplit(url)
        self.url = urlunsplit(parts._replace(netloc=f"{self.name}:x@{parts.hostname}:{parts.port}"))
        self.run(f"CREATE ROLE {self.name} LOGIN PASSWORD 'x'")
        grants = Path(__file__).parents[2] / "deploy" / "postgres" / "grants.sql"
        for statement in grants.read_text().replace(':"app"', self.name).split(";"):
            if lines := [line for line in statement.splitlines() if line and not line.startswith("--")]:
                self.run(" ".join(lines))

    def run(self, statement: str) -> None:
        """As the tables' owner, in their database."""
        self._server.execute(statement, database=self._database)


@pytest.fixture
def role(postgres_server: PostgresServer, migrated_postgres_url: str) -> Iterator[Role]:
    made = Role(postgres_server, migrated_postgres_url)
    yield made
    made.run(f"DROP OWNED BY {made.name}")
    made.run(f"DROP ROLE {made.name}")


def _mended(role: Role, check: str, **environment: str) -> None:
    """The remedy is a statement, and does what it says."""
    for statement in _found(role.url, **environment)[check]["remedy"].splitlines():
        if statement.endswith(";"):
            role.run(statement)
    assert _found(role.url, **environment).get(check, {"level": "ok"})["level"] == "ok"


def test_the_chat_servers_role_has_what_it_needs(role: Role) -> None:
    assert _found(role.url)["rights"]["level"] == "ok"


@pytest.mark.parametrize("right", ["SELECT", "INSERT", "UPDATE", "DELETE"])
@pytest.mark.parametrize(
    "table", ["users", "threads", "steps", "elements", "feedbacks", "forebay_checkpoints", "forebay_deleted"]
)
def test_a_right_that_was_revoked(role: Role, right: str, table: str) -> None:
    role.run(f"REVOKE {right} ON {table} FROM {role.name}")
    finding = _found(role.url)["rights"]
    assert finding["level"] == "error"
    assert finding["remedy"] == f"GRANT {right} ON {table} TO {role.name};"
    _mended(role, "rights")


@pytest.mark.parametrize("table", ["forebay_migrations", "forebay_database"])
def test_the_tables_that_are_only_read(role: Role, table: str) -> None:
    role.run(f"REVOKE SELECT ON {table} FROM {role.name}")
    finding = _found(role.url)["rights"]
    assert finding["remedy"] == f"GRANT SELECT ON {table} TO {role.name};"
    _mended(role, "rights")


def test_row_level_security(role: Role) -> None:
    role.run("ALTER TABLE steps ENABLE ROW LEVEL SECURITY")
    assert "steps" in _found(role.url)["row security"]["found"]
    role.run("ALTER TABLE steps DISABLE ROW LEVEL SECURITY")
    assert "row security" not in _found(role.url)


def test_a_role_with_few_connections(role: Role) -> None:
    role.run(f"ALTER ROLE {role.name} CONNECTION LIMIT 4")
    assert "the role may have 4" in _found(role.url)["role limit"]["found"]
    _mended(role, "role limit")


@pytest.mark.parametrize("name", ["statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"])
def test_a_role_with_a_short_time_out(role: Role, name: str) -> None:
    role.run(f"ALTER ROLE {role.name} SET {name} = '2s'")
    assert "2 s" in _found(role.url)[name]["found"]
    _mended(role, name)


def test_commits_that_do_not_wait_for_the_disk(role: Role) -> None:
    role.run(f"ALTER ROLE {role.name} SET synchronous_commit = off")
    assert "synchronous_commit=off" in _found(role.url)["commits"]["found"]
    _mended(role, "commits")


def test_a_database_that_knows_the_case_of_ascii_only(postgres_server: PostgresServer) -> None:
    name = f"c_{uuid.uuid4().hex[:8]}"
    postgres_server.execute(f"CREATE DATABASE {name} TEMPLATE template0 LC_CTYPE 'C' LC_COLLATE 'C'")
    try:
        url = postgres_server.url(name)
        assert "ASCII" in _found(url)["letters"]["found"]
    finally:
        postgres_server.execute(f"DROP DATABASE {name}")


def test_an_asynchronous_standby() -> None:
    with PostgresServer(own=True, durable=True) as primary, Standby(primary) as standby:
        url = primary.create_database()
        standby.catch_up()
        finding = _found(url)["commits"]
        assert finding["level"] == "warning"
        assert "synchronous_standby_names" in finding["remedy"]
