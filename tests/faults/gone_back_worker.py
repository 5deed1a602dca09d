"""A process that writes to a thread, also while somebody holds that, until it is killed. See test_gone_back.py."""

from __future__ import annotations

import asyncio
import signal
import sys
import uuid
from pathlib import Path

from chainlit.context import init_http_context

from forebay import ForebayDataLayer, Settings
from tests.faults.load import versioned
from tests.integration.contract import until


def _say(word: str) -> None:
    sys.stdout.write(word + "\n")
    sys.stdout.flush()


async def main(url: str, folder: str, thread_id: str) -> None:
    init_http_context()
    layer = ForebayDataLayer(url, settings=Settings(durability="journal", journal_dir=Path(folder)))
    is_held = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, is_held.set)
    for number in range(20):
        await layer.create_step(versioned(str(uuid.uuid4()), thread_id, number))
    await layer.flush()
    _say("begun")
    await is_held.wait()
    for number in range(20, 40):
        await layer.create_step(versioned(str(uuid.uuid4()), thread_id, number))
    await until(lambda: bool(layer._engine.lanes.open))
    _say("parked")
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
