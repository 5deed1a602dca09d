"""A process that writes to threads that somebody holds, and to others, until it is killed. See test_held_up.py."""

from __future__ import annotations

import asyncio
import sys
import uuid
from pathlib import Path

from chainlit.context import init_http_context

from forebay import ForebayDataLayer, Settings
from tests.faults.load import versioned
from tests.integration.contract import until


async def _write(layer: ForebayDataLayer, thread_id: str) -> None:
    """Create a step, then update it time and again; each acknowledged version is a line of output."""
    while True:
        step_id = str(uuid.uuid4())
        for version in range(5):
            await layer.update_step(versioned(step_id, thread_id, version))
            sys.stdout.write(f"ack {step_id} {thread_id} {version}\n")
            sys.stdout.flush()
            await asyncio.sleep(0.002)


async def _tell(layer: ForebayDataLayer, threads: int) -> None:
    await until(lambda: len(layer._engine.lanes.open) == threads)
    sys.stdout.write("parked\n")
    sys.stdout.flush()


async def main(url: str, folder: str, *held: str) -> None:
    init_http_context()
    layer = ForebayDataLayer(url, settings=Settings(durability="journal", journal_dir=Path(folder)))
    threads = [*held, *(str(uuid.uuid4()) for _ in range(3))]
    await asyncio.gather(*(_write(layer, thread_id) for thread_id in threads), _tell(layer, len(held)))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
