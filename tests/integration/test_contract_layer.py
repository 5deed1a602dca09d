"""The contract's promises about the layer as a whole: its constructor, its helpers, TLS, and what it logs."""

from __future__ import annotations

import inspect
import logging
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import sqlalchemy as sa
from chainlit.data.sql_alchemy import SQLAlchemyDataLayer
from chainlit.element import Text
from chainlit.types import Pagination, ThreadFilter
from prometheus_client import CollectorRegistry

from forebay import AccessError, ForebayDataLayer, Settings, SettingsError, StatementError
from tests.integration.conftest import MakeLayer
from tests.integration.contract import a_step, a_thread, a_user, new_id, stored_step, stored_thread
from tests.support.postgres import PostgresServer
from tests.support.storage import MemoryStorage
from tests.support.tls import TlsFront, authority

SECRET = "<secret content>"

# ---- constructor


def test_the_parameters_are_those_of_chainlits_layer_and_then_ours_by_keyword() -> None:
    theirs = inspect.signature(SQLAlchemyDataLayer.__init__).parameters
    ours = inspect.signature(ForebayDataLayer.__init__).parameters
    assert list(ours)[: len(theirs)] == list(theirs)
    assert [ours[name].default for name in theirs] == [p.default for p in theirs.values()]
    assert {ours[name].kind for name in list(ours)[len(theirs) :]} == {inspect.Parameter.KEYWORD_ONLY}


async def test_the_parameters_are_taken_by_position(
    emptied_postgres_url: str, storage: MemoryStorage
) -> None:
    options = {"server_settings": {"application_name": "of my own"}}
    layer = ForebayDataLayer(emptied_postgres_url, options, False, storage, 7, False)
    assert (layer.storage_provider, layer.user_thread_limit) == (storage, 7)
    found = await layer.execute_sql("SHOW application_name", {})
    assert found == [{"application_name": "of my own"}]
    await layer.close()


STYLES: dict[str, Callable[[str], str]] = {
    "sqlite://": lambda url: url,
    "sqlite+aiosqlite://": lambda url: url.replace("sqlite:", "sqlite+aiosqlite:"),
    "postgresql://": lambda url: url,
    "postgres://": lambda url: url.replace("postgresql:", "postgres:"),
    "postgresql+asyncpg://": lambda url: url.replace("postgresql:", "postgresql+asyncpg:"),
    "sslmode": lambda url: f"{url}?sslmode=prefer&application_name=of+my+own",
}


@pytest.mark.parametrize("style", STYLES)
async def test_each_style_of_url_is_taken(
    request: pytest.FixtureRequest, make_layer: MakeLayer, style: str
) -> None:
    kind = "migrated_sqlite_url" if style.startswith("sqlite") else "emptied_postgres_url"
    url: str = request.getfixturevalue(kind)
    layer = make_layer(STYLES[style](url))
    thread_id = await a_thread(layer, name="n")
    assert (await stored_thread(layer, thread_id))["name"] == "n"


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "sqlite+aiosqlite://"])
async def test_a_database_in_memory_serves(make_layer: MakeLayer, url: str) -> None:
    layer = make_layer(url)
    threads = [await a_thread(layer, name=f"{n}") for n in range(5)]
    assert [(await stored_thread(layer, thread_id))["name"] for thread_id in threads] == list("01234")


@pytest.mark.parametrize("variable", ["FOREBAY_DATABASE_URL", "DATABASE_URL"])
async def test_from_env_takes_the_environments_url_and_settings(
    migrated_sqlite_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", "sqlite:////nowhere/x.db")
    monkeypatch.setenv(variable, migrated_sqlite_url)
    monkeypatch.setenv("FOREBAY_LINGER", "0.25")
    monkeypatch.setenv("FOREBAY_JOURNAL_DIR", str(tmp_path / "journals"))
    layer = ForebayDataLayer.from_env()
    assert layer.settings.linger == 0.25
    await a_thread(layer)
    await layer.close()


def test_from_env_without_a_url_says_which_variable_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.delenv("FOREBAY_DATABASE_URL", raising=False)
    with pytest.raises(SettingsError, match="FOREBAY_DATABASE_URL is not set"):
        ForebayDataLayer.from_env()


async def test_metrics_go_to_the_registry_that_is_passed_in(
    migrated_sqlite_url: str, make_layer: MakeLayer
) -> None:
    registry = CollectorRegistry()
    layer = make_layer(migrated_sqlite_url, registry=registry)
    await a_thread(layer)
    await layer.flush()
    assert registry.get_sample_value("forebay_rows_written_total", {"table": "threads"}) == 1


# ---- TLS


@pytest.fixture(scope="module")
def tls(
    postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SimpleNamespace]:
    """A server with a certificate for 127.0.0.1 by way of a front, and the file of its authority."""
    trusted, path = authority(tmp_path_factory.mktemp("authority"))
    with TlsFront.before(postgres_server.home, trusted.issue_cert("127.0.0.1")) as front:
        yield SimpleNamespace(front=front, authority=path)


@pytest.fixture
def tls_url(tls: SimpleNamespace, emptied_postgres_url: str) -> str:
    tls.front.encrypted.clear()
    url: str = tls.front.url(emptied_postgres_url)
    return url


async def test_ssl_require_refuses_a_certificate_that_nobody_vouches_for(
    tls_url: str, make_layer: MakeLayer
) -> None:
    layer = make_layer(tls_url, ssl_require=True)
    with pytest.raises(AccessError, match=r"TLS with .* failed"):
        await layer.get_user("ada")


async def test_ssl_require_takes_a_trusted_certificate(
    tls: SimpleNamespace, tls_url: str, make_layer: MakeLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tls.authority))
    layer = make_layer(tls_url, ssl_require=True)
    await a_user(layer)
    assert set(tls.front.encrypted) == {True}


