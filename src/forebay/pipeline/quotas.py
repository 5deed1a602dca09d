"""How much of the queue one person's large changes take up: a quarter, so that the others find room in it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from forebay.errors import QueueFull
from forebay.model.changes import Change
from forebay.primitives.awaitables import Deferred
from forebay.primitives.futures import quiet_future
from forebay.settings import Settings

# From here on a change is large, in bytes. Of smaller ones it takes thousands at once to fill a queue.
LARGE = 16 * 1024
_PART = 4


def nobody() -> str:
    """Nobody is logged in."""
    return ""


class Quota:
    """One holder takes a quarter of `max_bytes` at most, or one change of any size."""

    def __init__(self, max_bytes: int) -> None:
        self._most = max_bytes // _PART
        self._held: Counter[str] = Counter()

    def has_room(self, holder: str, size: int) -> bool:
        """Whether the holder may take so many bytes more."""
        held = self._held[holder]
        return not held or held + size <= self._most

    def take(self, holder: str, size: int) -> Callable[[], None]:
        """The holder takes so many bytes; what gives them back, to be called once."""
        held = self._held
        held[holder] += size

        def give_back() -> None:
            held[holder] -= size
            if not held[holder]:
                del held[holder]

        return give_back

    def clear(self) -> None:
        """Nobody holds anything."""
        self._held = Counter()  # what is given back later is of before


class Held:
    """What one change takes up: of memory until it is `answered`, and of all the room until it is `written`."""

    def __init__(
        self, quotas: tuple[Quota, Quota], holder: str, size: int, written: asyncio.Future[None]
    ) -> None:
        self.written = written
        self._to_give_back = [quota.take(holder, size) for quota in quotas]
        written.add_done_callback(self.end)

    def answered(self, *_done: Any) -> None:
        """The disk has it, or the database."""
        if len(self._to_give_back) > 1:
            self._to_give_back.pop()()

    def end(self, *_done: Any) -> None:
        """It is written, or was not taken."""
        while self._to_give_back:
            self._to_give_back.pop()()

    def until(self, waiting: Awaitable[None]) -> Awaitable[None]:
        """The same to be waited for; the change is `answered` when that is done."""
        if isinstance(waiting, asyncio.Future):
            waiting.add_done_callback(self.answered)
            return waiting
        return Deferred(partial(self._until, waiting))

    async def _until(self, waiting: Awaitable[None]) -> None:
        try:
            await waiting
        except BaseException:
            self.end()
            raise
        self.answered()


class Quotas:
    """What each person's large changes take up; `whose` names who is at it, or, as "", leaves it to the thread.

    `journaled`: they are on the disk soon, which has more room than memory.
    """

    def __init__(self, settings: Settings, whose: Callable[[], str], *, journaled: bool) -> None:
        in_all = settings.journal_max_bytes if journaled else settings.queue_max_bytes
        self._quotas = Quota(in_all), Quota(settings.queue_max_bytes)
        self._whose = whose

    def hold(self, change: Change, loop: asyncio.AbstractEventLoop) -> Held:
        """Take room for a change. Raises QueueFull where it is no more its person's."""
        holder = self._whose() or change.thread_id or change.key
        if not all(quota.has_room(holder, change.size) for quota in self._quotas):
            raise QueueFull("what one person may have on its way to the database is on its way; others go on")
        return Held(self._quotas, holder, change.size, quiet_future(loop))

    def clear(self) -> None:
        """Nothing is on its way."""
        for quota in self._quotas:
            quota.clear()
