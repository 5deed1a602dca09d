"""A read costs what it may cost, whatever somebody has filled their own chats with."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from chainlit.types import Feedback, Pagination, ThreadFilter

from forebay import ChangeTooLarge, ForebayDataLayer, Settings
from tests.integration.conftest import MakeLayer
from tests.integration.contract import a_step, a_thread, a_user, at, new_id, stored_step, stored_thread

_KIB = 1024


def _limited(make_layer: MakeLayer, url: str, **limits: Any) -> ForebayDataLayer:
    return make_layer(url, settings=Settings(**limits))


async def _steps(layer: ForebayDataLayer, thread_id: str, number: int, **values: Any) -> list[str]:
    made = [a_step(thread_id, createdAt=at(second), **values) for second in range(number)]
    for step in made:
        await layer.create_step(step)
    return [str(step["id"]) for step in made]


async def _elements(layer: ForebayDataLayer, thread_id: str, number: int, **values: Any) -> list[str]:
    """Rows as they are written, without a chat's emitter."""
    ids = [new_id() for _ in range(number)]
    for place, key in enumerate(ids):
        columns = {"id": key, "threadId": thread_id, "name": "x", "forebaySentAt": place, **values}
        names = ", ".join(f'"{name}"' for name in columns)
        given = ", ".join(f":{name}" for name in columns)
        await layer.execute_sql(f"INSERT INTO elements ({names}) VALUES ({given})", columns)
    return ids


async def test_a_thread_of_more_rows_than_a_read_gives_comes_with_its_newest(
    make_layer: MakeLayer, emptied_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    layer = _limited(make_layer, emptied_url, read_max_rows=30)
    thread_id = await a_thread(layer, name="long", tags=["a"])
    steps = await _steps(layer, thread_id, 510)
    elements = await _elements(layer, thread_id, 40)
    with caplog.at_level(logging.WARNING, "forebay.reads"):
        found = await stored_thread(layer, thread_id)
    assert [step["id"] for step in found["steps"]] == steps[-30:]
    assert [element["id"] for element in found["elements"] or ()] == elements[-30:]
    assert (found["name"], found["tags"]) == ("long", ["a"])
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        "thread read in part what=steps newest=30 of=510",
        "thread read in part what=elements newest=30 of=40",
    ]


