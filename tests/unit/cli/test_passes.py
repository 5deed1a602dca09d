"""Passes follow each other until there is nothing to gain by another one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from forebay.cli import passes
from forebay.transfer.bring import Brought
from forebay.transfer.passes import Pass

_Progress = Callable[[int, int], None]


class _Copy:
    """Passes of so many seconds, which copy so many threads."""

    def __init__(self, *given: tuple[float, int]) -> None:
        self.left = list(given)
        self.now = 0.0

    def clock(self) -> float:
        return self.now

    async def run(self, progress: _Progress) -> Pass:
        took, threads = self.left.pop(0)
        self.now += took
        return Pass(Brought(), threads=threads)


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ([(600, 1000), (60, 100), (4, 7), (1, 1)], 1),  # one is short
        ([(600, 1000), (60, 100), (60, 30), (60, 31), (60, 1)], 1),  # to look alone takes a minute
        ([(600, 1000), (60, 0), (60, 0)], 1),  # nothing has changed
    ],
)
async def test_until_there_is_nothing_to_gain(
    given: list[tuple[float, int]], left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = _Copy(*given)
    monkeypatch.setattr(passes, "monotonic", copy.clock)
    done = await passes.pass_by_pass(copy, follow=True)
    assert len(copy.left) == left
    assert passes.told(done)["seconds"] == given[-left - 1][0]


async def test_one_where_nobody_follows() -> None:
    copy = _Copy((600, 1000), (60, 100))
    await passes.pass_by_pass(copy, follow=False)
    assert len(copy.left) == 1
