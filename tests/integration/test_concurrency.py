"""Many tasks and many layers at once: nothing is stale, nothing is lost, and the books balance."""

from __future__ import annotations

import asyncio
from typing import Any

import aiosqlite
import pytest
from chainlit.element import Text
from chainlit.types import Feedback, Pagination, ThreadFilter
from chainlit.user import User

from forebay import ForebayDataLayer, Settings, TransientError
from forebay.database.connections import sqlite_file
from tests.integration.conftest import MakeLayer
from tests.integration.contract import (
    a_step,
    a_thread,
    a_user,
    accounted_for,
    at,
    dead_letters,
    how_many,
    locked,
    new_id,
    rows,
    stored_elements,
    stored_step,
    stored_thread,
    until,
)
from tests.support.storage import MemoryStorage


@pytest.fixture(autouse=True, params=["memory", "journal"])
def durability(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test with the queue in memory, and with the journal beside it."""
    monkeypatch.setenv("FOREBAY_DURABILITY", request.param)


async def test_every_step_is_left_at_its_last_write(layer: ForebayDataLayer) -> None:
    """As Chainlit does it: create and update are two tasks, and nobody waits for either."""
    threads = [new_id() for _ in range(50)]
    tasks: set[asyncio.Task[None]] = set()
    for n in range(5_000):
        step = a_step(threads[n % 50], output="created", createdAt=at(n % 3600))
        tasks.add(asyncio.create_task(layer.create_step(step)))
        for text in ("streamed", "last"):
            step = {**step, "output": text}
            tasks.add(asyncio.create_task(layer.update_step(step)))
        if n % 100 == 0:
            await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    found = await rows(layer, "SELECT output, count(*) AS n FROM steps GROUP BY output")
    assert found == [{"output": "last", "n": 5_000}]
    counts = layer._engine.counts
    assert counts.accepted["steps"] == 15_000
    assert counts.written["steps"] + counts.coalesced["steps"] == 15_000
    assert accounted_for(layer)


@pytest.mark.parametrize("layers", [1, 8])
async def test_concurrent_metadata_merges_keep_every_key(
    emptied_url: str, make_layer: MakeLayer, layers: int
) -> None:
    each = [make_layer(emptied_url) for _ in range(layers)]
    thread_id = await a_thread(each[0], metadata={"before": 0})
    await each[0].flush()
    merges = (each[n % layers].update_thread(thread_id, metadata={f"key {n}": n}) for n in range(8))
    await asyncio.gather(*merges)
    await asyncio.gather(*(layer.flush() for layer in each))
    expected = {"before": 0, **{f"key {n}": n for n in range(8)}}
    assert (await stored_thread(each[0], thread_id))["metadata"] == expected


@pytest.mark.parametrize("layers", [1, 5])
async def test_concurrent_first_logins_make_one_user(
    emptied_url: str, make_layer: MakeLayer, layers: int
) -> None:
    each = [make_layer(emptied_url) for _ in range(layers)]
    logins = (each[n % layers].create_user(User(identifier="ada", metadata={"n": n})) for n in range(50))
    users = await asyncio.gather(*logins)
    assert len({(user.id, user.createdAt) for user in users if user}) == 1
    assert await how_many(each[0], "users") == 1


async def test_a_login_outlasts_those_who_write_to_the_same_file(
    migrated_sqlite_url: str, make_layer: MakeLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite lets writers in as they come by: on a slow disk many others are luckier before."""
    monkeypatch.setattr(sqlite_file, "BUSY_TIMEOUT_MS", 1)
    layer, begun = make_layer(migrated_sqlite_url), 0

    async def begin(self: Any, statement: str, *arguments: Any) -> Any:
        nonlocal begun
        begun += statement == "BEGIN IMMEDIATE"
        return await execute(self, statement, *arguments)

    execute = aiosqlite.Connection.execute_fetchall
    monkeypatch.setattr(aiosqlite.Connection, "execute_fetchall", begin)
    await layer.get_user("ada")
    async with locked(migrated_sqlite_url):
        login = asyncio.create_task(layer.create_user(User(identifier="ada")))
        await until(lambda: begun > 3)
    user = await login
    assert user is not None
    assert await layer.get_user("ada") == user


async def test_a_file_that_others_hold_for_good_fails_a_login(
    migrated_sqlite_url: str, make_layer: MakeLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_file, "BUSY_TIMEOUT_MS", 1)
    layer = make_layer(migrated_sqlite_url, settings=Settings(statement_timeout=4))
    async with locked(migrated_sqlite_url):
        with pytest.raises(TransientError, match="SQLITE_BUSY"):
            await layer.create_user(User(identifier="ada"))


async def test_a_deleted_thread_stays_deleted_under_late_writes(
    layer: ForebayDataLayer, storage: MemoryStorage
) -> None:
    user = await a_user(layer)
    thread_id, kept = await a_thread(layer, user_id=user.id), await a_thread(layer, user_id=user.id)
    steps = [a_step(thread_id, createdAt=at(n)) for n in range(20)]
    for step in steps:
        await layer.create_step(step)

    def late_writes() -> list[Any]:
        return [
            *(layer.update_step(step) for step in steps),
            layer.create_step(a_step(thread_id)),
            layer.update_thread(thread_id, metadata={"client_type": "webapp"}),
            layer.upsert_feedback(Feedback(forId=steps[0]["id"], threadId=thread_id, value=1)),
            layer.create_element(Text(thread_id=thread_id, content="x", for_id=steps[0]["id"])),
            layer.create_step(a_step(kept)),
        ]

    calls = [*late_writes(), layer.delete_thread(thread_id), *late_writes()]
    await asyncio.gather(*calls)
    await asyncio.gather(*late_writes())
    assert await layer.get_thread(thread_id) is None
    page = await layer.list_threads(Pagination(first=10), ThreadFilter(userId=user.id))
    assert [thread["id"] for thread in page.data] == [kept]
    left = {table: await how_many(layer, table) for table in ("steps", "elements", "feedbacks", "threads")}
    assert left == {"steps": 3, "elements": 0, "feedbacks": 0, "threads": 1}
    # The element before the deletion was still on its way then, and never became a change.
    assert layer._engine.counts.dropped == {"deleted_thread": 2 * 24}
    assert dead_letters(layer) == 0
    assert storage.files == {}


async def test_a_thread_that_another_process_deleted_is_not_in_the_list_of_its_owner(
    emptied_url: str, make_layer: MakeLayer
) -> None:
    """Tombstones are a process's own; elsewhere a late step makes a thread that is nobody's."""
    one, other = make_layer(emptied_url), make_layer(emptied_url)
    user = await a_user(one)
    thread_id = await a_thread(one, user_id=user.id)
    await one.delete_thread(thread_id)
    await other.create_step(a_step(thread_id))
    await other.flush()
    page = await one.list_threads(Pagination(first=10), ThreadFilter(userId=user.id))
    assert page.data == []
    assert await other.get_thread_author(thread_id) == ""


async def test_a_read_straight_after_each_write_sees_it(layer: ForebayDataLayer) -> None:
    user = await a_user(layer)
    thread_id = await a_thread(layer, name="first", user_id=user.id)
    assert (await stored_thread(layer, thread_id))["name"] == "first"
    assert await layer.get_thread_author(thread_id) == "ada"
    await layer.update_thread(thread_id, name="second")
    page = await layer.list_threads(Pagination(first=1), ThreadFilter(userId=user.id))
    assert page.data[0]["name"] == "second"
    step = a_step(thread_id)
    for text in ("a", "b", "c"):
        step["output"] = text
        await layer.update_step(step)
        assert [s["output"] for s in (await stored_thread(layer, thread_id))["steps"]] == [text]
    feedback_id = await layer.upsert_feedback(Feedback(forId=step["id"], value=1))
    assert (await stored_step(layer, step["id"]))["feedback"]["id"] == feedback_id
    await layer.set_step_favorite(step, True)
    assert [s["id"] for s in await layer.get_favorite_steps(user.id)] == [step["id"]]
    element = Text(thread_id=thread_id, content="x", for_id=step["id"])
    await layer.create_element(element)
    assert await layer.get_element(thread_id, element.id)
    await layer.delete_element(element.id, thread_id)
    assert await stored_elements(layer, thread_id) == []


async def test_a_read_sees_the_writes_of_tasks_that_have_only_begun(layer: ForebayDataLayer) -> None:
    thread_id = new_id()
    for n in range(50):
        task = asyncio.create_task(layer.create_step(a_step(thread_id, createdAt=at(n))))
        await asyncio.sleep(0)
        assert len((await stored_thread(layer, thread_id))["steps"]) == n + 1
        await task


async def test_readers_and_writers_of_many_threads_at_once(layer: ForebayDataLayer) -> None:
    async def one_chat(number: int) -> None:
        thread_id = await a_thread(layer, name=f"{number}")
        for n in range(10):
            await layer.create_step(a_step(thread_id, createdAt=at(n), output=f"{number}"))
            thread = await stored_thread(layer, thread_id)
            assert [step["output"] for step in thread["steps"]] == [f"{number}"] * (n + 1)

    await asyncio.gather(*(one_chat(number) for number in range(30)))
    assert await how_many(layer, "steps") == 300
    assert accounted_for(layer)


async def test_layers_that_write_the_same_rows_do_not_block_each_other_for_ever(
    emptied_url: str, make_layer: MakeLayer
) -> None:
    layers = [make_layer(emptied_url) for _ in range(3)]
    threads = [new_id() for _ in range(20)]
    steps = [a_step(threads[n % 20]) for n in range(60)]

    async def write(layer: ForebayDataLayer, order: int) -> None:
        for round_ in range(5):
            for step in steps[::order]:
                await layer.update_step({**step, "output": f"{round_}"})
            await layer.flush()

    await asyncio.gather(*(write(layer, order) for layer, order in zip(layers, (1, -1, 1), strict=True)))
    found = await rows(layers[0], "SELECT output, count(*) AS n FROM steps GROUP BY output")
    assert found == [{"output": "4", "n": 60}]
