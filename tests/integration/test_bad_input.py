"""What is wrong in itself, or meets a database that is: a clear error or a cleaned row, and nothing else harmed."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import pytest
from chainlit.types import Feedback, Pagination, ThreadFilter
from sqlalchemy.ext.asyncio import create_async_engine
from typing_extensions import override

from forebay import (
    AccessError,
    ForebayDataLayer,
    QueueFull,
    RowError,
    SchemaError,
    Settings,
    SettingsError,
    StatementError,
    TransientError,
)
from forebay.database import migrations
from forebay.database.urls import parse_url
from forebay.model.cleaning import MAX_DEPTH
from tests.integration.conftest import MakeLayer
from tests.integration.contract import (
    UNREACHABLE,
    a_step,
    a_thread,
    a_user,
    accounted_for,
    dead_letters,
    how_many,
    locked,
    new_id,
    stored_step,
    stored_thread,
    until,
)
from tests.support.patience import FOR_EVER, patience
from tests.support.postgres import PostgresServer, name_of

SECRET = "<secret content>"
AN_ID = "3b7b59a8-007a-4cb6-be21-7b675fd42c1d"  # a parameter's, which must be the same in every process


@pytest.fixture
def postgres_layer(emptied_postgres_url: str, make_layer: MakeLayer) -> ForebayDataLayer:
    return make_layer(emptied_postgres_url)


@pytest.fixture
def sqlite_layer(migrated_sqlite_url: str, make_layer: MakeLayer) -> ForebayDataLayer:
    return make_layer(migrated_sqlite_url)


@pytest.fixture(autouse=True)
async def nothing_secret_is_logged(caplog: pytest.LogCaptureFixture) -> AsyncIterator[None]:
    """Whatever a test does, its content is in no log."""
    yield
    for record in (*caplog.get_records("call"), *caplog.get_records("teardown")):
        assert "secret" not in record.getMessage(), record.getMessage()


# ---- values that a database would refuse


class Unprintable:
    @override
    def __str__(self) -> str:
        raise ValueError(SECRET)


class Plain:
    @override
    def __str__(self) -> str:
        return "plain"


def a_cycle() -> dict[str, Any]:
    cycle: dict[str, Any] = {"a": 1}
    cycle["self"] = cycle
    return cycle


def nested(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {"end": True}
    for _ in range(levels):
        value = {"in": value}
    return value


ZONE = timezone(timedelta(hours=2))

# A value, what it is as text (in `output`), and what it is within JSON (in `metadata`).
VALUES: dict[str, tuple[Any, str, Any]] = {
    "NUL": ("a\x00b", "a\ufffdb", "a\ufffdb"),
    "escaped NUL": ("a\\u0000b", "a\\u0000b", "a\\u0000b"),
    "lone surrogate": ("a\ud83d", "a\ufffd", "a\ufffd"),
    "surrogates side by side": ("\ud83d\ude42", "🙂", "🙂"),
    "bytes": (b"\xff\x00caf\xc3\xa9", "\ufffd\ufffdcafé", "\ufffd\ufffdcafé"),
    "time in a zone": (
        datetime(2024, 5, 1, 12, tzinfo=ZONE),
        "2024-05-01T10:00:00.000000Z",
        "2024-05-01T10:00:00.000000Z",
    ),
    "time without a zone": (
        datetime(2024, 5, 1, 12, 0, 0, 5),
        "2024-05-01T12:00:00.000005Z",
        "2024-05-01T12:00:00.000005Z",
    ),
    "not a number": (float("nan"), "nan", None),
    "infinity": (float("-inf"), "-inf", None),
    "huge": (2**70, str(2**70), str(2**70)),
    "set": ({"b", "a"}, '["a","b"]', ["a", "b"]),
    "tuple": ((1, "x"), '[1,"x"]', [1, "x"]),
    "object": (Plain(), "plain", "plain"),
    "unprintable object": (Unprintable(), "<Unprintable>", "<Unprintable>"),
    "keys that are no text": (
        {1: "a", (2, 3): "b", None: "c"},
        '{"1":"a","[2,3]":"b","None":"c"}',
        {"1": "a", "[2,3]": "b", "None": "c"},
    ),
    "cycle": (a_cycle(), '{"a":1,"self":"…"}', {"a": 1, "self": {"a": 1, "self": "…"}}),
}


@pytest.mark.parametrize("kind", VALUES)
async def test_a_bad_value_is_cleaned_and_its_row_and_neighbours_are_written(
    layer: ForebayDataLayer, kind: str
) -> None:
    value, as_text, as_json = VALUES[kind]
    thread_id = new_id()
    bad = a_step(thread_id, output=value, metadata={"value": value})
    neighbours = [a_step(thread_id, output=SECRET) for _ in range(2)]
    for step in (neighbours[0], bad, neighbours[1]):
        await layer.create_step(step)
    stored = await stored_step(layer, bad["id"])
    assert stored["output"] == as_text
    if kind != "cycle":
        assert stored["metadata"] == {"value": as_json}
    else:
        assert stored["metadata"]["value"]["self"] in (as_json["self"], "…")
    assert await how_many(layer, "steps") == 3
    assert dead_letters(layer) == 0


async def test_a_value_of_too_many_levels_ends_in_an_ellipsis(layer: ForebayDataLayer) -> None:
    step = a_step(new_id(), metadata=nested(5_000), generation=nested(MAX_DEPTH - 1))
    await layer.create_step(step)
    stored = await stored_step(layer, step["id"])
    depth, inner = 0, stored["metadata"]
    while isinstance(inner, dict):
        depth, inner = depth + 1, inner["in"]
    assert (depth, inner) == (MAX_DEPTH, "…")
    assert stored["generation"] == nested(MAX_DEPTH - 1)


async def test_a_value_that_does_not_fit_its_column_is_kept_beside_it(layer: ForebayDataLayer) -> None:
    misfits = {"isError": "perhaps", "generation": "no object", "tags": 7}
    step = a_step(new_id(), output="fits", indent=2**40, **misfits)
    await layer.create_step(step)
    stored = await stored_step(layer, step["id"])
    assert (stored["output"], stored["isError"], stored["generation"]) == ("fits", None, None)
    (row,) = cast(list[Any], await layer.execute_sql('SELECT "forebayExtra" AS extra FROM steps', {}))
    assert all(str(value) in str(row["extra"]) for value in (*misfits.values(), 2**40))
    assert layer.registry.get_sample_value("forebay_unknown_values_total", {"table": "steps"}) == 4


@pytest.mark.parametrize("text", ["a\x00b", "a\ud83d", b"bytes", datetime(2024, 5, 1, tzinfo=UTC), 7])
async def test_bad_text_in_a_threads_fields_is_cleaned(layer: ForebayDataLayer, text: Any) -> None:
    thread_id = new_id()
    await layer.update_thread(thread_id, name=text, metadata={text: text, "kept": 1}, tags=[text])
    thread = await stored_thread(layer, thread_id)
    assert thread["name"]
    assert thread["tags"] == [thread["name"]]
    assert thread["metadata"] == {thread["name"]: 7 if text == 7 else thread["name"], "kept": 1}


async def test_a_login_name_with_bad_text_is_one_user(layer: ForebayDataLayer) -> None:
    first, again = await a_user(layer, "a\x00b\ud83d"), await a_user(layer, "a\x00b\ud83d", n=float("nan"))
    assert first.id == again.id
    found = await layer.get_user("a\x00b\ud83d")
    assert found is not None
    assert found.metadata == {"n": None}


async def test_large_content_passes(layer: ForebayDataLayer) -> None:
    step = a_step(new_id(), output="ü" * 6_000_000)
    await layer.create_step(step)
    assert len((await stored_step(layer, step["id"]))["output"]) == 6_000_000


@pytest.mark.parametrize("search", ["a\x00b", "\ud83d", "%" * 1000, "'; DROP TABLE threads; --"])
async def test_a_strange_search_finds_nothing(layer: ForebayDataLayer, search: str) -> None:
    user = await a_user(layer)
    await a_thread(layer, user_id=user.id, name="some name")
    page = await layer.list_threads(Pagination(first=5), ThreadFilter(userId=user.id, search=search))
    assert page.data == []
    assert await how_many(layer, "threads") == 1


# ---- rows that are refused


NOT_UUIDS = ["test_thread", "", "a\x00b", "x" * 36, f"{AN_ID}0", "\ud83d"]


@pytest.mark.parametrize("any_id", ["test_thread", "x y", "1", "00001", "ключ", "'", '"'])
async def test_any_text_is_an_id_on_sqlite(sqlite_layer: ForebayDataLayer, any_id: str) -> None:
    layer = sqlite_layer
    await layer.create_step(a_step(any_id, id=any_id))
    await layer.upsert_feedback(Feedback(forId=any_id, value=1, id=any_id))
    thread = await stored_thread(layer, any_id)
    (step,) = thread["steps"]
    assert step["feedback"]
    assert (step["id"], step["feedback"]["id"]) == (any_id, any_id)
    await layer.delete_thread(any_id)
    assert await layer.get_thread(any_id) is None
    assert dead_letters(layer) == 0


@pytest.mark.parametrize("bad_id", NOT_UUIDS, ids=ascii)
async def test_reading_or_deleting_by_an_id_that_no_row_can_have_finds_nothing(
    postgres_layer: ForebayDataLayer, bad_id: str
) -> None:
    layer = postgres_layer
    assert await layer.get_thread(bad_id) is None
    assert await layer.get_thread_author(bad_id) == ""
    assert await layer.get_step(bad_id) is None
    assert await layer.get_element(bad_id, bad_id) is None
    for table in ("thread", "step", "element", "feedback"):
        await getattr(layer, f"delete_{table}")(bad_id)
    for pagination in (Pagination(first=5), Pagination(first=5, cursor=bad_id or "x")):
        page = await layer.list_threads(pagination, ThreadFilter(userId=bad_id or "x"))
        assert page.data == []


@pytest.mark.parametrize("step", [{"threadId": AN_ID, "output": SECRET}, {"id": None}, {"id": ""}])
async def test_a_step_without_an_id_is_refused_at_once(
    layer: ForebayDataLayer, caplog: pytest.LogCaptureFixture, step: Any
) -> None:
    with pytest.raises(RowError, match="without an id"):
        await layer.create_step(step)
    assert "change refused reason=steps: a row without an id" in caplog.text
    assert layer.registry.get_sample_value("forebay_changes_refused_total", {"reason": "RowError"}) == 1
    assert layer._engine.counts.accepted.total() == 0


async def test_a_step_of_no_thread_is_a_dead_letter_and_its_neighbours_are_written(
    layer: ForebayDataLayer, caplog: pytest.LogCaptureFixture
) -> None:
    thread_id = new_id()
    await layer.create_step(a_step(thread_id))
    await layer.create_step({"id": new_id(), "output": SECRET})
    await layer.create_step(a_step(thread_id))
    await layer.flush()
    assert len((await stored_thread(layer, thread_id))["steps"]) == 2
    assert dead_letters(layer) == 1
    assert "row refused table=steps reason=a required column has no value" in caplog.text


async def test_one_refused_row_among_a_thousand_costs_that_row(
    layer: ForebayDataLayer, caplog: pytest.LogCaptureFixture
) -> None:
    thread_id = new_id()
    for n in range(1000):
        if n == 617:
            await layer.create_step({"id": new_id(), "output": SECRET})
        else:
            await layer.create_step(a_step(thread_id, output=SECRET))
    await layer.flush()
    assert await how_many(layer, "steps") == 999
    counts = layer._engine.counts
    assert (counts.written["steps"], dead_letters(layer)) == (999, 1)
    assert len([r for r in caplog.records if "row refused" in r.getMessage()]) == 1


async def test_refused_rows_in_one_batch_with_deletes_keep_the_order(layer: ForebayDataLayer) -> None:
    gone, kept = new_id(), new_id()
    calls = [
        layer.create_step(a_step(gone)),
        layer.create_step({"id": new_id()}),
        layer.delete_thread(gone),
        layer.create_step({"id": new_id()}),
        layer.create_step(a_step(kept)),
    ]
    await asyncio.gather(*calls)
    await layer.flush()
    assert await layer.get_thread(gone) is None
    assert len((await stored_thread(layer, kept))["steps"]) == 1
    assert dead_letters(layer) == 2


async def test_with_commit_durability_the_caller_gets_the_rows_error(
    emptied_url: str, make_layer: MakeLayer
) -> None:
    layer = make_layer(emptied_url, settings=Settings(durability="commit"))
    good = a_step(new_id())
    calls = [layer.create_step({"id": new_id(), "output": SECRET}), layer.create_step(good)]
    refused, written = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(refused, RowError)
    assert written is None
    assert SECRET not in str(refused)
    assert refused.__cause__ is None
    assert await how_many(layer, "steps") == 1


async def test_a_thread_of_an_unknown_user_costs_nothing_else(
    postgres_layer: ForebayDataLayer, caplog: pytest.LogCaptureFixture
) -> None:
    """PostgreSQL's foreign key refuses it; its steps make the thread nevertheless."""
    layer, thread_id, stranger = postgres_layer, new_id(), new_id()
    await layer.update_thread(thread_id, name=SECRET, user_id=stranger)
    await layer.create_step(a_step(thread_id))
    await layer.flush()
    thread = await stored_thread(layer, thread_id)
    assert (len(thread["steps"]), thread["userId"]) == (1, None)
    assert layer._engine.counts.dead_lettered == {("threads", "23503"): 1}
    assert stranger not in caplog.text


