"""What the database has stays in the journal for a while, and then leaves the disk."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from forebay.journal import log as log_module
from forebay.journal.journal import Journal
from forebay.journal.log_reader import segments_of
from forebay.model import changes
from tests.support.patience import patience

_KEEP = 60.0
_AT_THE_LATEST = _KEEP * 4 / 3 + 2


class _Kept:
    """A journal whose time the test sets, with a secret in each change."""

    def __init__(self, folder: Path, keep_bytes: int = 2**30) -> None:
        self.now = 1000.0
        self.journal = Journal(
            folder,
            asyncio.get_running_loop(),
            keep=_KEEP,
            keep_bytes=keep_bytes,
            clock=lambda: self.now,
        )

    async def write(self, *numbers: int, size: int = 10) -> None:
        for seq in numbers:
            step = {"id": str(seq), "threadId": "t", "output": f"secret {seq} " + "x" * size}
            await self.journal.append(seq, changes.step(step))

    async def passes(self, seconds: float) -> None:
        """In small steps, at each of which the journal's thread has a look."""
        until = self.now + seconds
        while self.now < until:
            self.now = min(until, self.now + 1.0)
            await self.journal.read(2**62, 1)
        await self.journal.read(
            2**62, 1
        )  # it looks after it has answered, so it has looked at this moment too

    def on_disk(self, number: int) -> bool:
        secret = b"secret %d " % number
        return any(secret in path.read_bytes() for path in segments_of(self.journal.path))

    async def read(self, after_seq: int) -> list[int]:
        return [seq for seq, _ in await self.journal.read(after_seq, 2**30)]


async def test_it_leaves_the_disk_while_nothing_is_written(tmp_path: Path) -> None:
    kept = _Kept(tmp_path)
    await kept.write(1, 2, 3)
    kept.journal.trim(3)
    await kept.passes(_KEEP)
    assert await kept.read(0) == [1, 2, 3]
    assert kept.journal.kept_seq == 0
    await kept.passes(_AT_THE_LATEST - _KEEP)
    assert not kept.on_disk(3)
    assert kept.journal.kept_seq == 3
    assert segments_of(kept.journal.path) == []
    await kept.write(4)
    assert await kept.read(3) == [4]
    await kept.journal.close(remove=True)


async def test_it_leaves_the_disk_by_itself(tmp_path: Path) -> None:
    """Without a clock that a test sets, and with nobody who asks."""
    journal = Journal(tmp_path, asyncio.get_running_loop(), keep=0.1, keep_bytes=2**30)
    await journal.append(1, changes.step({"id": "1", "threadId": "t", "output": "secret"}))
    journal.trim(1)
    async with patience():
        while segments_of(journal.path):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert journal.kept_seq == 1
    await journal.close(remove=True)


async def test_it_leaves_the_disk_while_others_come(tmp_path: Path) -> None:
    kept = _Kept(tmp_path)
    for seq in range(1, 300):
        await kept.write(seq)
        kept.journal.trim(seq)
        await kept.passes(1.0)
        assert not kept.on_disk(seq - int(_AT_THE_LATEST))
        assert await kept.read(max(0, seq - int(_KEEP))) == list(range(max(1, seq - int(_KEEP) + 1), seq + 1))
    await kept.journal.close(remove=True)


async def test_what_the_database_lacks_stays(tmp_path: Path) -> None:
    kept = _Kept(tmp_path)
    await kept.write(1, 2, 3)
    kept.journal.trim(1)
    await kept.passes(10 * _KEEP)
    assert await kept.read(1) == [2, 3]
    await kept.journal.close(remove=True)


async def test_beyond_the_bound_the_oldest_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_module, "SEGMENT_BYTES", 5_000)
    kept = _Kept(tmp_path, keep_bytes=30_000)
    for seq in range(1, 101):
        await kept.write(seq, size=1000)
        kept.journal.trim(seq)
        await kept.passes(1.0)
    on_disk = sum(path.stat().st_size for path in segments_of(kept.journal.path)[:-1])
    assert on_disk <= 30_000
    first = kept.journal.kept_seq + 1
    assert await kept.read(first - 1) == list(range(first, 101))
    assert 100 - first > 15
    assert 0 < kept.journal.kept_size <= on_disk + 64 * 1024, "it is counted in chunks"
    assert kept.journal.size == 0
    await kept.journal.close(remove=True)


async def test_a_database_that_went_back_is_given_it_again(tmp_path: Path) -> None:
    kept = _Kept(tmp_path)
    await kept.write(*range(1, 11))
    size = kept.journal.size
    kept.journal.trim(10)
    assert (kept.journal.size, kept.journal.kept_size) == (0, size)
    await kept.passes(_KEEP - 1)
    kept.journal.trim(4)
    assert kept.journal.size > 0
    assert kept.journal.size + kept.journal.kept_size == size
    await kept.passes(10 * _KEEP)
    assert kept.journal.kept_seq <= 4
    assert await kept.read(4) == [5, 6, 7, 8, 9, 10]
    kept.journal.trim(10)
    await kept.passes(_KEEP)
    assert await kept.read(4) == [5, 6, 7, 8, 9, 10], "it is kept for as long again"
    await kept.passes(_AT_THE_LATEST - _KEEP)
    assert kept.journal.kept_seq == 10
    assert (kept.journal.size, kept.journal.kept_size) == (0, size), "counted until the next trim"
    kept.journal.trim(10)
    assert (kept.journal.size, kept.journal.kept_size) == (0, 0)
    await kept.journal.close(remove=True)
