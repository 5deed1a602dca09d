"""A number of bytes that many share: they wait in the order of their asking, and nobody shuts the others out."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, deque


class ByteBudget:
    """A number of bytes that many may take from, in the order of their asking. More than all of it goes alone.

    One holder leaves a sixteenth to the others, so that nobody can shut them out.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._of_one = most - most // 16
        self._taken = 0
        self._held: Counter[str] = Counter()
        self._waiting: deque[tuple[int, str, asyncio.Future[None]]] = deque()

    async def take(self, size: int, holder: str = "") -> None:
        """Wait until there is room, and take it."""
        if not self._waiting and self._fits(size, holder):
            self.force(size, holder)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, holder, turn))
        self._admit()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give(size, holder)
            else:
                with contextlib.suppress(ValueError):  # left out by those that were let in meanwhile
                    self._waiting.remove((size, holder, turn))
                self._admit()
            raise

    def force(self, size: int, holder: str = "") -> None:
        """Take it without asking: it is there already."""
        self._taken += size
        self._held[holder] += size

    def give(self, size: int, holder: str = "") -> None:
        """Give it back."""
        self._taken -= size
        self._held[holder] -= size
        if self._held[holder] <= 0:
            del self._held[holder]
        self._admit()

    def _fits(self, size: int, holder: str) -> bool:
        return self._taken == 0 or (self._taken + size <= self._most and self._is_fair(size, holder))

    def _is_fair(self, size: int, holder: str) -> bool:
        """Whether enough is left to the others. Nobody's name stands for all who have none."""
        return not holder or self._held[holder] + size <= self._of_one

    def _admit(self) -> None:
        """Let in, in order, whom there is room for; who has his share already lets the others pass."""
        for waiting in [*self._waiting]:
            size, holder, turn = waiting
            if not self._fits(size, holder):
                if self._is_fair(size, holder):
                    return
                continue
            self._waiting.remove(waiting)
            if not turn.done():
                self.force(size, holder)
                turn.set_result(None)
