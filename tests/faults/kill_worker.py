"""A process that writes until it is killed, and says which writes were acknowledged. See test_kill.py."""

from __future__ import annotations

import asyncio
import sys
import uuid
from pathlib import Path

from chainlit.context import init_http_context

from forebay import ForebayDataLayer, Settings


async def _write(layer: ForebayDataLayer, prefix: str) -> None:
    """Create a step, then update it time and again; each acknowledged version is a line of output."""
    number = 0
    while True:
        step_id, thread_id = str(uuid.uuid4()), str(uuid.uuid5(uuid.NAMESPACE_URL, f"{prefix}{number // 10}"))
        for version in range(5):
            values = {
                "id": step_id,
                "threadId": thread_id,
                "name": "s",
                "type": "run",
                "output": str(version),
            }
            await layer.update_step(values)  # type: ignore[arg-type]
            sys.stdout.write(f"ack {step_id} {version}\n")
            sys.stdout.flush()
        number += 1


async def main(url: str, folder: str) -> None:
    init_http_context()
    layer = ForebayDataLayer(url, settings=Settings(durability="journal", journal_dir=Path(folder)))
    await asyncio.gather(*(_write(layer, f"{task}-{uuid.uuid4()}-") for task in range(20)))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