async def test_a_thread_of_an_unknown_user_is_written_on_sqlite(sqlite_layer: ForebayDataLayer) -> None:
    """It does not check foreign keys, as Chainlit's layer does not."""
    thread_id = await a_thread(sqlite_layer, name="n", user_id="stranger")
    thread = await stored_thread(sqlite_layer, thread_id)
    assert (thread["userId"], thread["userIdentifier"]) == ("stranger", None)


async def test_feedback_for_an_unknown_step_is_kept_where_it_names_its_thread(
    layer: ForebayDataLayer,
) -> None:
    thread_id = await a_thread(layer)
    await layer.upsert_feedback(Feedback(forId=new_id(), threadId=thread_id, value=1, comment=SECRET))
    assert await how_many(layer, "feedbacks") == 1
    with pytest.raises(RowError) as caught:
        await layer.upsert_feedback(Feedback(forId=new_id(), value=1, comment=SECRET))
    assert SECRET not in str(caught.value)
    assert await how_many(layer, "feedbacks") == 1


async def test_a_wrong_statement_of_ones_own_is_told_without_its_parameters(layer: ForebayDataLayer) -> None:
    with pytest.raises(StatementError, match="SELEC") as caught:
        await layer.execute_sql("SELEC :a", {"a": SECRET})
    assert SECRET not in str(caught.value)
    await a_thread(layer)
    assert await how_many(layer, "threads") == 1


