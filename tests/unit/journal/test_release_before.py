"""What a release before has left behind is read by this one.

`data` holds two journals as they were left by the first release, with every kind of change in them, in four
segments: one of a process that wrote to the database itself, and one of a process that did not.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from forebay.journal.orphan import adopt
from forebay.model.changes import Delete, Upsert

_DATA = Path(__file__).parent / "data"
_LOCATION = "postgresql://me@localhost:5432/chat"
_ID = "6f3f9f0e-0000-4000-8000-%012d"


@pytest.mark.parametrize("writer", ["embedded", "external"])
def test_each_change_is_read(tmp_path: Path, writer: str) -> None:
    folder = tmp_path / "journals"
    shutil.copytree(_DATA / writer, folder)
    orphan = adopt(folder, _LOCATION)
    assert orphan is not None
    records = orphan.read(0, 2**30)
    assert not orphan.damaged
    assert not orphan.torn
    orphan.release()
    assert [seq for seq, _ in records] == list(range(1, 11))
    found = [change for _, change in records]
    assert [change.table for change in found] == ["threads", *["steps"] * 6, "elements", "feedbacks", "steps"]
    thread, step, deleted = found[0], found[3], found[-1]
    assert isinstance(thread, Upsert)
    assert thread.row["name"] == "Name"
    assert thread.removed == {"gone"}
    assert isinstance(step, Upsert)
    assert step.row["output"] == "text 2" + " ü" * 80
    assert step.row["generation"] == b'{"g":1.5}'
    assert step.thread_id == _ID % 1
    assert deleted == Delete("steps", _ID % 105, _ID % 1)