async def test_a_long_thread_within_the_limits_comes_whole(
    make_layer: MakeLayer, emptied_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    layer = _limited(make_layer, emptied_url)
    thread_id = await a_thread(layer, name="long")
    step_ids = await _steps(layer, thread_id, 510, metadata={"a": [1]}, generation={"b": 2}, tags=["t"])
    await layer.upsert_feedback(Feedback(forId=step_ids[7], value=1, threadId=thread_id, comment="c"))
    element_ids = await _elements(layer, thread_id, 3)
    found = await stored_thread(layer, thread_id)
    assert [step["id"] for step in found["steps"]] == step_ids
    assert [element["id"] for element in found["elements"] or ()] == element_ids
    for place in (0, 7, 509):
        assert found["steps"][place] == await stored_step(layer, step_ids[place])
    assert set(found) == set(await stored_thread(layer, await a_thread(layer)))
    assert not caplog.records


@pytest.mark.parametrize(
    "heavy",
    [
        {"output": "é" * 300 * _KIB},
        {"input": "a" * 600 * _KIB},
        {"metadata": {"list": [0] * 300 * _KIB}},
        {"metadata": {"text": "a" * 600 * _KIB}},
        {"generation": {"prompt": "a" * 600 * _KIB}},
        {"tags": ["a" * 600 * _KIB]},
        {"name": "a" * 600 * _KIB},
        {"unknown to any release": "a" * 600 * _KIB},
    ],
    ids=lambda heavy: next(iter(heavy)),
)
async def test_a_thread_of_more_bytes_than_a_read_gives_comes_with_its_newest(
    make_layer: MakeLayer, emptied_url: str, heavy: dict[str, Any]
) -> None:
    layer = _limited(make_layer, emptied_url, read_max_bytes=1300 * _KIB)
    thread_id = await a_thread(layer)
    steps = await _steps(layer, thread_id, 4, **heavy)
    found = await stored_thread(layer, thread_id)
    most = 1 if "list" in heavy.get("metadata", {}) else 2  # PostgreSQL has numbers in more bytes than JSON
    assert [step["id"] for step in found["steps"]] in ([*steps[-2:]], [*steps[-most:]])


async def test_one_row_comes_anyway(make_layer: MakeLayer, emptied_url: str) -> None:
    layer = _limited(make_layer, emptied_url, read_max_bytes=100 * _KIB, list_include_steps=True)
    user = await a_user(layer)
    thread_id = await a_thread(layer, user_id=user.id)
    steps = await _steps(layer, thread_id, 2, output="a" * 1100 * _KIB, metadata={"favorite": True})
    elements = await _elements(layer, thread_id, 2, url="data:" + "a" * 1100 * _KIB)
    for found in (await stored_thread(layer, thread_id), (await _page(layer, user.id)).data[0]):
        assert [step["id"] for step in found["steps"]] == steps[-1:]
        assert [element["id"] for element in found["elements"] or ()] == elements[-1:]
    assert [step["id"] for step in await layer.get_favorite_steps(user.id)] == steps[-1:]


async def _page(layer: ForebayDataLayer, user_id: str, cursor: str | None = None) -> Any:
    return await layer.list_threads(Pagination(first=10**9, cursor=cursor), ThreadFilter(userId=user_id))


async def _pages(layer: ForebayDataLayer, user_id: str) -> list[list[str]]:
    pages: list[list[str]] = []
    cursor = None
    while True:
        page = await _page(layer, user_id, cursor)
        pages.append([thread["id"] for thread in page.data])
        cursor = page.pageInfo.endCursor
        if not page.pageInfo.hasNextPage:
            return pages


@pytest.mark.parametrize("with_steps", [False, True])
async def test_a_page_of_large_threads_is_shorter_and_the_next_one_goes_on(
    make_layer: MakeLayer, emptied_url: str, with_steps: bool
) -> None:
    layer = _limited(
        make_layer, emptied_url, read_max_bytes=250 * _KIB, list_include_steps=with_steps, linger=0
    )
    user = await a_user(layer)
    heavy = {} if with_steps else {"metadata": {"text": "a" * 100 * _KIB}}
    made: list[str] = []
    for second in range(5):
        thread_id = await a_thread(layer, user_id=user.id, **heavy)
        output = "a" * 100 * _KIB if with_steps else "a"
        await layer.create_step(a_step(thread_id, createdAt=at(second), output=output))
        made.insert(0, thread_id)
    assert await _pages(layer, user.id) == [made[:2], made[2:4], made[4:]]


async def test_a_subclass_reads_all_of_a_persons_threads(make_layer: MakeLayer, emptied_url: str) -> None:
    layer = _limited(make_layer, emptied_url, read_max_bytes=1 * _KIB)
    user = await a_user(layer)
    made = {await a_thread(layer, user_id=user.id, metadata={"text": "a" * 2 * _KIB}) for _ in range(3)}
    assert {thread["id"] for thread in await layer.get_all_user_threads(user.id) or ()} == made


async def test_favourites_are_the_newest(make_layer: MakeLayer, emptied_url: str) -> None:
    layer = _limited(make_layer, emptied_url, read_max_rows=3)
    user = await a_user(layer)
    thread_id = await a_thread(layer, user_id=user.id)
    steps = await _steps(layer, thread_id, 5, metadata={"favorite": True})
    assert [step["id"] for step in await layer.get_favorite_steps(user.id)] == steps[:1:-1]


async def test_a_comment_is_bounded(make_layer: MakeLayer, emptied_url: str) -> None:
    layer = _limited(make_layer, emptied_url)
    thread_id = await a_thread(layer)
    (step,) = await _steps(layer, thread_id, 1)
    longest = Feedback(forId=step, value=1, threadId=thread_id, comment="a" * 16_384)
    await layer.upsert_feedback(longest)
    with pytest.raises(ChangeTooLarge):
        await layer.upsert_feedback(Feedback(forId=step, value=0, threadId=thread_id, comment="a" * 16_385))
    feedback = (await stored_step(layer, step))["feedback"]
    assert (feedback["value"], feedback["comment"]) == (1, "a" * 16_384)


async def test_of_many_feedbacks_the_newest_counts(make_layer: MakeLayer, emptied_url: str) -> None:
    layer = _limited(make_layer, emptied_url)
    user = await a_user(layer)
    thread_id = await a_thread(layer, user_id=user.id)
    (step,) = await _steps(layer, thread_id, 1)
    for place in range(300):
        await layer.upsert_feedback(Feedback(forId=step, value=place % 2, threadId=thread_id))  # type: ignore[arg-type]
    assert (await stored_step(layer, step))["feedback"]["value"] == 1

    async def rated(value: Any) -> int:
        page = await layer.list_threads(Pagination(first=5), ThreadFilter(userId=user.id, feedback=value))
        return len(page.data)

    assert (await rated(0), await rated(1)) == (0, 1)
