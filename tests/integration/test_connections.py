"""Ways to the database: behind pgbouncer, over TLS with certificate checks, with tables in a schema of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from asyncpg.exceptions import InternalClientError

from forebay import AccessError, ForebayDataLayer, RowError, Settings, TransientError
from forebay.database.store import Store
from forebay.errors import DatabaseError
from tests.integration.conftest import MakeLayer
from tests.integration.contract import a_step, a_thread, a_user, at, new_id, rows, stored_thread
from tests.support.pgbouncer import Pgbouncer
from tests.support.postgres import PostgresServer, name_of
from tests.support.tls import TlsFront, authority

# ---- pgbouncer


async def _chat(layer: ForebayDataLayer, number: int) -> None:
    """What a chat does, each read seeing the write before it; then it deletes itself."""
    thread_id = await a_thread(layer, name=f"chat {number}", tags=["a"])
    for turn in range(5):
        await layer.create_step(a_step(thread_id, createdAt=at(turn), output=f"answer {turn}"))
        thread = await stored_thread(layer, thread_id)
        assert [step["output"] for step in thread["steps"]] == [f"answer {n}" for n in range(turn + 1)]
    (found,) = await rows(layer, "SELECT name FROM threads WHERE id = CAST(:id AS uuid)", id=thread_id)
    assert found == {"name": f"chat {number}"}
    await layer.delete_thread(thread_id)
    assert await layer.get_thread(thread_id) is None


@pytest.mark.parametrize(
    ("mode", "query"),
    [("session", ""), ("transaction", "?statement_cache_size=0")],
    ids=["session", "transaction"],
)
async def test_chats_behind_pgbouncer(
    emptied_postgres_url: str, make_layer: MakeLayer, mode: str, query: str
) -> None:
    # In transaction mode three servers take turns for the five connections.
    with Pgbouncer(emptied_postgres_url, mode, pool_size=3 if mode == "transaction" else 6) as pooler:
        layer = make_layer(pooler.url + query, settings=Settings(pool_size=5))
        user = await a_user(layer)
        await asyncio.gather(*(_chat(layer, number) for number in range(20)))
        assert await layer.get_user("ada") == user
        assert layer._engine.counts.retries == {}
        await layer.close()


async def test_without_the_parameter_a_pooler_in_transaction_mode_says_which_one(
    emptied_postgres_url: str, make_layer: MakeLayer
) -> None:
    with Pgbouncer(emptied_postgres_url, pool_size=2) as pooler:
        layer = make_layer(pooler.url)
        other = await asyncpg.connect(pooler.url, statement_cache_size=0)
        with pytest.raises(TransientError, match="statement_cache_size=0"):  # noqa: PT012 - which read it is, is chance
            for _ in range(10):
                await layer.get_user("nobody")
                async with other.transaction():  # which keeps one of the servers to itself
                    await other.execute("SELECT 1")
                    await layer.get_user("nobody")
        await other.close()
        await layer.close()


async def test_a_migration_goes_through_pgbouncer_in_session_mode(postgres_url: str) -> None:
    with Pgbouncer(postgres_url, "session", pool_size=5) as pooler:
        store = Store(pooler.url, Settings())
        try:
            assert "created the table steps" in await store.migrate()
            await store.prepare()
        finally:
            await store.close()


# ---- what a driver says of itself is not about a row


async def test_a_connection_that_cannot_be_made_refuses_no_row(emptied_postgres_url: str) -> None:
    store = Store(emptied_postgres_url, Settings(), connect_args={"statement_cache_size": "not a number"})
    try:
        with pytest.raises(DatabaseError) as failed:
            await store.position("a")
        assert not isinstance(failed.value, RowError), "its rows would become dead letters"
    finally:
        await store.close()


async def test_a_driver_in_disorder_refuses_no_row(
    emptied_postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As asyncpg is when its session is ended in the middle of an answer, which is a matter of chance."""

    async def fail(*_: object, **__: object) -> None:
        raise InternalClientError("got result for unknown protocol state 3")

    monkeypatch.setattr(asyncpg.Connection, "fetch", fail)
    store = Store(emptied_postgres_url, Settings())
    try:
        with pytest.raises(TransientError):
            await store.position("a")
    finally:
        await store.close()


# ---- TLS


class _Secured:
    """A server with TLS by way of a front, and the file of the authority of its certificate."""

    def __init__(self, front: TlsFront, url: str, authority: Path) -> None:
        self.url = front.url(url)
        self.authority = authority
        self._front = front

    async def encrypts(self, query: str = "", **arguments: Any) -> bool:
        """Whether the connections of such a store are encrypted, each of them."""
        settings = Settings(**arguments.pop("settings", {}))
        self._front.encrypted.clear()
        store = Store(f"{self.url}{query}", settings, **arguments)
        try:
            assert await store.execute_sql("SELECT 1 AS one", {}) == [{"one": 1}]
        finally:
            await store.close()
        (found,) = set(self._front.encrypted)
        return found


