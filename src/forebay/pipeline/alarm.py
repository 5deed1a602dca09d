"""What wakes the writer from its rest."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Alarm:
    """Rings when something was queued, when somebody waits for it, and at a time that was set.

    `noticed` and `hurried`: whether something was queued, and whether somebody waits, since the writer last said False.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.noticed = False
        self.hurried = False
        self._clock = clock
        self._sleep: asyncio.Future[None] | None = None
        self._due: float | None = None

    def notice(self, *, now: bool) -> None:
        """Something was queued; `now`: it must not wait for company."""
        self.noticed = True
        if now:
            self.hurried = True
        if now or self._due is None:
            self._wake()

    async def rest(self, due: float | None, at_latest: float | None = None) -> None:
        """Sleep until `due`, or `at_latest`, on the clock; without `due`, until something is queued."""
        loop = asyncio.get_running_loop()
        self._sleep, self._due = loop.create_future(), due
        times = [time for time in (due, at_latest) if time is not None]
        timer = loop.call_later(max(0.0, min(times) - self._clock()), self._wake) if times else None
        try:
            await self._sleep
        finally:
            self._sleep = None
            if timer is not None:
                timer.cancel()

    def rebind(self) -> None:
        """Go on in another event loop; nobody sleeps in the one before."""
        self._sleep = None

    def _wake(self) -> None:
        if self._sleep is not None and not self._sleep.done():
            self._sleep.set_result(None)
