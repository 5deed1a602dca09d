"""What the process that writes a journal out tells the one that appends to it: which threads wait."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from forebay.journal.shared_progress import Progress


@pytest.fixture
def both(tmp_path: Path) -> Iterator[tuple[Progress, Progress]]:
    """Who appends, and who writes out."""
    path = tmp_path / "j.progress"
    mine, theirs = Progress(path, create=True), Progress(path)
    yield mine, theirs
    mine.close()
    theirs.close()


def test_its_room_is_there_from_the_start(tmp_path: Path) -> None:
    """What is written into a mapped file on a full disk ends the process."""
    Progress(tmp_path / "j.progress", create=True).close()
    assert (tmp_path / "j.progress").stat().st_blocks


def _take_no_names(tmp_path: Path) -> Path:
    """As a full disk does."""
    place = tmp_path / "j.parked.new"
    place.mkdir()
    return place


def test_what_is_parked_is_told(both: tuple[Progress, Progress]) -> None:
    mine, theirs = both
    assert not mine.is_parked("a")
    theirs.park(["a"])
    before, parked, after = mine.has_news, (mine.is_parked("a"), mine.is_parked("b")), mine.has_news
    assert (before, parked, after) == (True, (True, False), False)
    theirs.park([])
    assert not mine.is_parked("a")


def test_where_the_disk_takes_no_names_every_thread_may_be_parked(
    both: tuple[Progress, Progress], tmp_path: Path
) -> None:
    mine, theirs = both
    theirs.park(["a"])
    assert not mine.is_parked("b")
    place = _take_no_names(tmp_path)
    theirs.park(["a", "b"])
    assert mine.is_parked("b"), "or its own writes would be missing from what it reads"
    theirs.park([])
    assert not mine.is_parked("b"), "that nothing waits any more can be told on a full disk too"
    theirs.park(["b"])
    assert mine.is_parked("c")
    place.rmdir()
    theirs.park(["b"])
    assert (mine.is_parked("b"), mine.is_parked("c")) == (True, False)


def test_names_that_cannot_be_read_name_every_thread(both: tuple[Progress, Progress], tmp_path: Path) -> None:
    mine, theirs = both
    theirs.park(["a"])
    (tmp_path / "j.parked").write_bytes(b"[")
    assert mine.is_parked("b")
