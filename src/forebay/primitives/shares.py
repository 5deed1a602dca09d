"""A number of places that many people share, of which one of them holds a part at most."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anyio import CapacityLimiter

_PART = 4


class Shares:
    """`most` places at once. One holder has a quarter of them at most, so that what is slow for one is not for all."""

    def __init__(self, most: int) -> None:
        self._all = CapacityLimiter(most)
        self._of_one = max(1, most // _PART)
        self._holders: dict[str, tuple[CapacityLimiter, int]] = {}

    @asynccontextmanager
    async def place(self, holder: str) -> AsyncIterator[None]:
        """One place, in the order of asking, for as long as the context lasts."""
        async with self._turn(holder), self._all:
            yield

    @asynccontextmanager
    async def _turn(self, holder: str) -> AsyncIterator[None]:
        """The holder's own turn, first: who waits for it must not keep a place from others."""
        limiter, users = self._holders.get(holder) or (CapacityLimiter(self._of_one), 0)
        self._holders[holder] = limiter, users + 1
        try:
            async with limiter:
                yield
        finally:
            limiter, users = self._holders.pop(holder)
            if users > 1:
                self._holders[holder] = limiter, users - 1
