"""A process that writes at a steady rate until its input ends, then writes out what is queued. See test_outage.py."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
import tracemalloc
import uuid
from pathlib import Path
from typing import Any

from chainlit.context import init_http_context

from forebay import ForebayDataLayer, Settings
from tests.faults.load import versioned
from tests.integration.contract import accounted_for

_TICK = 0.01
_WRITERS = 256
_STEPS_OF_A_THREAD = 50


def step_id(number: int) -> str:
    """The id of the step that was created as this one; so nobody needs to remember them."""
    return str(uuid.UUID(int=number + 1))


class _Steady:
    """Writers who each create a step, or change an earlier one, and wait for that; together `rate` times a second.

    A machine that can't do so many makes them slower, not more. The first `created` steps were created, and the
    first `changed` of them changed.
    """

    def __init__(self, layer: ForebayDataLayer, rate: int, size: int) -> None:
        self.created = 0
        self.changed = 0
        self._layer = layer
        self._rate = rate
        self._size = size

    @property
    def started(self) -> int:
        """How many writes."""
        return self.created + self.changed

    async def run(self, until: threading.Event) -> None:
        async with asyncio.TaskGroup() as writers:
            for _ in range(_WRITERS):
                writers.create_task(self._write(until, time.monotonic()))

    async def _write(self, until: threading.Event, began: float) -> None:
        while not until.is_set():
            if self.started < (time.monotonic() - began) * self._rate:
                await self._layer.update_step(self._next())
            else:
                await asyncio.sleep(_TICK)

    def _next(self) -> Any:
        if self.started % 2 and self.created - self.changed > self._rate // 4:
            number, version = self.changed, 1
            self.changed += 1
        else:
            number, version = self.created, 0
            self.created += 1
        thread_id = str(uuid.UUID(int=2**64 + number // _STEPS_OF_A_THREAD))
        return versioned(step_id(number), thread_id, version, self._size)


async def main(url: str, folder: str, rate: str, size: str, queue_max_bytes: str) -> None:
    init_http_context()
    stop = threading.Event()

    def wait_for_the_end() -> None:
        sys.stdin.read()
        stop.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    settings = Settings(
        durability="journal",
        journal_dir=Path(folder),
        queue_max_bytes=int(queue_max_bytes),
        auto_migrate=True,
    )
    layer = ForebayDataLayer(url, settings=settings)
    await layer.execute_sql("SELECT 1", {})
    load = _Steady(layer, int(rate), int(size))
    tracemalloc.start()
    began = time.monotonic()
    await load.run(stop)
    wrote_for = time.monotonic() - began

    counts, backlog = layer._engine.counts, layer._engine.inbox.pending
    began, cpu = time.monotonic(), time.process_time()
    await layer.flush()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    told: dict[str, Any] = {"created": load.created, "changed": load.changed}
    told |= {
        "backlog": backlog,
        "caught_up_in": time.monotonic() - began,
        "caught_up_cpu": time.process_time() - cpu,
        "wrote_for": wrote_for,
        "most_memory": most,
    }
    told |= {"spilled": counts.spilled, "accepted": counts.accepted.total(), "pending": counts.pending}
    told |= {"balanced": accounted_for(layer), "dropped": counts.dropped.total()}
    await layer.close()
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
