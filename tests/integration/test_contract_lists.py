"""The contract's promises about pages of threads, beyond those in test_contract_threads."""

from __future__ import annotations

from typing import Any

import pytest
from chainlit.types import Feedback, Pagination, ThreadFilter

from forebay import ForebayDataLayer
from tests.integration.conftest import MakeLayer
from tests.integration.contract import a_step, a_thread, a_user, at, stored_thread


async def listed(
    layer: ForebayDataLayer, user_id: str, first: int = 50, cursor: str | None = None, **filters: Any
) -> list[str]:
    """The ids on one page."""
    page = await layer.list_threads(
        Pagination(first=first, cursor=cursor), ThreadFilter(userId=user_id, **filters)
    )
    return [thread["id"] for thread in page.data]


async def by_paging(layer: ForebayDataLayer, user_id: str, first: int, **filters: Any) -> list[str]:
    """The ids on all pages of `first` threads."""
    found: list[str] = []
    cursor: str | None = None
    while True:
        page = await layer.list_threads(
            Pagination(first=first, cursor=cursor), ThreadFilter(userId=user_id, **filters)
        )
        found += [thread["id"] for thread in page.data]
        assert len(page.data) == first or not page.pageInfo.hasNextPage
        if not page.pageInfo.hasNextPage:
            assert await listed(layer, user_id, first, page.pageInfo.endCursor, **filters) == []
            return found
        cursor = page.pageInfo.endCursor


@pytest.fixture
async def history(layer: ForebayDataLayer) -> tuple[str, list[str]]:
    """A user's threads in the order of the list: some of one time, some whose activity no column holds."""
    user = await a_user(layer)
    threads: list[tuple[str, str]] = []
    for n in range(12):
        thread_id = await a_thread(layer, user_id=user.id, name=f"thread {n}")
        moment = at(n // 3)
        for back in range(2):
            await layer.create_step(
                a_step(thread_id, createdAt=at(n // 3 - back if n > 2 else 0), output="said")
            )
        threads.append((moment, thread_id))
    for _, thread_id in threads[::2]:  # as Chainlit's own layer would have left it
        await layer.execute_sql('UPDATE threads SET "updatedAt" = NULL WHERE id = :id', {"id": thread_id})
    return user.id, [thread_id for _, thread_id in sorted(threads, reverse=True)]


@pytest.mark.parametrize("first", [1, 2, 5, 11, 12, 13])
async def test_pages_of_any_size_give_each_thread_once_and_in_order(
    layer: ForebayDataLayer, history: tuple[str, list[str]], first: int
) -> None:
    user_id, expected = history
    assert await by_paging(layer, user_id, first) == expected


async def test_a_filtered_list_is_paged_alike(
    layer: ForebayDataLayer, history: tuple[str, list[str]]
) -> None:
    user_id, expected = history
    rated = expected[1::3]
    for thread_id in rated:
        step = (await stored_thread(layer, thread_id))["steps"][0]
        await layer.upsert_feedback(Feedback(forId=step["id"], value=0))
    assert await by_paging(layer, user_id, 2, feedback=0) == rated
    assert await by_paging(layer, user_id, 2, feedback=0, search="SAID") == rated
    assert await by_paging(layer, user_id, 5, search="said") == expected
    (eleventh,) = await listed(layer, user_id, search="THREAD 11")
    assert (await stored_thread(layer, eleventh))["name"] == "thread 11"


@pytest.mark.parametrize(
    ("limit", "first", "count"), [(5, 100, 5), (None, 100, 12), (5, 3, 3), (5, 0, 0), (5, -1, 0)]
)
async def test_a_page_is_as_long_as_asked_and_allowed(
    emptied_url: str,
    make_layer: MakeLayer,
    history: tuple[str, list[str]],
    limit: int | None,
    first: int,
    count: int,
) -> None:
    user_id, expected = history
    layer = make_layer(emptied_url, user_thread_limit=limit)
    assert await listed(layer, user_id, first) == expected[:count]


async def test_another_process_goes_on_from_a_bare_id(
    emptied_url: str, make_layer: MakeLayer, history: tuple[str, list[str]]
) -> None:
    user_id, expected = history
    layer = make_layer(emptied_url)
    for place, thread_id in enumerate(expected):
        assert await listed(layer, user_id, 50, thread_id) == expected[place + 1 :]


async def test_new_activity_moves_a_thread_up_and_older_activity_does_not(
    layer: ForebayDataLayer, history: tuple[str, list[str]]
) -> None:
    user_id, expected = history
    last = expected[-1]
    await layer.create_step(a_step(last, createdAt="2020-01-01T00:00:00Z"))
    assert await listed(layer, user_id) == expected
    await layer.create_step(a_step(last, createdAt="2030-01-01T00:00:00Z"))
    assert await listed(layer, user_id) == [last, *expected[:-1]]
    page = await layer.list_threads(Pagination(first=1), ThreadFilter(userId=user_id))
    # Chainlit's page sorts what it gets by createdAt once more.
    assert [thread["createdAt"] for thread in page.data] == ["2030-01-01T00:00:00Z"]
    assert (await stored_thread(layer, last))["createdAt"] < "2030"


async def test_a_threads_owner_is_named_also_where_both_are_new(layer: ForebayDataLayer) -> None:
    user = await a_user(layer, "ада")
    thread_id = await a_thread(layer, user_id=user.id, tags=["a", "b"])
    thread = await stored_thread(layer, thread_id)
    assert (thread["userId"], thread["userIdentifier"], thread["tags"]) == (user.id, "ада", ["a", "b"])


@pytest.mark.parametrize("together", [True, False], ids=["folded", "apart"])
@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ({"a": 1}, {"a": {"b": 2}}, {"a": {"b": 2}}),
        ({"a": {"x": 1}}, {"a": {"y": 2}}, {"a": {"y": 2}}),
        ({"a": 1, "b": None}, {"b": 2}, {"a": 1, "b": 2}),
        ({"a": 1, "b": 2}, {"a": None, "c": None}, {"b": 2}),
        ({"a": 1}, {}, {"a": 1}),
        ({"a": 0, "b": False, "c": ""}, {"d": []}, {"a": 0, "b": False, "c": "", "d": []}),
        ({"a": 12345678901234567, "b": 1e300}, {"c": 0.1}, {"a": 12345678901234567, "b": 1e300, "c": 0.1}),
    ],
)
async def test_metadata_meets_shallowly_whether_folded_or_stored(
    layer: ForebayDataLayer, first: Any, second: Any, expected: Any, together: bool
) -> None:
    thread_id = await a_thread(layer, metadata=first)
    if not together:
        await layer.flush()
    await layer.update_thread(thread_id, metadata=second)
    assert (await stored_thread(layer, thread_id))["metadata"] == expected


async def test_a_page_of_one_list_leaves_the_place_in_another_alone(layer: ForebayDataLayer) -> None:
    user = await a_user(layer)
    threads = [await a_thread(layer, user_id=user.id, name=f"thread {n}") for n in range(3)]
    for n, thread_id in enumerate(threads):
        await layer.create_step(a_step(thread_id, createdAt=at(n), output="said"))
    _, middle, _ = threads
    assert await listed(layer, user.id, 2) == [threads[2], middle]
    await layer.create_step(a_step(middle, createdAt=at(9), output="unheard of"))
    assert await listed(layer, user.id, 2, search="unheard of") == [middle]
    assert await listed(layer, user.id, 2, cursor=middle) == [threads[0]]
