"""Which database a journal is for: the one that it was written for, under whatever URL, and no other."""

from __future__ import annotations

import asyncio
import logging
import uuid
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import sqlalchemy as sa
from prometheus_client import generate_latest

from forebay import ForebayDataLayer, Settings
from forebay.database.store import Store
from forebay.database.urls import label_of, parse_url
from forebay.doctor.database import Target, database_of
from forebay.doctor.disk import check_disk
from forebay.journal.dead_letters import DeadLetters
from forebay.journal.journal import Journal
from forebay.journal.log_reader import read_heads
from forebay.model import changes
from tests.faults.conftest import MakeLayer
from tests.faults.load import versioned
from tests.integration.contract import rows, until
from tests.support.patience import patience
from tests.support.postgres import PostgresServer
from tests.support.proxy import Proxy


async def _leave(folder: Path, url: str, thread_id: str, *, asked: bool = True) -> Path:
    """What a process on this database leaves that could ask for its id, or could not."""
    store = Store(url, Settings(journal_dir=folder, auto_migrate=True))
    database_id = await store.own_id() if asked else None
    journal = Journal(folder, asyncio.get_running_loop(), store.label, database_id=database_id)
    await store.close()
    await journal.append(1, changes.step(versioned(str(uuid.uuid4()), thread_id, 0)))
    await journal.close(remove=False)
    return journal.path


async def _steps(layer: ForebayDataLayer, thread_id: str) -> int:
    return len(await rows(layer, f"SELECT id FROM steps WHERE \"threadId\" = '{thread_id}'"))


async def _recovered(layer: ForebayDataLayer) -> None:
    layer._engine.home.start()
    assert layer._engine.recovery is not None
    async with patience():
        await layer._engine.recovery.done_once.wait()


@pytest.mark.parametrize("asked", [True, False])
async def test_two_schemas_are_two_databases(
    postgres_url: str,
    make_journaled: MakeLayer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    asked: bool,
) -> None:
    folder, thread_id = tmp_path / "journals", str(uuid.uuid4())
    connection = await asyncpg.connect(postgres_url)
    await connection.execute("CREATE SCHEMA tenant_a; CREATE SCHEMA tenant_b")
    await connection.close()
    here, there = (f"{postgres_url}?search_path=tenant_{name}" for name in "ab")
    path = await _leave(folder, here, thread_id, asked=asked)
    another = make_journaled(there, auto_migrate=True)
    with caplog.at_level(logging.ERROR):
        await _recovered(another)
    assert await _steps(another, thread_id) == 0
    assert "journal left alone" in caplog.text
    assert f"forebay drain {folder}" in caplog.text
    assert path.exists()
    assert "forebay_journals_left_alone 1.0" in generate_latest(another.registry).decode()
    (found,) = [
        one
        for one in check_disk(
            Settings(journal_dir=folder), *await database_of(Target(there, another.settings))
        )
        if one.check == "journals"
    ]
    assert "another database" in (found.remedy or "") or "it is for" in (found.remedy or "")
    assert "--any-database" in (found.remedy or "")
    own = make_journaled(here, auto_migrate=True)
    await _recovered(own)
    assert await _steps(own, thread_id) == 1
    await own.close()
    assert not path.exists()


async def test_one_database_has_many_urls(
    migrated_postgres_url: str, make_journaled: MakeLayer, tmp_path: Path
) -> None:
    """Another port, as a pooler's, another spelling of the host, and another user."""
    name = f"another_{uuid.uuid4().hex[:8]}"
    connection = await asyncpg.connect(migrated_postgres_url)
    await connection.execute(f"CREATE ROLE {name} LOGIN SUPERUSER")
    thread_id = str(uuid.uuid4())
    try:
        async with Proxy.before(migrated_postgres_url) as proxy:
            through = sa.make_url(proxy.url(migrated_postgres_url))
            urls = [through, through.set(host="localhost"), through.set(username=name)]
            for number, url in enumerate(urls, 1):
                await _leave(tmp_path / "journals", migrated_postgres_url, thread_id)
                layer = make_journaled(url.render_as_string(hide_password=False))
                await _recovered(layer)
                assert await _steps(layer, thread_id) == number
                await layer.close()
    finally:
        await connection.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")
        await connection.close()


async def test_a_copy_of_a_database_is_another(
    migrated_postgres_url: str, postgres_server: PostgresServer, make_journaled: MakeLayer, tmp_path: Path
) -> None:
    """It has the id of the one that it was copied from."""
    thread_id = str(uuid.uuid4())
    name = sa.make_url(migrated_postgres_url).database
    assert name is not None
    copied = postgres_server.create_database(template=name)
    try:
        path = await _leave(tmp_path / "journals", migrated_postgres_url, thread_id)
        copy = make_journaled(copied)
        await _recovered(copy)
        assert await _steps(copy, thread_id) == 0
        await copy.close()
        assert path.exists()
    finally:
        postgres_server.drop_database(copied)


async def test_a_journal_gets_the_id_when_it_is_known(
    migrated_url: str, make_journaled: MakeLayer, tmp_path: Path
) -> None:
    layer = make_journaled(migrated_url, journal_keep=3600)
    await layer.update_step(versioned(str(uuid.uuid4()), str(uuid.uuid4()), 0))
    await layer.flush()
    await layer.update_step(versioned(str(uuid.uuid4()), str(uuid.uuid4()), 0))
    journal = layer._engine.journal
    assert journal is not None
    assert layer._store.database_id is not None
    await until(lambda: _id_in(journal.path) == layer._store.database_id)
    assert [seq for seq, _ in await journal.read(0, 2**30)] == [1, 2]
    await layer.close()


def _id_in(journal: Path) -> str | None:
    head = read_heads(journal)[1]
    return head.database_id if head is not None else None


async def test_a_letter_is_its_databases_under_every_url(tmp_path: Path) -> None:
    letters = DeadLetters(tmp_path)
    letters.keep("postgresql://a/chat", changes.Delete("steps", "s"), ValueError("x"), "id")  # type: ignore[arg-type]
    (letter,) = letters.find()
    assert letter.is_for("postgresql://b/chat", "id")
    assert not letter.is_for("postgresql://a/chat", "another")
    assert letter.is_for("postgresql://a/chat", None)


@pytest.mark.parametrize(
    ("url", "arguments", "label"),
    [
        ("postgresql://u:p@h:5/d", {}, "postgresql://u:***@h:5/d"),
        ("postgresql:///d?host=/run/a", {}, "postgresql:///d?host=%2Frun%2Fa"),
        ("postgresql://h/d?search_path=a&sslmode=require", {}, "postgresql://h/d?search_path=a"),
        ("postgresql://h/d", {"server_settings": {"search_path": "b"}}, "postgresql://h/d?search_path=b"),
        ("postgresql://h/d?application_name=x", {}, "postgresql://h/d"),
        ("sqlite:///chat.db", {}, "sqlite:///chat.db"),
    ],
)
def test_the_label_tells_all_but_the_password(url: str, arguments: dict[str, Any], label: str) -> None:
    parsed, from_url = parse_url(url)
    assert label_of(parsed, {**from_url, **arguments}) == label
