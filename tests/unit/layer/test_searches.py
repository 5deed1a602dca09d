"""What one person's searches cost the others is bounded."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack

import pytest
from chainlit.types import ThreadFilter

from forebay import SearchBusy
from forebay.layer.searches import Searches, bounded
from tests.support.patience import patience


@pytest.mark.parametrize("search", [None, "", "harbour", "ä" * 200])
def test_what_people_type_stays(search: str | None) -> None:
    assert bounded(ThreadFilter(userId="me", search=search)).search == search


def test_what_is_pasted_is_cut() -> None:
    cut = bounded(ThreadFilter(userId="me", search="ä" * 400_000 + "b", feedback=1))
    assert (cut.search, cut.userId, cut.feedback) == ("ä" * 200, "me", 1)


class _Crowd:
    """Searches that run until they are told."""

    def __init__(self) -> None:
        self.refused: Counter[str] = Counter()
        self.running: list[str] = []
        self.most = 0
        self.go_on = asyncio.Event()
        self.searches = Searches(self.refused)

    async def search(self, person: str) -> None:
        async with self.searches.slot(person):
            self.running.append(person)
            self.most = max(self.most, len(self.running))
            await self.go_on.wait()
            self.running.remove(person)

    async def all(self, people: list[str]) -> list[BaseException | None]:
        tasks = [asyncio.ensure_future(self.search(person)) for person in people]
        for _ in range(5):
            await asyncio.sleep(0)
        self.first = sorted(self.running)
        self.go_on.set()
        return await asyncio.gather(*tasks, return_exceptions=True)


async def test_one_person_has_one_at_once_and_the_rest_is_others() -> None:
    crowd = _Crowd()
    ended = await crowd.all(["m"] * 6 + ["a", "b", "c"])
    assert crowd.first == ["a", "b", "m"]
    assert crowd.most == 3
    assert [type(one) for one in ended if one is not None] == [SearchBusy, SearchBusy]
    assert crowd.refused == {"person": 2}


async def test_those_who_wait_are_bounded() -> None:
    crowd = _Crowd()
    ended = await crowd.all([str(n) for n in range(70)])
    assert sum(isinstance(one, SearchBusy) for one in ended) == 6
    assert crowd.refused == {"all": 6}


async def test_who_gives_up_leaves_nothing_behind() -> None:
    crowd = _Crowd()
    tasks = [asyncio.ensure_future(crowd.search(person)) for person in "aaabbcd"]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    async with patience(), AsyncExitStack() as stack:
        for person in "xyz":
            await stack.enter_async_context(crowd.searches.slot(person))
    assert crowd.refused == {}


async def test_one_that_takes_too_long_ends_and_gives_its_place_back() -> None:
    refused: Counter[str] = Counter()
    searches = Searches(refused, longest=0.0)
    for person in "aabcd":
        with pytest.raises(SearchBusy):
            async with searches.slot(person):
                await asyncio.Event().wait()
    assert refused == {"time": 5}
