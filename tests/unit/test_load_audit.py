"""The load tests' audit finds what it is there to find."""

from __future__ import annotations

from typing import Any

import pytest
from loadtests.audit import Stored, Turn, faults

_FIRST = Turn("t", "a1", {"s1": "found", "a1": "one"}, rated=1, file="f.txt")
_SECOND = Turn("t", "a2", {"s2": "found", "a2": "two"})


def _row(output: str, created: str, thread: str = "t") -> dict[str, Any]:
    return {"thread_id": thread, "output": output, "created": created}


def _stored() -> Stored:
    steps = {
        "s1": _row("found", "2026-01-01T00:00:01Z"), "a1": _row("one", "2026-01-01T00:00:02Z"),
        "s2": _row("found", "2026-01-01T00:00:03Z"), "a2": _row("two", "2026-01-01T00:00:04Z"),
    }  # fmt: skip
    return Stored(steps, {"a1": 1}, {"t": ["f.txt"]})


def test_all_is_well() -> None:
    assert faults([_FIRST, _SECOND], _stored()) == {}


@pytest.mark.parametrize(
    ("key", "row", "fault"),
    [
        ("a1", None, "answers missing"),
        ("a2", _row("tw", "2026-01-01T00:00:04Z"), "answers stale"),
        ("s1", _row("", "2026-01-01T00:00:01Z"), "outputs stale"),
        ("s2", None, "outputs missing"),
        ("s2", _row("found", "2026-01-01T00:00:03Z", "other"), "outputs in another thread"),
        ("a2", _row("two", "2025-01-01T00:00:00Z"), "answers out of order"),
    ],
)
def test_what_is_not_as_it_was_shown_is_found(key: str, row: dict[str, Any] | None, fault: str) -> None:
    stored = _stored()
    steps = {name: step for name, step in stored.steps.items() if name != key}
    changed = Stored(steps | ({key: row} if row else {}), stored.feedbacks, stored.files)
    assert faults([_FIRST, _SECOND], changed) == {fault: 1}


def test_so_are_feedback_and_files() -> None:
    assert faults([_FIRST], Stored(_stored().steps, {"a1": 0}, {})) == {
        "feedback missing": 1,
        "files missing": 1,
    }
