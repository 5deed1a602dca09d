"""What Chainlit's own tests ask of its SQLAlchemy layer, on the tables that its documentation had at the time."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import pytest
from chainlit.context import ChainlitContext
from chainlit.data.storage_clients.base import BaseStorageClient
from chainlit.element import Text
from chainlit.types import Feedback, Pagination, ThreadFilter
from chainlit.user import PersistedUser, User
from sqlalchemy.ext.asyncio import create_async_engine

from forebay import ForebayDataLayer
from tests.integration.old_schemas import V2_0

THREADS = ("thread_old", "thread_mid", "thread_new")


@pytest.fixture
def client() -> AsyncMock:
    client = AsyncMock(spec=BaseStorageClient)
    client.upload_file.return_value = {"url": "https://example.org/file.txt", "object_key": "user/file.txt"}
    client.get_read_url.return_value = "https://example.org/file.txt?signed"
    return client


@pytest.fixture
async def layer(
    tmp_path: Path, client: AsyncMock, chainlit_context: ChainlitContext, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[ForebayDataLayer]:
    """On the documented tables of Chainlit 2.0, without a column of ours."""
    monkeypatch.setenv("FOREBAY_JOURNAL_DIR", str(tmp_path / "journals"))
    url = f"sqlite+aiosqlite:///{tmp_path / 'chainlit.db'}"
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        for statement in V2_0.ddl():
            await connection.exec_driver_sql(statement)
    await engine.dispose()
    layer = ForebayDataLayer(url, storage_provider=client)
    yield layer
    await layer.close()


@pytest.fixture
async def user(layer: ForebayDataLayer) -> PersistedUser:
    user = await layer.create_user(User(identifier="someone", metadata={"role": "tester"}))
    assert user is not None
    return user


@pytest.fixture
async def history(layer: ForebayDataLayer, user: PersistedUser) -> PersistedUser:
    """Three threads whose steps, written by hand, lie before the threads' own times; their owner."""
    for number, thread_id in enumerate(THREADS):
        await layer.update_thread(thread_id, name=f"Name of {thread_id}", user_id=user.id)
        insert = """
            INSERT INTO steps (id, name, type, "threadId", "disableFeedback", streaming, output, "createdAt")
            VALUES (:id, 'step', 'user_message', :thread_id, :disabled, :streaming, :output, :created)
        """
        values: dict[str, Any] = {"id": f"step_of_{thread_id}", "thread_id": thread_id, "disabled": False}
        values |= {
            "streaming": False,
            "output": f"Said in {thread_id}",
            "created": f"2023-01-0{number + 1}T00:00:00Z",
        }
        assert await layer.execute_sql(insert, values) == 1
    return user


async def pages(layer: ForebayDataLayer, first: int, **filters: Any) -> list[list[str]]:
    """The ids on each page, up to the first page that is empty."""
    found: list[list[str]] = []
    cursor = None
    while True:
        page = await layer.list_threads(Pagination(first=first, cursor=cursor), ThreadFilter(**filters))
        ids = [thread["id"] for thread in page.data]
        expected = (ids[0], ids[-1]) if ids else (None, None)
        assert (page.pageInfo.startCursor, page.pageInfo.endCursor) == expected
        if not ids:
            assert page.pageInfo.hasNextPage is False
            return found
        found.append(ids)
        cursor = page.pageInfo.endCursor


async def test_a_user_is_created_and_found(layer: ForebayDataLayer, user: PersistedUser) -> None:
    found = await layer.get_user("someone")
    assert found == user
    assert user.metadata == {"role": "tester"}


@pytest.mark.usefixtures("user")
async def test_an_unknown_user_is_none(layer: ForebayDataLayer) -> None:
    assert await layer.get_user("someone else") is None


async def test_threads_are_in_the_order_of_their_steps(
    layer: ForebayDataLayer, history: PersistedUser
) -> None:
    assert await pages(layer, 10, userId=history.id) == [["thread_new", "thread_mid", "thread_old"]]


async def test_a_page_of_one_begins_and_ends_with_its_thread(
    layer: ForebayDataLayer, history: PersistedUser
) -> None:
    assert await pages(layer, 1, userId=history.id) == [["thread_new"], ["thread_mid"], ["thread_old"]]


