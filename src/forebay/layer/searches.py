"""How many searches run at once: each reads all that a person has ever written, in whatever order it lies."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from chainlit.types import ThreadFilter

from forebay.errors import SearchBusy

# In characters. Chainlit's box passes what is pasted into it; what stands in a chat is found by its beginning.
_LONGEST = 200
_AT_ONCE, _PER_PERSON, _IN_ALL = 3, 4, 64
# In seconds, of the database's work. PostgreSQL goes through some 60 MB a second.
_LONGEST_TIME = 15.0


def bounded(filters: ThreadFilter) -> ThreadFilter:
    """The same filters, whose search is cut to its first 200 characters."""
    if filters.search is None or len(filters.search) <= _LONGEST:
        return filters
    return filters.model_copy(update={"search": filters.search[:_LONGEST]})


class Searches:
    """Three at once, and one of each person; the others wait: three of a person, and 61 of all.

    `refused` counts, by whose limit, those that find no place to wait, and those that take longer than `longest`
    seconds.
    """

    def __init__(self, refused: Counter[str], longest: float = _LONGEST_TIME) -> None:
        self._refused = refused
        self._longest = longest
        self._asked: Counter[str] = Counter()
        self._turns: dict[str, anyio.Lock] = {}
        self._slots = anyio.Semaphore(_AT_ONCE)

    @asynccontextmanager
    async def slot(self, person: str) -> AsyncIterator[None]:
        """While a search of this person runs. Raises SearchBusy."""
        self._check("person", self._asked[person], _PER_PERSON)
        self._check("all", self._asked.total(), _IN_ALL)
        self._asked[person] += 1
        try:
            async with self._turns.setdefault(person, anyio.Lock()), self._slots, self._limit():
                yield
        finally:
            self._asked[person] -= 1
            if not self._asked[person]:
                del self._asked[person]
                self._turns.pop(person, None)

    @asynccontextmanager
    async def _limit(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._longest):
                yield
        except TimeoutError:
            self._refused["time"] += 1
            raise SearchBusy("the search takes too long: there is too much to look through") from None

    def _check(self, whose: str, asked: int, most: int) -> None:
        if asked >= most:
            self._refused[whose] += 1
            raise SearchBusy("too many searches at once; try again in a moment")