@pytest.fixture
def secured(emptied_postgres_url: str, tmp_path: Path) -> Iterator[_Secured]:
    """A server whose certificate is for this machine."""
    trusted, path = authority(tmp_path)
    with TlsFront.before(emptied_postgres_url, trusted.issue_cert("127.0.0.1")) as front:
        yield _Secured(front, emptied_postgres_url, path)


@pytest.mark.parametrize("mode", ["verify-full", "verify-ca"])
async def test_a_certificate_of_the_authority_is_accepted(secured: _Secured, mode: str) -> None:
    assert await secured.encrypts(f"?sslmode={mode}&sslrootcert={secured.authority}")


async def test_tls_without_a_check_must_be_asked_for_by_name(secured: _Secured) -> None:
    assert await secured.encrypts("?sslmode=require")
    assert await secured.encrypts(ssl_require=True, settings={"tls_verify": False})
    assert not await secured.encrypts("?sslmode=disable")


async def test_ssl_require_checks_against_the_systems_authorities(
    secured: _Secured, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(AccessError, match="TLS with"):
        await secured.encrypts(ssl_require=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(secured.authority))
    assert await secured.encrypts(ssl_require=True)


async def test_a_certificate_of_another_authority_is_refused(secured: _Secured, tmp_path: Path) -> None:
    _, other = authority(tmp_path, "other")
    with pytest.raises(AccessError, match="check the certificate"):
        await secured.encrypts(f"?sslmode=verify-full&sslrootcert={other}")


async def test_a_certificate_of_another_host_is_refused_by_verify_full_alone(
    emptied_postgres_url: str, tmp_path: Path
) -> None:
    trusted, path = authority(tmp_path)
    with TlsFront.before(emptied_postgres_url, trusted.issue_cert("db.example.org")) as front:
        elsewhere = _Secured(front, emptied_postgres_url, path)
        with pytest.raises(AccessError, match="check the certificate"):
            await elsewhere.encrypts(f"?sslmode=verify-full&sslrootcert={path}")
        assert await elsewhere.encrypts(f"?sslmode=verify-ca&sslrootcert={path}")


async def test_a_server_without_tls_is_refused(emptied_postgres_url: str, tmp_path: Path) -> None:
    _, path = authority(tmp_path)
    store = Store(f"{emptied_postgres_url}?sslmode=verify-full&sslrootcert={path}", Settings())
    with pytest.raises(DatabaseError):
        await store.execute_sql("SELECT 1", {})
    await store.close()


# ---- search_path


async def test_two_deployments_share_a_database_by_their_search_paths(
    postgres_server: PostgresServer, postgres_url: str, make_layer: MakeLayer
) -> None:
    thread_id = new_id()
    for schema in ("one", "two"):
        postgres_server.execute(f"CREATE SCHEMA {schema}", name_of(postgres_url))
        settings = Settings(auto_migrate=True)
        layer = make_layer(f"{postgres_url}?search_path={schema}", settings=settings)
        await layer.update_thread(thread_id, name=f"of {schema}")
        assert (await stored_thread(layer, thread_id))["name"] == f"of {schema}"
        await layer.close()
    found = postgres_server.execute(
        "SELECT n.nspname || '.' || c.relname AS name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE c.relname = 'threads' ORDER BY 1",
        name_of(postgres_url),
    )
    assert [row["name"] for row in found] == ["one.threads", "two.threads"]
    assert [
        row["name"]
        for schema in ("one", "two")
        for row in postgres_server.execute(f"SELECT name FROM {schema}.threads", name_of(postgres_url))
    ] == ["of one", "of two"]


async def test_a_search_path_behind_pgbouncer_is_the_roles(
    postgres_server: PostgresServer, postgres_url: str, make_layer: MakeLayer
) -> None:
    """pgbouncer does not pass the parameter on, but the database can have a default."""
    database = name_of(postgres_url)
    postgres_server.execute("CREATE SCHEMA chat", database)
    postgres_server.execute(f'ALTER DATABASE "{database}" SET search_path = chat', database)
    store = Store(postgres_url, Settings())
    await store.migrate()
    await store.close()
    with Pgbouncer(postgres_url) as pooler:
        layer = make_layer(f"{pooler.url}?statement_cache_size=0")
        await a_thread(layer, name="in chat")
        await layer.close()
    assert [row["name"] for row in postgres_server.execute("SELECT name FROM chat.threads", database)] == [
        "in chat"
    ]
