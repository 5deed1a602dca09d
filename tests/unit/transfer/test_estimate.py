"""What an import takes, told by a sample."""

from __future__ import annotations

from forebay.transfer.estimate import Sample


def test_all_takes_as_much_more_as_there_is_more() -> None:
    times = iter((0.0, 4.0, 10.0))  # what is read after the last of them is none of their time
    sample = Sample(lambda: next(times))
    rows = [{"id": str(number), "threadId": "t", "output": "a" * 1_000_000} for number in range(10)]
    sample.add([("users", {"id": "u", "identifier": "ada"}), *(("steps", row) for row in rows[:5])])
    sample.add([*(("steps", row) for row in rows[5:]), ("steps", {})])
    assert sample.rows == 10
    assert sample.of(0.5) == {"second": 30, "megabyte": 15}


def test_nothing_takes_nothing() -> None:
    assert Sample().of(0.0) == Sample().of(1.0) == {"second": 0, "megabyte": 0}
