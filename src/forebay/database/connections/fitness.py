"""Which connections may still be used: young, alive, and not known to lead to nowhere or to another server."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections.abc import Mapping
from random import SystemRandom

from forebay.database.connections.drivers import SILENCE, AsyncpgDriver, Driver
from forebay.database.connections.opening import Opener, Session

logger = logging.getLogger("forebay.store")

# A name may lead elsewhere, and a role have other settings, without a word to the connections that are open. Seconds.
MOST_AGE = 1800.0
# What lies between may forget a connection that nobody uses; the shortest of the usual times is 350 s. Seconds.
MOST_IDLE = 300.0
# A statement whose session knows nothing of it is looked at once more after this, since its answer may be on the way.
_AGAIN = 1.0  # seconds
_LOOK_TIMEOUT = 5.0  # seconds
_random = SystemRandom()


class Fitness:
    """What is known of all connections to one place."""

    def __init__(self) -> None:
        self._condemned_at = float("-inf")

    def is_fit(self, driver: Driver) -> bool:
        """Whether a connection that nothing runs on may be used."""
        if isinstance(driver, AsyncpgDriver):
            lived_at = driver.lived_at
            now = time.monotonic()
            return (
                lived_at > self._condemned_at
                and now - lived_at < MOST_IDLE
                and now < driver.old_at
                and not driver.closed
            )
        return True

    def condemn(self, before: float | None = None) -> None:
        """Those that have not answered anything since (None: by now) are of no use any more."""
        self._condemned_at = max(self._condemned_at, time.monotonic() if before is None else before)


def old_at(opened_at: float) -> float:
    """When a connection is too old; those that were opened together are not so together."""
    return opened_at + MOST_AGE * _random.uniform(0.8, 1.0)


class Watch:
    """Looks whether connections are there that do not answer.

    A network that has forgotten a connection says nothing, and a slow statement neither. The server tells them apart,
    on a connection that is opened for that: the session of the one waits for a statement, or is gone.
    """

    def __init__(self, opener: Opener, fitness: Fitness) -> None:
        self._opener = opener
        self._fitness = fitness
        self._silent: dict[AsyncpgDriver, tuple[asyncio.TimerHandle, float]] = {}
        self._doubtful: set[AsyncpgDriver] = set()
        self._task: asyncio.Task[None] | None = None

    def suspect(self, driver: AsyncpgDriver, asked: asyncio.TimerHandle) -> None:
        """A statement has had no answer for `SILENCE` seconds; `asked` is cancelled when it comes."""
        loop = asyncio.get_running_loop()
        self._silent[driver] = (asked, time.monotonic() - SILENCE)
        if self._task is None or self._task.done() or self._task.get_loop() is not loop:
            # An empty context: the caller's would keep its Chainlit session alive.
            self._task = loop.create_task(self._look(), context=contextvars.Context())

    async def _look(self) -> None:
        try:
            while self._still_silent():
                self._judge(await self._states())
                await asyncio.sleep(_AGAIN if self._doubtful else SILENCE)
        finally:
            self._silent.clear()
            self._doubtful.clear()

    def _still_silent(self) -> bool:
        self._silent = {
            driver: known
            for driver, known in self._silent.items()
            if not known[0].cancelled() and not driver.closed
        }
        return bool(self._silent)

    async def _states(self) -> Mapping[AsyncpgDriver, str | None]:
        """What their sessions do; none where that can't be told."""
        sessions: dict[AsyncpgDriver, Session] = {}
        for driver in self._silent:
            session = self._opener.session(driver.raw)
            if session is not None and not session.pooled:
                sessions[driver] = session
        if not sessions:
            return {}
        try:
            async with asyncio.timeout(_LOOK_TIMEOUT):
                states = await self._opener.states(list(sessions.values()))
        except Exception:  # the whole server is away, or has no room: nothing is known of one connection
            return {}
        return {driver: states[session] for driver, session in sessions.items()}

    def _judge(self, states: Mapping[AsyncpgDriver, str | None]) -> None:
        self._still_silent()
        doubtful: set[AsyncpgDriver] = set()
        for driver, (_, asked_at) in self._silent.items():
            if driver not in states or states[driver] in ("active", "disabled", "fastpath function call", ""):
                continue
            if driver not in self._doubtful:
                doubtful.add(driver)
                continue
            logger.warning("connection lost without a word silent_for=%.1fs", time.monotonic() - asked_at)
            self._fitness.condemn(asked_at)
            driver.terminate()
        self._doubtful = doubtful
