"""From Chainlit's official layer to forebay: what that layer has stored, read again through forebay."""

from __future__ import annotations

import asyncio
import json
import random
import sys
import uuid
from collections.abc import AsyncIterator
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, cast

import anyio
import anyio.to_thread
import asyncpg
import pytest
from chainlit.context import ChainlitContext
from chainlit.data.chainlit_data_layer import ChainlitDataLayer
from chainlit.element import Text
from chainlit.types import Feedback, Pagination, ThreadDict, ThreadFilter
from chainlit.user import User
from click.testing import CliRunner, Result

from forebay import ForebayDataLayer
from forebay.bench.layers import make_tables
from forebay.cli import main
from tests.integration.conftest import MakeLayer
from tests.integration.contract import stored_thread
from tests.support.postgres import PostgresServer
from tests.support.storage import MemoryStorage

_TYPES = (
    "assistant_message",
    "user_message",
    "system_message",
    "tool",
    "llm",
    "embedding",
    "retrieval",
    "rerank",
)
# What the official layer gives and forebay gives otherwise, on purpose; `docs/operations/change-over.md` says why.
_UNSTORED = (
    "streaming",
    "waitForAnswer",
    "tags",
    "command",
    "generation",
    "language",
    "indent",
    "defaultOpen",
)


@pytest.fixture
async def official_url(postgres_server: PostgresServer) -> str:
    """A database with the official layer's tables."""
    url = postgres_server.create_database()
    await make_tables("chainlit", url)
    return url


@pytest.fixture
async def official(
    official_url: str, storage: MemoryStorage, chainlit_context: ChainlitContext
) -> AsyncIterator[ChainlitDataLayer]:
    """The official layer."""
    layer = ChainlitDataLayer(official_url, storage_client=storage)
    await layer.connect()
    yield layer
    await layer.cleanup()


async def _execute(url: str, statement: str, *parameters: Any) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement, *parameters)
    finally:
        await connection.close()


def _step(thread_id: str, at: str, **values: Any) -> Any:
    created = f"2026-03-{at}Z"
    return {
        "id": str(uuid.uuid4()),
        "threadId": thread_id,
        "name": "a step",
        "type": "tool",
        "input": "in",
        "output": "out",
        "metadata": {},
        "createdAt": created,
        **values,
    }


async def _chat(layer: ChainlitDataLayer, user_id: str | None, **values: Any) -> str:
    """A thread with each kind of step, ties, feedback, elements and a stub; its id."""
    thread_id = values.pop("thread_id", None) or str(uuid.uuid4())
    await layer.update_thread(
        thread_id, name="Ünïcode 🦄", user_id=user_id, metadata={"a": 1, "b": [2]}, **values
    )
    steps = [_step(thread_id, f"01T10:00:0{place}.000000", type=kind) for place, kind in enumerate(_TYPES)]
    steps += [
        _step(
            thread_id, "01T11:00:00.123000", output="x" * 200_000, metadata={"favorite": True, "icon": "π"}
        ),
        _step(
            thread_id,
            "01T11:00:00.123000",
            parentId=steps[0]["id"],
            name=None,
            showInput="json",
            isError=True,
        ),
        _step(thread_id, "01T11:00:01.000000", showInput=False),
        _step(thread_id, "01T11:00:02.000000", showInput=True, input="", output=""),
    ]
    for step in steps:
        await layer.create_step(step)
    parent = _step(thread_id, "01T12:00:00.000000")
    child = _step(thread_id, "01T12:00:00.000000", parentId=parent["id"])
    await layer.create_step(child)  # which makes a stub for its parent
    await layer.create_step(parent)
    await layer.upsert_feedback(Feedback(forId=steps[0]["id"], value=1, comment="good"))
    await layer.upsert_feedback(Feedback(forId=steps[1]["id"], value=0))
    await layer.create_element(
        Text(thread_id=thread_id, for_id=steps[0]["id"], name="notes.txt", content="notes")
    )
    await layer.create_element(
        Text(
            thread_id=thread_id, for_id=steps[1]["id"], name="link", url="https://example.org", display="side"
        )
    )
    return thread_id


