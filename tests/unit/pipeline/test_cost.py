"""What a write costs, in the interpreter's instructions: the same on every machine, however busy it is.

A change that makes the write path dearer fails here. If it is worth it, raise the limit and say why.
"""

from __future__ import annotations

import gc
import sys
import uuid
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from forebay.database.sql import batch_parameters
from forebay.journal.group import Group
from forebay.model import changes
from forebay.model.changes import Upsert
from forebay.pipeline.queue import Batch, Inbox
from forebay.telemetry.counters import Counts

_ROWS = 50
_THREAD = str(uuid.uuid4())


def _instructions(run: Callable[[], object]) -> int:
    """How many instructions of Python's `run` takes, once it has run before."""
    run()
    count = 0

    def trace(frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal count
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    gc.disable()  # or what other tests have left would be counted, as it is done away with
    sys.settrace(trace)
    try:
        run()
    finally:
        sys.settrace(before)
        gc.enable()
    return count


def _message(number: int) -> dict[str, Any]:
    """The keys of Chainlit's `Message.to_dict()`."""
    return {
        "id": str(uuid.UUID(int=number)), "threadId": _THREAD, "parentId": None, "createdAt": "2026-01-02T03:04:05Z",
        "command": None, "modes": None, "start": "2026-01-02T03:04:05Z", "end": "2026-01-02T03:04:05Z",
        "output": "an answer", "name": "Assistant", "type": "assistant_message", "language": None, "streaming": False,
        "isError": False, "waitForAnswer": False, "metadata": {}, "tags": None,
    }  # fmt: skip


@pytest.fixture
def upserts() -> list[Upsert]:
    return [changes.step(_message(number)) for number in range(_ROWS)]


def test_freezing_a_step() -> None:
    message = _message(1)
    assert _instructions(lambda: changes.step(message)) < 260


def test_queueing_it(upserts: list[Upsert]) -> None:
    def queue() -> None:
        inbox = Inbox(max_bytes=2**30, batch_max_rows=10**6, batch_max_bytes=2**30, linger=0, counts=Counts())
        for upsert in upserts:
            inbox.offer(upsert, 0.0)

    assert _instructions(queue) / _ROWS < 255


def test_folding_it(upserts: list[Upsert]) -> None:
    def fold() -> None:
        batch, counts = Batch(0.0), Counts()
        for upsert in upserts * 2:
            batch.add(1, upsert, (), counts)

    assert _instructions(fold) / _ROWS < 730  # a step keeps the moment at which it was first sent


def test_making_a_batch_statements_documents(upserts: list[Upsert]) -> None:
    assert _instructions(lambda: batch_parameters.documents(upserts)) / _ROWS < 100


def test_encoding_it_for_the_journal(upserts: list[Upsert]) -> None:
    assert _instructions(lambda: changes.encode(upserts)) / _ROWS < 34


def test_gathering_it_for_the_journal(upserts: list[Upsert]) -> None:
    done: Any = None  # nobody waits

    def gather() -> None:
        group = Group()
        for seq, upsert in enumerate(upserts, 1):
            group.add(seq, upsert, done)

    assert _instructions(gather) / _ROWS < 90


def test_a_dearer_way_is_noticed(upserts: list[Upsert]) -> None:
    """Value by value, without the shape that was learnt."""
    from forebay.model import rows

    message = _message(1)
    assert _instructions(lambda: rows._clean_each("steps", message)) > 2 * _instructions(
        lambda: rows.clean("steps", message)
    )
