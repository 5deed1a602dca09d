"""What people's chats write: turns of two tool steps and an answer, as Chainlit passes them to a data layer.

Each write is a task of its own, as Chainlit makes it.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from array import array
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache
from typing import Any, Literal, NamedTuple

from chainlit.data.base import BaseDataLayer

from forebay.bench.plan import Load

WRITES_A_TURN = 9
ROWS_A_TURN = 5
_TICK = 0.001  # seconds between two looks at what is due


class Write(NamedTuple):
    """One call of a data layer."""

    method: Literal["create_step", "update_step"]
    values: dict[str, Any]


class Written:
    """What a layer was told: each step's last output; how long each call took, in seconds; how many calls failed."""

    def __init__(self) -> None:
        self.last: dict[str, str] = {}
        self.calls = array("d")
        self.failed = 0


def _now() -> str:
    return datetime.now(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def new_id() -> str:
    """A random UUID, at a third of what `uuid4` costs."""
    digits = f"{random.getrandbits(128):032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def _message(
    kind: str, thread_id: str, moment: str, output: str, parent_id: str | None = None
) -> dict[str, Any]:
    """The keys of `Message.to_dict()`."""
    return {
        "id": new_id(), "threadId": thread_id, "parentId": parent_id, "createdAt": moment,
        "command": None, "modes": None, "start": moment, "end": moment, "output": output, "name": "Assistant",
        "type": kind, "language": None, "streaming": False, "isError": False, "waitForAnswer": False,
        "metadata": {}, "tags": None,
    }  # fmt: skip


def _step(kind: str, name: str, thread_id: str, moment: str, parent_id: str | None) -> dict[str, Any]:
    """The keys of `Step.to_dict()`."""
    return {
        "name": name, "type": kind, "id": new_id(), "threadId": thread_id, "parentId": parent_id,
        "streaming": False, "metadata": {}, "tags": None, "input": "", "isError": False, "output": "",
        "createdAt": moment, "start": moment, "end": None, "language": None, "defaultOpen": False,
        "autoCollapse": False, "showInput": "json", "generation": None,
    }  # fmt: skip


@cache
def _words(size: int) -> str:
    return ("More of it. " * (size // 12 + 1))[:size]


def turn(thread_id: str, number: int, step_bytes: int, *, updates: bool = True) -> Iterator[Write]:
    """The writes of a turn: nine into five rows, or with `updates` off the five rows at once.

    `step_bytes`: how long the answer is, about; the tools' results are half of that.
    """
    moment = _now()  # once a turn: looking at the clock is the benchmark's cost, not a layer's
    last: Literal["create_step", "update_step"] = "update_step" if updates else "create_step"
    yield Write("create_step", _message("user_message", thread_id, moment, f"Question {number}?"))
    run = _step("run", "on_message", thread_id, moment, None)
    if updates:
        yield Write("create_step", run)
    for name in ("search", "read"):
        tool = _step("tool", name, thread_id, moment, run["id"])
        if updates:
            yield Write("create_step", tool)
        found = f"Result of {name} {number}: {_words(step_bytes // 2)}"
        yield Write(last, {**tool, "output": found, "end": moment})
    answer = _message("assistant_message", thread_id, moment, "The answer begins", run["id"])
    if updates:
        yield Write("create_step", answer)
    yield Write(last, {**answer, "output": f"The answer {number} begins and ends. {_words(step_bytes)}"})
    yield Write(last, {**run, "output": f"done {number}", "end": moment})


class Session:
    """One person's chat."""

    def __init__(self, layer: BaseDataLayer, load: Load, written: Written) -> None:
        self.thread_id = new_id()
        self._layer = layer
        self._load = load
        self._written = written
        self._methods = {"create_step": layer.create_step, "update_step": layer.update_step}
        self._endless = self._forever()
        self._running = 0
        self._idle: asyncio.Future[None] | None = None

    async def open(self) -> None:
        """Make the thread."""
        await self._layer.update_thread(self.thread_id, name="A chat")

    async def chat(self, ends: float = math.inf) -> None:
        """All turns, the next one when the writes of the one before are done; none after `ends` on the loop's clock."""
        loop = asyncio.get_running_loop()
        for number in range(self._load.turns):
            if loop.time() > ends:
                break
            for write in turn(self.thread_id, number, self._load.step_bytes, updates=self._load.updates):
                self._start(write)
                await asyncio.sleep(self._load.pause)  # Chainlit emits to the websocket here
            # A person reads the answer before the next question; the layer's tasks are over by then.
            await self.all_done()

    async def all_done(self) -> None:
        """Return when no write is on its way. Cheaper than `gather`."""
        if self._running:
            self._idle = asyncio.get_running_loop().create_future()
            await self._idle

    def go_on(self) -> None:
        """Begin the next write of an endless chat."""
        self._start(next(self._endless))

    def _forever(self) -> Iterator[Write]:
        number = 0
        while True:
            yield from turn(self.thread_id, number, self._load.step_bytes, updates=self._load.updates)
            number += 1

    def _start(self, write: Write) -> None:
        self._written.last[write.values["id"]] = write.values["output"]
        self._running += 1
        asyncio.create_task(self._call(write))  # noqa: RUF006  # the loop holds what is ready; the layer what waits

    async def _call(self, write: Write) -> None:
        started = time.perf_counter()
        try:
            await self._methods[write.method](dict(write.values))
        except Exception:
            self._written.failed += (
                1  # Chainlit looks at no result either; what is missing is found afterwards
            )
        self._written.calls.append(time.perf_counter() - started)
        self._running -= 1
        if not self._running and self._idle is not None:
            self._idle.set_result(None)
            self._idle = None


async def converse(sessions: list[Session], seconds: float = 0.0) -> None:
    """All sessions at once, each as fast as the layer lets it; no turn begins after `seconds`, if they are not 0."""
    ends = asyncio.get_running_loop().time() + seconds if seconds else math.inf
    await asyncio.gather(*(session.chat(ends) for session in sessions))


async def keep_pace(sessions: list[Session], rate: int, seconds: float) -> None:
    """Begin `rate` writes a second for `seconds`, whether those before are done or not."""
    loop = asyncio.get_running_loop()
    started, begun = loop.time(), 0
    while (elapsed := loop.time() - started) < seconds:
        while begun < int(elapsed * rate):
            sessions[begun % len(sessions)].go_on()
            begun += 1
        await asyncio.sleep(_TICK)
    for session in sessions:
        await session.all_done()
