"""A process that writes rows which its database refuses, among others, until it is killed. See test_letters.py."""

from __future__ import annotations

import asyncio
import itertools
import sys
import uuid
from pathlib import Path
from typing import Any, Literal

from chainlit.context import init_http_context

from forebay import ForebayDataLayer, Settings
from forebay.errors import JournalError
from forebay.journal.dead_letters import DeadLetters
from forebay.journal.side_journal import SideJournal
from tests.faults.load import versioned
from tests.integration.contract import until

POISON = "poison"


def _fail(*_: Any) -> None:
    raise JournalError("no room")


async def main(url: str, folder: str, where: str, writer: Literal["embedded", "external"]) -> None:
    """`where` the refused rows wait: in a `side` journal, or in the process's `own`."""
    init_http_context()
    settings = Settings(
        durability="journal", journal_dir=Path(folder), writer=writer, dead_letters_max_bytes=64 * 1024
    )
    layer = ForebayDataLayer(url, settings=settings)
    if where == "own":
        setattr(SideJournal, "append", _fail)  # noqa: B010 - no type checker takes it otherwise
        setattr(DeadLetters, "keep", _fail)  # noqa: B010
    thread_id = str(uuid.uuid4())
    for number in itertools.count():
        step = versioned(str(uuid.uuid4()), thread_id, 0, size=5000)
        step["name"] = POISON if number % 3 == 0 and number < 100 else "s"
        await layer.update_step(step)
        sys.stdout.write(f"ack {step['id']} {step['name']}\n")
        sys.stdout.flush()
        if number == 150 and writer == "embedded":
            await layer.flush()
            await until(lambda: layer._engine.counts.letters_waiting > 5)
        if number == 200:
            sys.stdout.write("waiting\n")
            sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))  # type: ignore[arg-type]