# ---- a URL that is wrong


@pytest.mark.parametrize(
    "url",
    [
        "",
        "no url",
        "mysql://ada:secret@host/db",
        "postgresql://ada:secret@host:port/db",
        "postgresql://ada:secret@host/db?sslmod=require",
    ],
)
async def test_a_wrong_url_is_told_at_once_without_its_password(url: str) -> None:
    with pytest.raises(SettingsError, match="FOREBAY_DATABASE_URL") as caught:
        ForebayDataLayer(url)
    assert "secret" not in str(caught.value)


async def test_tls_for_a_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="ssl_require"):
        ForebayDataLayer(f"sqlite:///{tmp_path / 'x.db'}", ssl_require=True)


# ---- a database that refuses


@pytest.fixture(scope="module")
def strict_server() -> Iterator[PostgresServer]:
    """A server with a role that needs a password, one that may do nothing, and no certificate."""
    with PostgresServer(own=True) as server:
        server.execute("CREATE ROLE ada LOGIN PASSWORD 'right'")
        server.execute("CREATE ROLE eve LOGIN")
        rules = server.data / "pg_hba.conf"
        rules.write_text(f"host all ada 127.0.0.1/32 md5\n{rules.read_text()}")
        server.execute("SELECT pg_reload_conf()")
        yield server


