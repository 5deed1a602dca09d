"""What runs beside an engine for its operator: the listener, a look at the idle database, the loop's lag."""

from __future__ import annotations

import asyncio
import contextvars
from typing import NoReturn

import anyio

from forebay.errors import DatabaseError, ForebayError, JournalError
from forebay.layer import announcements
from forebay.layer.announcements import Acquaintance
from forebay.pipeline import Pipeline
from forebay.settings import Settings
from forebay.telemetry import app_route
from forebay.telemetry.collector import Metrics
from forebay.telemetry.health import Pulse
from forebay.telemetry.listener import Listener

# How often a database that nobody writes to is asked whether it is there, in seconds.
_ASK_INTERVAL = 5.0


class Operations:
    """Starts with the engine, in its loop. A layer that is never used opens no port."""

    def __init__(self, settings: Settings, engine: Pipeline, metrics: Metrics) -> None:
        self.listener = Listener(
            settings.metrics_address,
            metrics.registry,
            engine.health.reason,
            lambda: _ended(engine),
            lambda: engine.health.closing,
            settings.journal_dir,
            warning=lambda: engine.letterbox.warning,
        )
        self._settings = settings
        self._is_off = settings.metrics_address.strip().lower() == "off"
        self._engine = engine
        self._metrics = metrics
        self._pulse = Pulse(self._beat)
        self._serving: asyncio.Task[None] | None = None
        self._asking: asyncio.Task[None] | None = None
        self._acquaintance = Acquaintance()
        self._has_begun = False
        engine.on_start.append(self.start)
        if settings.metrics_in_app:
            app_route.publish(self.listener.everybodys_registry)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin, in this loop; once more where the engine moves to another one."""
        self._pulse.start(loop)
        if not self._has_begun:
            self._has_begun = True
            announcements.began(self._settings, self._engine.store.location)
        if self._settings.metrics_in_app:  # the Chainlit app may have come after the layer
            app_route.publish(self.listener.everybodys_registry)
        if self._is_off:
            return
        self.listener.abandon()
        self._engine.health.answered = self._engine.health.answered or False
        # An empty context, as the writer's: the caller's would keep its session alive.
        context = contextvars.Context()
        self._serving = loop.create_task(self._serve(), name="forebay-listener", context=context)
        self._asking = loop.create_task(self._ask(), name="forebay-probe", context=context)

    def look_once(self) -> None:
        """Where no probe asks the database, ask it once, so that the log tells whether it can be used."""
        if self._is_off and self._asking is None:
            loop = asyncio.get_running_loop()
            self._asking = loop.create_task(
                self._ask_once(), name="forebay-probe", context=contextvars.Context()
            )

    async def closing(self) -> None:
        """Not ready from now on, and no word to the database any more; the probes go on answering."""
        self._engine.health.closing = True
        asking, self._asking = self._asking, None
        await _end(asking)

    async def close(self) -> None:
        """End it all."""
        self._pulse.stop()
        serving, self._serving = self._serving, None
        await _end(serving)
        if self._has_begun:
            announcements.ended(self._engine.counts)

    def _beat(self, lag: float) -> None:
        self._metrics.event_loop_lag.observe(lag)
        self._engine.health.look()

    async def _serve(self) -> None:
        async with self.listener:
            await anyio.sleep_forever()

    async def _ask(self) -> NoReturn:
        """Where batches are written, they tell how the database is; else it is asked."""
        seen = -1
        while True:
            written = self._engine.counts.written.total()
            if written == seen or seen < 0 or self._engine.health.failure is not None:
                await self._ask_once()
            else:
                await self._look_at_folder()
            seen = written
            await self._engine.letterbox.count()
            await anyio.sleep(_ASK_INTERVAL)

    async def _ask_once(self) -> None:
        failure = await self._failure()
        self._acquaintance.met(failure)
        if not self._is_off:  # or nobody would take it back
            self._engine.health.note(failure)

    async def _failure(self) -> ForebayError | None:
        try:
            await self._engine.store.position("")
            await self._engine.check_folder()
        except (DatabaseError, JournalError) as error:
            return error
        return None

    async def _look_at_folder(self) -> None:
        """Into a file whose folder was removed one may write, and nothing of it is kept."""
        try:
            await self._engine.check_folder()
        except JournalError as error:
            self._engine.health.note(error)


async def _end(task: asyncio.Task[None] | None) -> None:
    if task is not None:
        task.cancel()
        await asyncio.wait([task])


def _ended(engine: Pipeline) -> str | None:
    return (
        "the writer has ended, nothing is written any more; start the process again" if engine.ended else None
    )
