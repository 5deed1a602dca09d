"""One of several workers: writes a few steps, says so, and lives until it is killed. Arguments: database, steps."""

from __future__ import annotations

import asyncio
import sys
import uuid
from typing import Any

from forebay import ForebayDataLayer


async def _work(url: str, steps: int) -> None:
    layer = ForebayDataLayer(url)
    await layer.start()
    thread_id = str(uuid.uuid4())
    for _ in range(steps):
        step: Any = {
            "id": str(uuid.uuid4()),
            "threadId": thread_id,
            "name": "x",
            "type": "run",
            "output": "x",
        }
        await layer.create_step(step)
    await layer.flush()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


asyncio.run(_work(sys.argv[1], int(sys.argv[2])))