def as_role(server: PostgresServer, login: str, database: str) -> str:
    return f"postgresql://{login}@127.0.0.1:{server.port}/{database}"


REFUSALS = {
    "wrong password": ("ada:secret", "postgres", "the user and the password"),
    "no such database": ("ada:right", "nowhere", "there is no such database"),
    "no rights": ("eve", "migrated", "grant it the rights on the tables"),
}


@pytest.mark.parametrize("refusal", REFUSALS)
async def test_a_refused_login_is_told_and_writes_are_kept(
    strict_server: PostgresServer, make_layer: MakeLayer, caplog: pytest.LogCaptureFixture, refusal: str
) -> None:
    login, database, says = REFUSALS[refusal]
    if database == "migrated":
        url = strict_server.create_database()
        engine = create_async_engine(parse_url(url)[0])
        await migrations.upgrade(engine)
        await engine.dispose()
        database = name_of(url)
    layer = make_layer(as_role(strict_server, login, database), settings=Settings(close_timeout=0.01))
    with pytest.raises(AccessError, match=says):
        await layer.get_user("ada lovelace")
    await layer.create_step(a_step(new_id(), output=SECRET))
    await until(lambda: bool(layer._engine.counts.retries))
    with pytest.raises(TransientError, match=says):
        await layer.list_threads(Pagination(first=1), ThreadFilter(userId=new_id()))
    assert layer._engine.inbox.pending == 1
    assert says in caplog.text
    assert "lovelace" not in caplog.text