async def test_a_thread_without_steps_is_listed(layer: ForebayDataLayer, user: PersistedUser) -> None:
    await layer.update_thread("test_thread", user_id=user.id)
    assert await pages(layer, 5, userId=user.id) == [["test_thread"]]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"feedback": 1}, ["thread_new"]),
        ({"feedback": 0}, ["thread_mid"]),
        ({"feedback": None}, ["thread_new", "thread_mid", "thread_old"]),
        ({"search": "SAID IN THREAD_M"}, ["thread_mid"]),
        ({"search": "said in"}, ["thread_new", "thread_mid", "thread_old"]),
        ({"search": "no such words"}, []),
        ({"feedback": 1, "search": "sAiD"}, ["thread_new"]),
        ({"feedback": 0, "search": "thread_new"}, []),
    ],
)
async def test_feedback_and_search_filter_alone_and_together(
    layer: ForebayDataLayer, history: PersistedUser, filters: dict[str, Any], expected: list[str]
) -> None:
    await layer.upsert_feedback(Feedback(forId="step_of_thread_new", threadId="thread_new", value=1))
    await layer.upsert_feedback(Feedback(forId="step_of_thread_mid", threadId="thread_mid", value=0))
    found = await pages(layer, 10, userId=history.id, **filters)
    assert [thread_id for page in found for thread_id in page] == expected


async def stored_metadata(layer: ForebayDataLayer) -> Any:
    """The metadata as the column holds it: JSON text."""
    found = await layer.execute_sql("SELECT metadata FROM threads WHERE id = :id", {"id": "test_thread"})
    assert isinstance(found, list)
    assert isinstance(found[0]["metadata"], str)
    return json.loads(found[0]["metadata"])


@pytest.mark.parametrize(
    ("updates", "expected"),
    [
        ([{}], {}),
        ([{"metadata": {}}], {}),
        ([{"metadata": {"a": 1}}], {"a": 1}),
        ([{"metadata": {"a": 1, "b": 2}}, {"metadata": {"b": 3, "c": 4}}], {"a": 1, "b": 3, "c": 4}),
        ([{"metadata": {"a": 1, "b": 2}}, {"metadata": {"a": None}}], {"b": 2}),
        ([{"metadata": {"a": 1}}, {"metadata": {"a": None, "z": None}}], {}),
        ([{"metadata": {"a": 1}}, {}], {"a": 1}),
        ([{"metadata": {"a": 1}}, {"metadata": {}}], {"a": 1}),
        ([{"metadata": {"a": 1}}, {"name": "renamed"}], {"a": 1}),
        ([{"name": "first"}, {"metadata": {"a": {"deep": [1]}}}], {"a": {"deep": [1]}}),
    ],
)
@pytest.mark.parametrize("together", [True, False], ids=["folded", "apart"])
async def test_metadata_is_merged_and_kept(
    layer: ForebayDataLayer, updates: list[dict[str, Any]], expected: dict[str, Any], together: bool
) -> None:
    for update in updates:
        await layer.update_thread("test_thread", **update)
        if not together:
            await layer.flush()
    assert await stored_metadata(layer) == expected


async def test_an_element_of_a_step_and_a_thread_that_are_not_there(
    layer: ForebayDataLayer, client: AsyncMock
) -> None:
    element = Text(
        id="test_id", thread_id="test_thread_id", name="test.txt", content="test", for_id="test_step_id"
    )
    await layer.create_element(element)
    client.upload_file.assert_awaited_once()
    assert client.upload_file.await_args.kwargs["data"] == b"test"
    found = await layer.get_element("test_thread_id", "test_id")
    assert found is not None
    assert (found["id"], found["threadId"], found["forId"]) == ("test_id", "test_thread_id", "test_step_id")
    assert (found["name"], found["objectKey"]) == ("test.txt", "user/file.txt")
    assert found["url"] == "https://example.org/file.txt?signed"


async def test_a_step_of_this_release_goes_into_the_old_tables(layer: ForebayDataLayer) -> None:
    """`disableFeedback` may not be null there, and no release since 2.1 sets it."""
    await layer.create_step({"id": "s", "threadId": "t", "output": "said", "autoCollapse": True, "modes": {}})
    thread = await layer.get_thread("t")
    assert thread is not None
    (step,) = thread["steps"]
    assert (step["output"], step["autoCollapse"], step["modes"]) == ("said", True, {})
