"""Whether this process should get traffic, and how late its event loop is. Decisions only, on a clock passed in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from typing_extensions import override

from forebay.errors import ForebayError, SchemaError

PULSE = 0.25  # seconds between two looks


class Health:
    """Why the process should get no traffic: a wrong schema, an outage longer than `grace` seconds, its end.

    `failure` is why nothing is written at present, None while it is; `has_written`, whether anything ever was.
    `answered` is False from when somebody begins to ask the database until it first answers; nothing is
    ready before.
    """

    def __init__(
        self,
        failure: Callable[[], ForebayError | None],
        has_written: Callable[[], bool],
        grace: float,
        clock: Callable[[], float],
    ) -> None:
        self.closing = False
        self.answered: bool | None = None
        self._failure = failure
        self._has_written = has_written
        self._grace = grace
        self._clock = clock
        self._asked: ForebayError | None = None
        self._since: float | None = None

    @override
    def __repr__(self) -> str:
        return f"<Health {self.reason() or 'ready'}>"

    def note(self, error: ForebayError | None) -> None:
        """What the database answered when it was asked, for times when nothing is written."""
        self._asked = error
        self.answered = self.answered or error is None
        self.look()

    def look(self) -> None:
        """Notice when a failure begins and ends; to be called a few times a second."""
        self.answered = self.answered if self.answered is not False else self._has_written()
        if self.failure is None:
            self._since = None
        elif self._since is None:
            self._since = self._clock()

    @property
    def failure(self) -> ForebayError | None:
        """Why the database can't be used at present, however short that may be."""
        return self._failure() or self._asked

    def reason(self) -> str | None:
        """Why there should be no traffic, or None."""
        if self.closing:
            return "the data layer is closing"
        self.look()
        failure = self.failure
        if self.answered is False:
            return str(failure) if failure else "the database has not answered yet"
        if failure is None or self._since is None:
            return None
        if isinstance(failure, SchemaError) or self._clock() - self._since >= self._grace:
            return str(failure)
        return None


class Pulse:
    """Calls `beat` every `PULSE` seconds with the seconds by which the event loop came late to it.

    A timer, not a task: it needs no stack and no context, and ends with its loop.
    """

    def __init__(self, beat: Callable[[float], None]) -> None:
        self._beat = beat
        self._handle: asyncio.TimerHandle | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Beat in this loop from now on."""
        self.stop()
        self._wait(loop)

    def stop(self) -> None:
        """Beat no more."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        due = loop.time() + PULSE
        self._handle = loop.call_at(due, self._due, loop, due)

    def _due(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        self._wait(loop)
        self._beat(max(0.0, loop.time() - due))