async def test_writes_go_in_once_the_login_is_accepted(
    strict_server: PostgresServer, make_layer: MakeLayer
) -> None:
    url = strict_server.create_database()
    engine = create_async_engine(parse_url(url)[0])
    await migrations.upgrade(engine)
    await engine.dispose()
    layer = make_layer(as_role(strict_server, "eve", name_of(url)))
    await layer.create_step(a_step(new_id()))
    await until(lambda: bool(layer._engine.counts.retries))
    grant = "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO eve"
    strict_server.execute(grant, name_of(url))
    await layer.flush()
    assert await how_many(layer, "steps") == 1


async def test_tls_is_demanded_of_a_server_that_has_none(
    emptied_postgres_url: str, make_layer: MakeLayer
) -> None:
    layer = make_layer(emptied_postgres_url, ssl_require=True)
    with pytest.raises((TransientError, AccessError)):
        await layer.get_user("ada")


# ---- tables that are not there


async def test_tables_that_are_not_migrated_are_told_and_writes_go_in_once_they_are(
    postgres_url: str, make_layer: MakeLayer, caplog: pytest.LogCaptureFixture
) -> None:
    layer = make_layer(postgres_url)
    with pytest.raises(SchemaError, match="forebay migrate"):
        await layer.get_user("ada")
    steps = [a_step(new_id(), output=SECRET) for _ in range(10)]
    for step in steps:
        await layer.create_step(step)
    await until(lambda: bool(layer._engine.counts.retries))
    assert "writes deferred" in caplog.text
    assert "forebay migrate" in caplog.text
    assert layer._engine.inbox.pending == 10
    assert layer.registry.get_sample_value("forebay_ready") == 0
    engine = create_async_engine(parse_url(postgres_url)[0])
    await migrations.upgrade(engine)
    await engine.dispose()
    await layer.flush()
    assert await how_many(layer, "steps") == 10
    assert layer.registry.get_sample_value("forebay_ready") == 1


async def test_a_sqlite_file_makes_its_own_tables_unless_told_otherwise(
    sqlite_url: str, make_layer: MakeLayer
) -> None:
    strict = make_layer(sqlite_url, settings=Settings(auto_migrate=False))
    with pytest.raises(SchemaError, match="forebay migrate"):
        await strict.get_user("ada")
    layer = make_layer(sqlite_url)
    await a_thread(layer)
    assert await how_many(layer, "threads") == 1
    assert await strict.get_user("ada") is None