async def test_ssl_require_checks_the_hosts_name(
    tls: SimpleNamespace, tls_url: str, make_layer: MakeLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tls.authority))
    layer = make_layer(tls_url.replace("127.0.0.1", "localhost"), ssl_require=True)
    with pytest.raises(AccessError, match=r"TLS with .* failed"):
        await layer.get_user("ada")


async def test_not_verifying_is_a_setting_of_its_own(
    tls: SimpleNamespace, tls_url: str, make_layer: MakeLayer
) -> None:
    layer = make_layer(tls_url, ssl_require=True, settings=Settings(tls_verify=False))
    await a_user(layer)
    assert set(tls.front.encrypted) == {True}


# ---- helpers that subclasses use


async def test_execute_sql_runs_after_what_is_queued(layer: ForebayDataLayer) -> None:
    thread_id = await a_thread(layer, name="before")
    for n in range(5):
        await layer.create_step(a_step(thread_id, output=f"{n}"))
    found = await layer.execute_sql('SELECT name FROM threads WHERE "id" = :id', {"id": thread_id})
    assert found == [{"name": "before"}]
    changed = await layer.execute_sql("UPDATE steps SET output = :text", {"text": "by hand"})
    assert changed == 5
    steps = (await stored_thread(layer, thread_id))["steps"]
    assert {step["output"] for step in steps} == {"by hand"}


async def test_execute_sql_gives_ids_as_text(layer: ForebayDataLayer) -> None:
    thread_id = await a_thread(layer)
    assert await layer.execute_sql("SELECT id FROM threads", {}) == [{"id": thread_id}]


async def test_a_statement_that_fails_changes_nothing(layer: ForebayDataLayer) -> None:
    thread_id = await a_thread(layer, name="kept")
    with pytest.raises(StatementError, match="FOM") as caught:
        await layer.execute_sql("DELETE FOM threads WHERE name = :text", {"text": SECRET})
    assert SECRET not in str(caught.value)
    assert (await stored_thread(layer, thread_id))["name"] == "kept"


def test_clean_result_makes_every_uuid_text() -> None:
    layer = ForebayDataLayer("sqlite://")
    key = uuid.uuid4()
    assert layer.clean_result([{"a": key, "b": [key, 1, None]}]) == [
        {"a": str(key), "b": [str(key), 1, None]}
    ]


async def test_the_debug_url_is_empty(layer: ForebayDataLayer) -> None:
    assert await layer.build_debug_url() == ""


async def test_get_all_user_threads_gives_a_users_threads_or_one(layer: ForebayDataLayer) -> None:
    user = await a_user(layer)
    threads = [await a_thread(layer, user_id=user.id, name=f"{n}") for n in range(3)]
    for thread_id in threads:
        await layer.create_step(a_step(thread_id, output=thread_id))
    every = await layer.get_all_user_threads(user_id=user.id)
    assert every is not None
    assert {thread["id"]: thread["steps"][0]["output"] for thread in every} == {t: t for t in threads}
    (one,) = await layer.get_all_user_threads(thread_id=threads[1]) or []
    assert one == await layer.get_thread(threads[1])
    assert await layer.get_all_user_threads(user_id=new_id()) == []
    assert await layer.get_all_user_threads(thread_id=new_id()) == []


async def test_a_statement_of_a_subclass_runs_on_the_session_maker(layer: ForebayDataLayer) -> None:
    await a_thread(layer)
    await layer.flush()
    async with layer.async_session() as session:
        assert await session.scalar(sa.text("SELECT count(*) FROM threads")) == 1


# ---- what it logs


async def test_a_calls_name_is_logged_where_asked_and_nothing_of_its_content(
    emptied_url: str, make_layer: MakeLayer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="forebay")
    layer = make_layer(emptied_url, show_logger=True)
    user = await a_user(layer, SECRET)
    thread_id = await a_thread(layer, name=SECRET, user_id=user.id)
    step = a_step(thread_id, output=SECRET)
    await layer.create_step(step)
    await layer.create_element(Text(thread_id=thread_id, content=SECRET, name=SECRET, for_id=step["id"]))
    await layer.list_threads(Pagination(first=1), ThreadFilter(userId=user.id, search=SECRET))
    await stored_step(layer, step["id"])
    called = ["create_user", "update_thread", "create_step", "create_element", "list_threads", "get_step"]
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("forebay")]
    assert [m for m in ours if m.startswith("call method=")] == [f"call method={name}" for name in called]
    told = " ".join(ours)
    assert all(word not in told for word in ("secret", user.id, thread_id, step["id"]))


async def test_without_being_asked_it_logs_its_start_and_end_alone_while_all_is_well(
    layer: ForebayDataLayer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    thread_id = await a_thread(layer)
    await layer.create_step(a_step(thread_id))
    await stored_thread(layer, thread_id)
    await layer.close()
    said = [record.getMessage() for record in caplog.records if record.name.startswith("forebay")]
    assert [line.split()[0] for line in said] == ["started", "stopped"]
