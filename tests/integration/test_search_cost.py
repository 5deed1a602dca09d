"""A search costs what it may cost, whatever is searched and whatever is looked for."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from chainlit.types import Pagination, ThreadFilter

from forebay import ForebayDataLayer, SearchBusy
from tests.integration.contract import a_step, a_thread, a_user


async def _found(layer: ForebayDataLayer, user_id: str, search: str, first: int = 20) -> list[str]:
    page = await layer.list_threads(Pagination(first=first), ThreadFilter(userId=user_id, search=search))
    return [thread["id"] for thread in page.data]


async def test_a_long_needle_is_looked_for_by_its_beginning(layer: ForebayDataLayer) -> None:
    user = await a_user(layer)
    thread_id = await a_thread(layer, user_id=user.id)
    await layer.create_step(a_step(thread_id, output="a" * 100_000))
    assert await _found(layer, user.id, "A" * 400_000 + "b") == [thread_id]
    assert await _found(layer, user.id, "a" * 199 + "b") == []
    assert await _found(layer, user.id, "a", 10**9) == [thread_id]


@pytest.mark.parametrize("needle", ["50%", "a_c", "%", "_", "!", "\\", "Ärger", "ärger", "ÄRGER"])
async def test_everything_is_looked_for_as_it_stands(layer: ForebayDataLayer, needle: str) -> None:
    user = await a_user(layer)
    thread_id = await a_thread(layer, user_id=user.id, name="nothing")
    await layer.create_step(a_step(thread_id, output="500 abc aBc", input=None))
    assert await _found(layer, user.id, needle) == []
    await layer.create_step(a_step(thread_id, output="50% a_c ! \\ Ärger"))
    assert await _found(layer, user.id, needle) == [thread_id]


async def test_one_persons_searches_at_once_are_bounded(layer: ForebayDataLayer) -> None:
    user = await a_user(layer)
    thread_id = await a_thread(layer, user_id=user.id, name="harbour")
    await layer.flush()
    answers: list[Any] = await asyncio.gather(
        *(_found(layer, user.id, "HARBOUR") for _ in range(12)), return_exceptions=True
    )
    assert answers[:4] == [[thread_id]] * 4
    assert [type(answer) for answer in answers[4:]] == [SearchBusy] * 8
    assert await _found(layer, user.id, "harbour") == [thread_id]
