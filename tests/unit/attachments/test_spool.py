"""Content that waits on the disk: held at once, entered whole, and taken over from processes that are gone."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from forebay.attachments.spool import Entry, Note, Secured
from tests.support.patience import PATIENCE

_NOTE = Note("user/element/name", "text/plain", "[]")


def _enter(folder: Secured, content: bytes = b"content", note: Note = _NOTE) -> Entry:
    path = folder.place()
    folder.write(content, path)
    return folder.enter(path, note)


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Callable[[], Secured]]:
    """Makes what a process has of the folder."""
    made: list[Secured] = []

    def make() -> Secured:
        made.append(Secured(tmp_path, sync=True))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def mine(process: Callable[[], Secured]) -> Secured:
    return process()


@pytest.mark.parametrize("unchanging", [True, False])
def test_a_file_that_is_held_can_be_removed(mine: Secured, tmp_path: Path, unchanging: bool) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"content" * 500_000)
    held = mine.hold(source, unchanging=unchanging)
    source.unlink()
    mine.keep(held)
    held.close()
    assert held.size == 3_500_000
    assert held.target.read_bytes() == b"content" * 500_000


def test_an_applications_own_file_may_be_written_into_afterwards(mine: Secured, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"before")
    held = mine.hold(source, unchanging=False)
    mine.keep(held)
    source.write_bytes(b"after!")
    assert held.target.read_bytes() == b"before"
    held.close()


def test_on_a_disk_without_links_it_is_copied(
    mine: Secured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    source = tmp_path / "source"
    source.write_bytes(b"content")
    held = mine.hold(source, unchanging=True)
    source.unlink()
    mine.keep(held)
    held.close()
    assert held.target.read_bytes() == b"content"


def test_what_is_done_with_leaves_nothing(mine: Secured, tmp_path: Path) -> None:
    entry = _enter(mine)
    assert mine.entries() == [entry]
    mine.remove(entry.path)
    mine.close()
    assert [path for path in tmp_path.rglob("*") if path.name != "uploads"] == []


def test_a_living_process_is_let_alone(mine: Secured, process: Callable[[], Secured]) -> None:
    _enter(mine)
    assert process().adopt() == []


def test_what_is_left_is_taken_over_once_and_in_order(mine: Secured, process: Callable[[], Secured]) -> None:
    contents = [b"%d" % number for number in range(20)]
    for content in contents:
        _enter(mine, content)
    mine.forget(mine.entries()[3].path)
    mine.close()
    others = [process() for _ in range(3)]
    adopted = [other.adopt() for other in others]
    assert [[entry.path.read_bytes() for entry in entries] for entries in adopted] == [
        contents[:3] + contents[4:],
        [],
        [],
    ]
    assert all(entry.note == _NOTE for entry in adopted[0])
    assert others[0].entries() == adopted[0]


def _hold_and_wait(folder: Path, ready: object) -> None:
    mine = Secured(folder, sync=True)
    _enter(mine)
    ready.set()  # type: ignore[attr-defined]
    signal.pause()


def test_a_killed_process_is_gone(tmp_path: Path, process: Callable[[], Secured]) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    other = context.Process(target=_hold_and_wait, args=(tmp_path, ready))
    other.start()
    assert ready.wait(PATIENCE)
    mine = process()
    assert mine.adopt() == []
    other.kill()
    other.join()
    (entry,) = mine.adopt()
    assert entry.path.read_bytes() == b"content"


def test_content_without_a_note_is_what_a_crash_left(mine: Secured, process: Callable[[], Secured]) -> None:
    mine.write(b"half", mine.place())
    _enter(mine)
    folder, lock = mine._folder, mine._lock
    assert folder
    lock.close()
    after = process()
    assert [entry.path.read_bytes() for entry in after.adopt()] == [b"content"]
    assert not folder.exists()


def test_a_damaged_note_is_set_aside(
    mine: Secured, process: Callable[[], Secured], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entry = _enter(mine)
    entry.path.with_suffix(".json").write_text("{")
    _enter(mine, b"other")
    mine._lock.close()
    after = process()
    assert [found.path.read_bytes() for found in after.adopt()] == [b"other"]
    assert "upload left alone" in caplog.text
    assert len([*(tmp_path / "uploads").glob("*.damaged*")]) == 2, "the note, and its content"


def test_where_the_folder_cannot_be_made_content_is_held_for_this_process(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "uploads").write_text("a file in its place")
    mine = Secured(tmp_path, sync=False)
    entry = _enter(mine)
    assert entry.path.read_bytes() == b"content"
    assert "would not outlive a crash" in caplog.text
    mine.remove(entry.path)
    mine.close()
    assert not entry.path.parent.exists()


@pytest.mark.parametrize("what", ["one process's folder", "the folder of all"])
def test_what_another_user_has_planted_is_left_alone(
    mine: Secured,
    process: Callable[[], Secured],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    what: str,
) -> None:
    """Its rows would be written as people's, and its content be given to them. Nor is anything put into it."""
    planted = _enter(mine).path.parent
    mine.close()
    if what == "the folder of all":
        planted = planted.parent
    planted.parent.chmod(0o770)
    really = Path.lstat

    def lstat(self: Path) -> os.stat_result:
        found = really(self)
        other = os.geteuid() + 1
        return os.stat_result((*found[:4], other, *found[5:])) if self == planted else found

    monkeypatch.setattr(Path, "lstat", lstat)
    after = process()
    for _ in range(2):
        assert after.adopt() == []
    (said,) = [line for line in caplog.messages if "uploads left alone" in line]
    assert str(planted) in said
    own = _enter(after).path
    assert own.is_relative_to(tmp_path / "uploads") is (what != "the folder of all")
    after.remove(own)
