"""The roles and grants of deploy/postgres, on a real server: what is needed works, and nothing else is allowed."""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa
from click.testing import CliRunner

from forebay import AccessError, ForebayDataLayer, Settings
from forebay.cli import main
from tests.deploy import files
from tests.support.postgres import PostgresServer

_SQL = files.DEPLOY / "postgres"
_PASSWORDS = {"OWNER_PASSWORD": "owners", "APP_PASSWORD": "its"}


@dataclass(frozen=True)
class _Roles:
    """URLs, by what each role is for."""

    owner: str
    app: str


def _psql(url: str, script: str, *variables: str) -> None:
    environment = {**os.environ, **_PASSWORDS}
    words = [f"--variable={word}" for word in ("ON_ERROR_STOP=1", *variables)]
    done = files.run(
        "psql", "--no-psqlrc", "--quiet", *words, f"--file={_SQL / script}", url,
        package="postgresql-client", environment=environment,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def roles(own_postgres_server: PostgresServer, tmp_path: Path) -> _Roles:
    """A database as compose makes it: the roles, then the migration, then the rights; each twice."""
    superuser = sa.make_url(own_postgres_server.url())

    def url(role: str, password: str) -> str:
        changed = superuser.set(username=role, password=password, database="forebay")
        return changed.render_as_string(hide_password=False)

    found = _Roles(url("forebay_owner", "owners"), url("chat", "its"))
    for _ in range(2):
        _psql(own_postgres_server.url(), "roles.sql", "owner=forebay_owner", "app=chat", "database=forebay")
        done = CliRunner().invoke(main, ["migrate", "--database-url", found.owner])
        assert done.exit_code == 0, done.output
        _psql(found.owner, "grants.sql", "app=chat")
    return found


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        journal_dir=tmp_path / "journals", storage="none", metrics_address="off", durability="commit"
    )


async def test_the_chat_servers_role_can_do_its_work(roles: _Roles, settings: Settings) -> None:
    layer = ForebayDataLayer(roles.app, settings=settings)
    thread_id, step_id = str(uuid.uuid4()), str(uuid.uuid4())
    await layer.update_thread(thread_id, name="A chat")
    await layer.create_step({"id": step_id, "threadId": thread_id, "type": "user_message", "name": "me"})
    thread = await layer.get_thread(thread_id)
    assert thread is not None
    assert [step["id"] for step in thread["steps"]] == [step_id]
    await layer.delete_step(step_id)
    await layer.delete_thread(thread_id)
    assert await layer.get_thread(thread_id) is None
    await layer.close()


_FORBIDDEN = (
    "DROP TABLE steps",
    'ALTER TABLE steps DROP COLUMN "output"',
    "TRUNCATE users",
    "CREATE TABLE mine (id int)",
    "DELETE FROM forebay_migrations",
    "CREATE ROLE another",
    "ALTER ROLE chat SUPERUSER",
    "COPY users TO PROGRAM 'true'",
)


async def test_and_nothing_else(roles: _Roles, settings: Settings) -> None:
    layer = ForebayDataLayer(roles.app, settings=settings)
    for statement in _FORBIDDEN:
        with pytest.raises(AccessError):
            await layer.execute_sql(statement, {})
    await layer.close()


def test_neither_role_is_a_superuser(roles: _Roles, own_postgres_server: PostgresServer) -> None:
    found = own_postgres_server.execute(
        "SELECT rolname FROM pg_roles WHERE rolname IN ('forebay_owner', 'chat')"
        " AND (rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls)"
    )
    assert found == []


def test_the_page_gives_the_same_rights() -> None:
    page = (files.ROOT / "docs" / "operations" / "change-over.md").read_text()
    script = [line for line in (_SQL / "grants.sql").read_text().splitlines() if line.startswith("GRANT")]
    assert script
    for line in script:
        assert line.replace(':"app"', "chat") in page
