"""A process whose journal's disk fails it. What it was told is one JSON object on its output. See test_disk.py."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import sys
import uuid
from pathlib import Path
from typing import Any

from chainlit.context import init_http_context

from forebay import ForebayDataLayer, Settings
from forebay.errors import JournalError
from tests.faults.load import versioned
from tests.integration.contract import accounted_for

_REFUSALS = 20
_MORE_THAN_FIT = 400
# With a small one an outage is spilled; what only the disk would hold is refused.
_QUEUE = {"full": 64 * 1024 * 1024, "outage": 16 * 1024, "read-only": 16 * 1024}
_NOBODY = 65534


class Told:
    """What became of each write."""

    def __init__(self, layer: ForebayDataLayer) -> None:
        self.acknowledged: dict[str, int] = {}
        self.refused: list[str] = []
        self.errors: set[str] = set()
        self._layer = layer
        self._thread_id = str(uuid.uuid4())

    async def write(self) -> None:
        step_id = str(uuid.uuid4())
        try:
            await self._layer.update_step(versioned(step_id, self._thread_id, 0, size=1000))
        except JournalError as error:
            self.refused.append(step_id)
            self.errors.add(str(error))
        else:
            self.acknowledged[step_id] = 0

    def say(self, **more: Any) -> None:
        counts = self._layer._engine.counts
        said: dict[str, Any] = {"acknowledged": self.acknowledged, "refused": self.refused}
        said |= {
            "errors": [*self.errors],
            "balanced": accounted_for(self._layer),
            "dropped": counts.dropped,
            "pending": counts.pending,
        }
        said |= {"refusals": counts.refused}
        sys.stdout.write(json.dumps(said | more) + "\n")
        sys.stdout.flush()


def _limit_files(size: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size if size > 0 else hard, hard))


async def full(layer: ForebayDataLayer, *, outage: bool) -> None:
    """Write until the disk is full, and on; then there is room again. In an outage, die with what is queued."""
    told = Told(layer)
    _limit_files(256 * 1024)
    while outage and len(told.refused) < _REFUSALS:
        await told.write()
    for _ in range(0 if outage else _MORE_THAN_FIT):
        await told.write()
    _limit_files(0)
    refused = len(told.refused)
    for _ in range(_REFUSALS):
        await told.write()
    if not outage:
        await layer.flush()
    told.say(works_again=len(told.refused) == refused)
    if outage:
        os._exit(0)
    await layer.close()


async def read_only(layer: ForebayDataLayer) -> None:
    """Write where that is not allowed. What root imports later, nobody may not be able to."""
    warm = ForebayDataLayer(
        layer._store.url.render_as_string(hide_password=False), settings=Settings(durability="memory")
    )
    await warm.update_thread(str(uuid.uuid4()), name="n")
    await warm.close()
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(_NOBODY)
        os.setuid(_NOBODY)
    told = Told(layer)
    await told.write()
    thread = await layer.get_thread(str(uuid.uuid4()))
    told.say(reads=thread is None)
    await layer.close()


async def main(url: str, folder: str, what: str) -> None:
    init_http_context()
    settings = Settings(durability="journal", journal_dir=Path(folder), queue_max_bytes=_QUEUE[what])
    layer = ForebayDataLayer(url, settings=settings)
    if what == "read-only":
        await read_only(layer)
    else:
        await full(layer, outage=what == "outage")


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(*sys.argv[1:]))