async def _person(layer: ChainlitDataLayer, identifier: str) -> str:
    person = await layer.create_user(User(identifier=identifier, metadata={"role": "admin"}))
    assert person is not None
    return person.id


async def _import(source: str, target: str, *options: str) -> Result:
    arguments = ("import", source, "--database-url", target, "--json", *options)
    runner = CliRunner(env={"FOREBAY_AUTO_MIGRATE": "true"})
    return await anyio.to_thread.run_sync(partial(runner.invoke, main, arguments))  # it has a loop of its own


def _done(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def _plain(thread: ThreadDict, *, official: bool) -> dict[str, Any]:
    """What of a thread both layers must give alike."""
    steps = [_plain_step({**step}, official=official) for step in thread["steps"]]
    elements = [_plain_element({**element}) for element in thread["elements"] or ()]
    return {
        "id": thread["id"],
        "name": thread["name"],
        "userId": thread["userId"],
        "userIdentifier": thread["userIdentifier"],
        "metadata": thread["metadata"],
        "steps": sorted(steps, key=lambda step: step["id"]),
        "elements": sorted(elements, key=lambda element: element["id"]),
    }


def _plain_step(step: dict[str, Any], *, official: bool) -> dict[str, Any]:
    for name in (*_UNSTORED, "autoCollapse", "modes", "createdAt"):  # official: when the row was made
        step.pop(name, None)
    step["start"], step["end"] = (
        datetime.fromisoformat(step[name]).replace(tzinfo=None) if step[name] else None
        for name in ("start", "end")
    )
    if official:
        step["showInput"] = {"True": "true", "False": "false", "None": None}.get(*[step["showInput"]] * 2)
        step["name"] = "" if step["name"] == "None" else step["name"]
        if step["showInput"] == "false":
            step["input"] = ""
        for name in ("input", "output"):
            step[name] = step[name] or ""
    return step


def _plain_element(element: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in element.items() if name not in ("url", "autoPlay", "playerConfig")}


def _assert_alike(there: ThreadDict, here: ThreadDict) -> None:
    wanted, found = _plain(there, official=True), _plain(here, official=False)
    for kind in ("steps", "elements"):
        for one, other in zip(wanted.pop(kind), found.pop(kind), strict=True):
            assert other == one
    assert found == wanted


@pytest.fixture
def target(emptied_url: str) -> str:
    """A database of either kind, to import into."""
    return emptied_url


def _steps(thread: ThreadDict | None) -> list[Any]:
    assert thread is not None
    return list(thread["steps"])


async def test_all_that_the_official_layer_gives_comes_along(
    official: ChainlitDataLayer, official_url: str, target: str, make_layer: MakeLayer
) -> None:
    ada, bob = [await _person(official, name) for name in ("ada", "bob")]
    threads = [await _chat(official, owner, tags=["t"]) for owner in (ada, ada, bob, None)]
    done = _done(await _import(official_url, target, "--verify", "10"))
    assert done["rows"] == {"user": 2, "thread": 4, "step": 56, "feedback": 8, "element": 8}
    assert (done["compared"], done["different"], done["refused"]) == (4, [], {})
    layer = make_layer(target)
    for thread_id in threads:
        there, here = await official.get_thread(thread_id), await stored_thread(layer, thread_id)
        assert there is not None
        _assert_alike(there, here)
        assert here["tags"] == ["t"]
        shown = [step["id"] for step in here["steps"]]
        assert all(
            step["parentId"] not in shown or shown.index(step["parentId"]) < shown.index(step["id"])
            for step in here["steps"]
        )
    person = await layer.get_user("ada")
    assert person is not None
    assert (person.id, person.metadata) == (ada, {"role": "admin"})
    listed = await layer.list_threads(Pagination(first=10), ThreadFilter(userId=ada))
    assert {thread["id"] for thread in listed.data} == set(threads[:2])


async def test_it_goes_on_where_it_was_and_takes_only_what_has_changed(
    official: ChainlitDataLayer, official_url: str, target: str, make_layer: MakeLayer
) -> None:
    first, second = [await _chat(official, None) for _ in range(2)]
    assert _done(await _import(official_url, target))["threads"] == 2
    assert _done(await _import(official_url, target))["threads"] == 0
    step = _steps(await official.get_thread(first))[0]
    await official.update_step(
        {**step, "output": "changed there", "createdAt": "2026-03-01T10:00:00.000000Z"}
    )
    await official.update_thread(first, metadata={"a": None, "c": 3})
    removed = _steps(await official.get_thread(first))[3]["id"]
    await official.delete_step(removed)
    await official.delete_thread(second)
    done = _done(await _import(official_url, target))
    assert (done["threads"], done["removed"]) == (1, {"step": 1})
    layer = make_layer(target)
    thread = await stored_thread(layer, first)
    assert thread["metadata"] == {"b": [2], "c": 3}
    steps = {one["id"]: one for one in thread["steps"]}
    assert steps[step["id"]]["output"] == "changed there"
    assert removed not in steps
    assert await layer.get_thread(second) is not None  # until the last pass
    result = await _import(official_url, target, "--final")
    assert result.exit_code == 1
    assert "gone from the source" in result.stderr
    assert await layer.get_thread(second) is not None
    assert _done(await _import(official_url, target, "--final", "--yes"))["removed"] == {"thread": 1}
    assert await layer.get_thread(second) is None
    assert await layer.get_thread(first) is not None


async def test_what_forebay_has_written_or_deleted_itself_wins(
    official: ChainlitDataLayer, official_url: str, target: str, make_layer: MakeLayer
) -> None:
    first, second = [await _chat(official, None) for _ in range(2)]
    _done(await _import(official_url, target))
    layer = make_layer(target)
    step = (await stored_thread(layer, first))["steps"][0]
    await layer.update_step({**step, "output": "changed here"})
    await layer.update_thread(first, name="renamed here")
    await layer.delete_thread(second)
    await layer.flush()
    await official.update_step(
        {**step, "output": "changed there", "createdAt": "2026-03-01T10:00:00.000000Z"}
    )
    for thread_id in (first, second):
        await official.update_thread(thread_id, name="renamed there")
    done = _done(await _import(official_url, target, "--verify", "5"))
    assert done["deleted"] == {"thread": 1, "step": 14, "feedback": 2, "element": 2}
    thread = await stored_thread(layer, first)
    assert thread["name"] == "renamed here"
    assert {one["id"]: one for one in thread["steps"]}[step["id"]]["output"] == "changed here"
    assert await layer.get_thread(second) is None


async def test_what_can_not_come_along_is_counted(
    official: ChainlitDataLayer, official_url: str, target: str, make_layer: MakeLayer
) -> None:
    kept, deleted = [await _chat(official, None) for _ in range(2)]
    await _execute(official_url, 'UPDATE "Thread" SET "deletedAt" = now() WHERE id = $1', deleted)
    orphan = {**_step(kept, "02T10:00:00.000000"), "threadId": None}
    await official.create_step(orphan)
    steps = _steps(await official.get_thread(kept))
    await _execute(
        official_url,
        """INSERT INTO "Feedback" (id, "stepId", name, value)
        VALUES ('one', $1, 'user_feedback', 0.5), ('two', $1, 'a model', 1), ('three', NULL, 'user_feedback', 1)""",
        steps[5]["id"],
    )
    looked = _done(await _import(official_url, target, "--dry-run"))
    assert looked["left_out"] == {
        "deleted threads": 1,
        "steps without a thread": 1,
        "elements without a thread": 0,
        "feedbacks without a step": 1,
    }
    assert looked["rows"] == {"user": 0, "thread": 1, "step": 14, "element": 2, "feedback": 4}
    assert looked["without_uuid"]["feedback"] == 3
    assert looked["about"]["megabyte"] == 1
    assert looked["about"]["second"] >= 1
    done = _done(await _import(official_url, target))
    assert done["left_out"] == {"feedbacks whose value is not whole": 1, "feedbacks of another name": 1}
    layer = make_layer(target)
    assert await layer.get_thread(deleted) is None


async def test_ids_that_are_no_uuids_come_along(
    official: ChainlitDataLayer, official_url: str, target: str, make_layer: MakeLayer
) -> None:
    await _chat(official, None, thread_id="thread-7")
    done = _done(await _import(official_url, target, "--verify", "1"))
    assert (done["compared"], done["different"]) == (1, [])
    layer = make_layer(target)
    listed = await layer.execute_sql("SELECT id FROM threads", {})
    assert isinstance(listed, list)
    is_postgres = target.startswith("postgresql")
    assert (str(listed[0]["id"]) == "thread-7") is not is_postgres
    assert len((await stored_thread(layer, str(listed[0]["id"])))["steps"]) == 14


@pytest.mark.parametrize(
    ("database", "application"), [("UTC", "UTC"), ("-05:00", "+07:00"), ("+05:30", "-03:00")]
)
async def test_the_rows_tell_by_which_clocks_their_times_are(
    official: ChainlitDataLayer,
    official_url: str,
    migrated_sqlite_url: str,
    database: str,
    application: str,
    make_layer: MakeLayer,
) -> None:
    thread_id = await _chat(official, await _person(official, "ada"))
    # As if it had been written then and there.
    zones = {"UTC": 0, "-05:00": -300, "+07:00": 420, "+05:30": 330, "-03:00": -180}
    at_database, at_application = zones[database], zones[application]
    await _execute(
        official_url,
        f"""UPDATE "Step" SET "createdAt" = "startTime" + interval '{at_database} minutes';
        UPDATE "Thread" SET "createdAt" = timestamp '2026-03-01 09:00' + interval '{at_database} minutes',
            "updatedAt" = timestamp '2026-03-01 09:00:30' + interval '{at_application} minutes';
        UPDATE "User" SET "createdAt" = timestamp '2026-03-01 09:00:30' + interval '{at_application} minutes'""",
    )
    _done(await _import(official_url, migrated_sqlite_url))
    layer = make_layer(migrated_sqlite_url)
    assert (await stored_thread(layer, thread_id))["createdAt"] == "2026-03-01T09:00:00.000000Z"
    person = await layer.get_user("ada")
    assert person is not None
    assert person.createdAt == "2026-03-01T09:00:30.000000Z"


async def test_a_zone_that_the_rows_contradict_is_refused_before_anything_is_written(
    official: ChainlitDataLayer, official_url: str, migrated_sqlite_url: str, make_layer: MakeLayer
) -> None:
    await _chat(official, None)
    await _execute(official_url, """UPDATE "Step" SET "createdAt" = "startTime" + interval '1 hour'""")
    result = await _import(official_url, migrated_sqlite_url, "--database-timezone", "America/New_York")
    assert result.exit_code == 1
    assert "contradicts the rows: in 2026-03 that clock was at UTC+01:00" in result.stderr
    assert (await make_layer(migrated_sqlite_url).execute_sql("SELECT count(*) AS n FROM steps", {})) == [
        {"n": 0}
    ]
    await _execute(
        official_url,
        """INSERT INTO "Step" (id, "threadId", metadata, type, "startTime", "endTime", "createdAt")
        SELECT 'summer', id, '{}', 'user_message', '2026-07-01', '2026-07-01', '2026-07-01 02:00' FROM "Thread" """,
    )
    result = await _import(official_url, migrated_sqlite_url)
    assert "UTC+01:00, UTC+02:00: say its time zone with --database-timezone" in result.stderr
    _done(await _import(official_url, migrated_sqlite_url, "--database-timezone", "Europe/Berlin"))


async def test_it_needs_the_right_to_select_and_nothing_else(
    official: ChainlitDataLayer, official_url: str, migrated_sqlite_url: str, postgres_server: PostgresServer
) -> None:
    await _chat(official, await _person(official, "ada"))
    role = f"reader_{uuid.uuid4().hex[:8]}"
    await _execute(official_url, f"CREATE ROLE {role} LOGIN PASSWORD 'secret'")
    await _execute(official_url, f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
    before = await _marks(official_url)
    reader = official_url.replace(official_url.split("@")[0], f"postgresql://{role}:secret")
    assert _done(await _import(reader, migrated_sqlite_url, "--verify", "3", "--final"))["threads"] == 1
    assert await _marks(official_url) == before


async def _marks(url: str) -> list[Any]:
    connection = await asyncpg.connect(url)
    try:
        return list(await connection.fetch('SELECT id, xmin FROM "Step" ORDER BY id'))
    finally:
        await connection.close()


_REPORTS = (
    """SELECT type::text, count(*), sum(length(output)), min("startTime"), max("endTime") FROM "Step"
    GROUP BY 1 ORDER BY 1""",
    """SELECT u.identifier, t.name, t.tags, t.metadata->>'a', count(s.id) FROM "Thread" t
    LEFT JOIN "User" u ON u.id = t."userId" JOIN "Step" s ON s."threadId" = t.id
    WHERE t."deletedAt" IS NULL GROUP BY 1, 2, 3, 4 ORDER BY 1""",
    """SELECT s.type::text, f.value, f.comment, count(*) FROM "Feedback" f JOIN "Step" s ON s.id = f."stepId"
    WHERE f.name = 'user_feedback' GROUP BY 1, 2, 3 ORDER BY 1, 2""",
    """SELECT metadata->>'type', display, mime, name, count("objectKey") FROM "Element" GROUP BY 1, 2, 3, 4
    ORDER BY 4""",
    """SELECT identifier, metadata->>'role', "createdAt" FROM "User" ORDER BY 1""",
    """SELECT date_trunc('minute', min("createdAt")) FROM "Thread" """,
)


async def test_dashboards_go_on_with_views(
    official: ChainlitDataLayer, official_url: str, emptied_postgres_url: str
) -> None:
    for name in ("ada", "bob"):
        await _chat(official, await _person(official, name), tags=["t"])
    for _ in range(2):  # and again
        _done(await _import(official_url, emptied_postgres_url, "--views", "official"))
    connection, there = await asyncpg.connect(emptied_postgres_url), await asyncpg.connect(official_url)
    try:
        await connection.execute("SET search_path = official")
        for report in _REPORTS:
            assert list(await connection.fetch(report)) == list(await there.fetch(report))
        await connection.execute("DROP SCHEMA official CASCADE")
    finally:
        await connection.close()
        await there.close()


async def test_another_database_is_no_source(postgres_server: PostgresServer, tmp_path: Path) -> None:
    url, target = postgres_server.create_database(), f"sqlite:///{tmp_path / 'here.db'}"
    result = await _import(url, target)
    assert result.exit_code == 1
    assert "not the official layer's tables" in result.stderr
    assert not (tmp_path / "here.db").exists()


async def test_an_import_that_was_killed_goes_on_with_the_next(
    official: ChainlitDataLayer, official_url: str, target: str, make_layer: MakeLayer
) -> None:
    await _execute(
        official_url,
        """INSERT INTO "Thread" (id, name) SELECT md5(n::text)::uuid::text, n::text FROM generate_series(1, 500) n;
        INSERT INTO "Step" (id, "threadId", metadata, type, output, "startTime", "endTime", "createdAt")
        SELECT md5(t.id || n)::uuid::text, t.id, '{}', 'user_message', n::text, now(), now(), now()
        FROM "Thread" t, generate_series(1, 5) n""",
    )
    layer = make_layer(target)
    await layer.get_user("nobody")  # the tables are there
    for least in (1, 200):
        command = (sys.executable, "-m", "forebay", "import", official_url, "--database-url", target)
        process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.DEVNULL)
        while await _count(layer, "steps") < least and process.returncode is None:  # noqa: ASYNC110 - its rows tell
            await asyncio.sleep(0.01)
        if process.returncode is None:
            process.kill()
        await process.wait()
    done = _done(await _import(official_url, target, "--verify", "100"))
    assert (done["compared"], done["different"]) == (100, [])
    assert 0 < done["threads"] < 500
    assert (await _count(layer, "threads"), await _count(layer, "steps")) == (500, 2500)


async def _count(layer: ForebayDataLayer, table: str) -> int:
    (row,) = cast("list[dict[str, int]]", await layer.execute_sql(f"SELECT count(*) AS n FROM {table}", {}))
    return row["n"]


async def test_both_layers_write_while_passes_run(
    official: ChainlitDataLayer, official_url: str, target: str, make_layer: MakeLayer
) -> None:
    """Random operations through both layers, each with threads of its own, and passes at random moments."""
    chance = random.Random(7)
    layer = make_layer(target)
    theirs = [await _chat(official, None) for _ in range(2)]
    ours = [str(uuid.uuid4()) for _ in range(2)]
    for _ in range(60):
        await _do_something(chance, official, theirs)
        await _do_something(chance, layer, ours)
        if chance.random() < 0.1:
            _done(await _import(official_url, target))
    await layer.flush()
    before = [_plain(await stored_thread(layer, thread_id), official=False) for thread_id in ours]
    done = _done(await _import(official_url, target, "--final", "--yes", "--verify", "10"))
    assert done["different"] == []
    for thread_id in theirs:
        there, here = await official.get_thread(thread_id), await layer.get_thread(thread_id)
        assert (there is None) == (here is None)
        if there is not None and here is not None:
            _assert_alike(there, here)
    after = [_plain(await stored_thread(layer, thread_id), official=False) for thread_id in ours]
    assert after == before


async def _do_something(
    chance: random.Random, layer: ChainlitDataLayer | ForebayDataLayer, threads: list[str]
) -> None:
    thread_id = chance.choice(threads)
    thread = await layer.get_thread(thread_id)
    steps = _steps(thread) if thread is not None else []
    kind = chance.choice(["create", "create", "update", "delete", "rename", "rate", "attach"])
    if kind == "create" or not steps:
        at = f"{chance.randrange(10, 20)}T10:{chance.randrange(10, 60)}:00.000000"
        await layer.create_step(_step(thread_id, at, type="user_message"))
    elif kind == "update":
        old = chance.choice(steps)
        sent = (old["start"] or old["createdAt"])[:19] + ".000000Z"
        changed: Any = {**old, "output": str(chance.random()), "createdAt": sent}
        await layer.update_step(changed)
    elif kind == "delete":
        await layer.delete_step(chance.choice(steps)["id"])
    elif kind == "rename":
        await layer.update_thread(
            thread_id, name=str(chance.random()), metadata={chance.choice("abc"): chance.choice([None, 1])}
        )
    elif kind == "rate":
        step_id = chance.choice(steps)["id"]
        rated = Feedback(
            id=str(uuid.uuid5(uuid.NAMESPACE_OID, step_id)),
            forId=step_id,
            threadId=thread_id,
            value=chance.choice([0, 1]),
            comment=chance.choice([None, "why"]),
        )
        await layer.upsert_feedback(rated)
    else:
        element: Any = Text(thread_id=thread_id, for_id=chance.choice(steps)["id"], name="a", content="text")
        await layer.create_element(element)
