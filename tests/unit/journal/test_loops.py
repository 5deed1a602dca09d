"""A journal whose event loop ends while its thread is at work loses no count of what it holds."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from forebay.journal.journal import Journal
from forebay.journal.log import Log
from forebay.model import changes
from forebay.model.changes import Change
from tests.support.patience import PATIENCE


def _change(number: int) -> Change:
    return changes.step({"id": f"s{number}", "threadId": "t", "output": "x" * 1000})


class _Gate:
    """Holds the thread before it writes, until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()
        append = Log.append

        def held(log: Log, first_seq: int, last_seq: int, body: Sequence[bytes], checksum: int) -> None:
            self.reached.set()
            assert self.opened.wait(PATIENCE)
            append(log, first_seq, last_seq, body, checksum)

        monkeypatch.setattr(Log, "append", held)


def _finished(journal: Journal) -> bool:
    return all(group.is_finished for group in journal._in_flight)


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - it is a thread that makes it true
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("finishes", ["between the loops", "in the next loop"])
def test_what_a_closed_loop_was_not_told_the_next_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finishes: str
) -> None:
    gate = _Gate(monkeypatch)

    async def first() -> Journal:
        journal = Journal(tmp_path, asyncio.get_running_loop())
        for number in (1, 2):
            journal.append(number, _change(number))
        await _until(gate.reached.is_set)
        journal.append(3, _change(3))  # gathers meanwhile
        return journal

    async def second(journal: Journal) -> None:
        journal.rebind(asyncio.get_running_loop())
        gate.opened.set()
        await journal.append(4, _change(4))
        assert journal.durable_seq == 4
        assert [seq for seq, _ in await journal.read(0, 2**30)] == [1, 2, 3, 4]
        assert journal.size > 0
        journal.trim(4)
        assert journal.size == 0
        assert journal.is_quiet
        await journal.close(remove=True)

    journal = asyncio.run(first())
    if finishes == "between the loops":
        gate.opened.set()
        asyncio.run(_until(lambda: _finished(journal)))
    asyncio.run(second(journal))