async def test_postgres_tables_are_made_where_the_settings_say_so(
    postgres_url: str, make_layer: MakeLayer
) -> None:
    layer = make_layer(postgres_url, settings=Settings(auto_migrate=True))
    await a_thread(layer)
    assert await how_many(layer, "threads") == 1


async def test_a_table_that_vanishes_stops_the_writing_and_loses_nothing(
    migrated_postgres_url: str, make_layer: MakeLayer, postgres_server: PostgresServer
) -> None:
    layer, database = make_layer(migrated_postgres_url), name_of(migrated_postgres_url)
    step = a_step(new_id())
    await layer.flush()
    postgres_server.execute("ALTER TABLE steps RENAME TO elsewhere", database)
    await layer.create_step(step)
    await until(lambda: bool(layer._engine.counts.retries))
    assert layer._engine.counts.retries.keys() == {"SchemaError"}
    postgres_server.execute("ALTER TABLE elsewhere RENAME TO steps", database)
    await layer.flush()
    assert (await stored_step(layer, step["id"]))["id"] == step["id"]
    assert dead_letters(layer) == 0


# ---- a file that cannot be used


@pytest.mark.parametrize("kind", ["no folder", "below a file", "no database"])
async def test_a_file_that_cannot_be_used_is_told_and_writes_are_kept(
    tmp_path: Path, make_layer: MakeLayer, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    (tmp_path / "file").write_text("this is no database" * 100)
    path = {"no folder": "missing/x.db", "below a file": "file/x.db", "no database": "file"}[kind]
    layer = make_layer(f"sqlite:///{tmp_path / path}", settings=Settings(close_timeout=0.01))
    with pytest.raises(AccessError, match=r"can't be opened|not a SQLite database"):
        await layer.get_user("ada")
    await layer.create_step(a_step(new_id(), output=SECRET))
    await until(lambda: bool(layer._engine.counts.retries))
    assert "writes deferred" in caplog.text
    assert layer._engine.inbox.pending == 1


async def test_a_file_whose_folder_appears_later_gets_what_was_kept(
    tmp_path: Path, make_layer: MakeLayer
) -> None:
    layer = make_layer(f"sqlite:///{tmp_path / 'later' / 'x.db'}")
    step = a_step(new_id())
    await layer.create_step(step)
    await until(lambda: bool(layer._engine.counts.retries))
    (tmp_path / "later").mkdir()
    await layer.flush()
    assert await layer.get_step(step["id"])


async def test_a_file_that_another_process_writes_into_is_read_and_waited_for(
    migrated_sqlite_url: str, make_layer: MakeLayer
) -> None:
    """Also a file that is not in WAL mode yet, as Chainlit's own layer leaves it."""
    layer = make_layer(migrated_sqlite_url)
    step = a_step(new_id())
    async with locked(migrated_sqlite_url):
        assert await layer.get_user("ada") is None
        await layer.create_step(step)
        await asyncio.wait([asyncio.create_task(layer.flush())], timeout=0.05)
        assert layer._engine.inbox.pending == 1
    assert await layer.get_step(step["id"])


# ---- a database that cannot be reached


def _patient(**values: Any) -> Settings:
    """With these, what fails at once does so by itself, and not since it has waited long enough."""
    return Settings(connect_timeout=FOR_EVER, statement_timeout=FOR_EVER, **values)


async def test_an_unreachable_database_fails_reads_at_once_and_keeps_writes(
    make_layer: MakeLayer, caplog: pytest.LogCaptureFixture
) -> None:
    layer = make_layer(UNREACHABLE, settings=_patient(close_timeout=0.01, ready_grace=0))
    async with patience():
        with pytest.raises(TransientError, match="can't be reached"):
            await layer.get_user("ada lovelace")
        for _ in range(10):
            await layer.create_step(a_step(new_id(), output=SECRET))
        for _ in range(2):
            with pytest.raises(TransientError, match="can't be reached"):
                await layer.get_thread(new_id())
            with pytest.raises(TransientError, match="can't be reached"):
                await layer.list_threads(Pagination(first=1), ThreadFilter(userId=new_id()))
    assert layer._engine.inbox.pending == 10
    assert layer.registry.get_sample_value("forebay_ready") == 0
    assert re.search(r"writes deferred pending=\d+ for=0s reason=", caplog.text)
    assert "lovelace" not in caplog.text


@pytest.mark.parametrize("how", ["stop", "crash"])
async def test_a_database_that_goes_and_comes_back_gets_what_was_written_meanwhile(
    durable_postgres_server: PostgresServer, make_layer: MakeLayer, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    server = durable_postgres_server
    layer = make_layer(server.create_database(), settings=_patient(auto_migrate=True))
    thread_id = await a_thread(layer, name="before")
    await layer.create_step(a_step(thread_id))
    await stored_thread(layer, thread_id)
    await asyncio.to_thread(getattr(server, how))
    for _ in range(20):
        await layer.create_step(a_step(thread_id, output=SECRET))
    async with patience():
        with pytest.raises(TransientError):
            await layer.get_thread(thread_id)
        with pytest.raises(TransientError):
            await layer.get_user("ada")
    assert layer._engine.inbox.pending == 20
    await asyncio.to_thread(server.start)
    await layer.flush()
    assert len((await stored_thread(layer, thread_id))["steps"]) == 21
    assert await layer.get_user("ada") is None
    counts = layer._engine.counts
    assert (counts.written["steps"] + counts.coalesced["steps"], dead_letters(layer)) == (21, 0)
    told = [r.getMessage() for r in caplog.records if r.name == "forebay.writer"]
    assert [message.split(" ", 2)[1] for message in told] == ["deferred", "resumed"]


# ---- a queue that is full


async def test_a_full_queue_lets_in_those_who_waited_in_their_order(
    emptied_url: str, make_layer: MakeLayer
) -> None:
    layer = make_layer(emptied_url, settings=Settings(durability="memory", queue_max_bytes=4096))
    await layer.get_user("ada")
    step = a_step(new_id())
    async with locked(emptied_url):
        await layer.create_step({**step, "output": "x" * 3000})
        calls = [asyncio.create_task(layer.update_step({**step, "output": f"{n}"})) for n in range(3)]
        other = asyncio.create_task(layer.create_step(a_step(new_id())))
        await asyncio.wait([other], timeout=0.02)
        assert layer._engine.inbox.waiting == 4
    await asyncio.gather(*calls, other)
    assert (await stored_step(layer, step["id"]))["output"] == "2"
    assert await how_many(layer, "steps") == 2


async def test_a_queue_that_stays_full_refuses_with_a_clear_error_and_counts(
    emptied_url: str, make_layer: MakeLayer, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings(durability="memory", queue_max_bytes=1024, queue_timeout=0.05)
    layer = make_layer(emptied_url, settings=settings)
    await layer.get_user("ada")
    kept = a_step(new_id(), output=SECRET)
    async with locked(emptied_url):
        await layer.create_step(kept)
        calls = (layer.create_step(a_step(new_id(), output=SECRET)) for _ in range(5))
        refused = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(error) for error in refused] == [QueueFull] * 5
    assert all("too slow or unreachable" in str(error) for error in refused)
    assert layer.registry.get_sample_value("forebay_changes_refused_total", {"reason": "queue_full"}) == 5
    assert caplog.text.count("change refused table=steps") == 5
    assert await layer.get_step(kept["id"])
    assert await how_many(layer, "steps") == 1
    assert accounted_for(layer)


def test_sqlite_is_new_enough() -> None:
    assert sqlite3.sqlite_version_info >= (3, 35)


def test_the_password_is_in_no_representation() -> None:
    url = urlsplit(UNREACHABLE)._replace(netloc="ada:secret@127.0.0.1:1").geturl()
    assert "secret" not in repr(ForebayDataLayer(url))
