"""Journals that others have left: read by their checksums, and each one's trouble its own."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from forebay.errors import JournalError
from forebay.journal.journal import Journal
from forebay.journal.journals import Journals
from forebay.journal.log_reader import segments_of
from forebay.journal.orphan import Orphan, adopt, let_go
from forebay.journal.ownership import JOURNAL, OWNER, PROGRESS
from forebay.journal.shared_progress import Progress
from forebay.model import changes
from forebay.primitives import posix


async def _leave(folder: Path, count: int = 5, *, external: bool = False) -> Path:
    journal = Journal(folder, asyncio.get_running_loop(), external=external)
    for seq in range(1, count + 1):
        await journal.append(seq, changes.step({"id": str(seq), "threadId": "t", "output": "secret"}))
    await journal.close(remove=False)
    return journal.path


def _numbers(orphan: Orphan, after_seq: int = 0) -> list[int]:
    return [seq for seq, _ in orphan.read(after_seq, 2**30)]


# ---- what stands beside a journal is a hint


@pytest.mark.parametrize("progress", ["as it was", "behind", "nothing", "short", "empty", "missing"])
@pytest.mark.parametrize("watched", [True, False])
async def test_a_dead_owners_numbers_are_not_believed(tmp_path: Path, progress: str, watched: bool) -> None:
    """A crash of the machine leaves any of these: nobody syncs the numbers."""
    path = (await _leave(tmp_path, external=True)).with_suffix(PROGRESS)
    match progress:
        case "behind" | "nothing":
            numbers = Progress(path)
            numbers.durable = 2 if progress == "behind" else 0
            numbers.close()
        case "short" | "empty":
            os.truncate(path, 9 if progress == "short" else 0)
        case "missing":
            path.unlink()
    orphan = adopt(tmp_path, owned=watched)
    assert orphan is not None
    assert not orphan.owned
    assert _numbers(orphan) == [1, 2, 3, 4, 5]
    assert let_go(orphan)
    assert list(tmp_path.iterdir()) == []


async def test_an_owner_that_dies_while_it_is_followed(tmp_path: Path) -> None:
    path = await _leave(tmp_path, external=True)
    owner = posix.lock_file(path.with_suffix(OWNER))
    numbers = Progress(path.with_suffix(PROGRESS))
    numbers.durable = 2
    orphan = adopt(tmp_path, owned=True)
    assert orphan is not None
    assert orphan.owned
    assert _numbers(orphan) == [1, 2], "what it has not said to be durable is its own"
    owner.close()
    assert _numbers(orphan, 2) == [3, 4, 5]
    orphan.release()
    numbers.close()


@pytest.mark.parametrize("suffix", [".lock", OWNER])
async def test_an_empty_file_ends_nothing(tmp_path: Path, suffix: str) -> None:
    path = await _leave(tmp_path)
    path.with_suffix(suffix).write_bytes(b"")
    orphan = adopt(tmp_path, owned=True)
    assert orphan is not None
    assert _numbers(orphan) == [1, 2, 3, 4, 5]
    orphan.release()


async def test_a_segment_of_no_length_holds_nothing(tmp_path: Path) -> None:
    path = await _leave(tmp_path)
    (path / "00000002.log").write_bytes(b"")
    orphan = adopt(tmp_path)
    assert orphan is not None
    assert _numbers(orphan) == [1, 2, 3, 4, 5]
    assert let_go(orphan)


# ---- one journal's trouble


async def _unknown_table(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later release's, in the same format."""
    really = changes.encode
    monkeypatch.setattr(changes, "encode", lambda many: really(many).replace(b'"steps"', b'"runs"'))
    shutil.rmtree(path)
    (await _leave(path.parent)).rename(path)
    monkeypatch.undo()


async def _unreadable(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    really = Path.open

    def failing(self: Path, *arguments: object, **more: object) -> object:
        if self.parent == path:
            raise OSError(5, "Input/output error")
        return really(self, *arguments, **more)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", failing)


async def _unlockable(path: Path, _monkeypatch: pytest.MonkeyPatch) -> None:
    path.with_suffix(".lock").unlink(missing_ok=True)
    path.with_suffix(".lock").mkdir()


async def _unremovable(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    really = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self == path:
            raise OSError(30, "Read-only file system")
        return really(self, target)

    monkeypatch.setattr(Path, "rename", failing)


@pytest.mark.parametrize("trouble", [_unknown_table, _unreadable, _unlockable, _unremovable])
async def test_one_journals_trouble_is_its_own(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    trouble: Callable[[Path, pytest.MonkeyPatch], object],
) -> None:
    path = await _leave(tmp_path)
    await trouble(path, monkeypatch)  # type: ignore[misc]
    other = await _leave(tmp_path)
    now = 100.0
    journals = Journals(tmp_path, lambda: now)
    written: list[str] = []

    def work() -> None:
        while (orphan := journals.adopt("", None)) is not None:
            try:
                assert _numbers(orphan) == [1, 2, 3, 4, 5]
                assert let_go(orphan)
            except JournalError as error:
                journals.park(orphan, str(error))
            else:
                journals.finished(orphan)
                written.append(orphan.id)

    work()
    assert written == [other.stem]
    assert [*journals.parked] == [path.stem]
    assert path.exists()
    now += 1
    assert journals.adopt("", None) is None, "it is left for a while"
    monkeypatch.undo()
    if trouble is _unlockable:
        path.with_suffix(".lock").rmdir()
    if trouble is _unknown_table:
        return
    now += 1000
    work()
    assert written == [other.stem, path.stem]
    assert journals.parked == {}
    assert list(tmp_path.iterdir()) == []


async def test_a_file_that_stays_keeps_no_journal(tmp_path: Path) -> None:
    """As NFS leaves them, while somebody has what was deleted open."""
    path = await _leave(tmp_path)
    (path / ".nfs0000").mkdir()
    orphan = adopt(tmp_path)
    assert orphan is not None
    assert _numbers(orphan) == [1, 2, 3, 4, 5]
    assert let_go(orphan)
    assert adopt(tmp_path) is None
    (left,) = tmp_path.iterdir()
    assert segments_of(left) == []
    (left / ".nfs0000").rmdir()
    assert Journals(tmp_path, lambda: 0.0).adopt("", None) is None
    assert list(tmp_path.iterdir()) == []


async def test_what_a_crash_leaves_of_a_journal_that_was_begun_is_swept(tmp_path: Path) -> None:
    (tmp_path / "a.new").mkdir()
    (tmp_path / "a.new" / "00000001.log").write_bytes(b"")
    for name in ("a.lock", "b.owner", "b.progress"):
        (tmp_path / name).write_bytes(b"")
    alive = posix.lock_file(tmp_path / "c.owner")
    (tmp_path / "c.new").mkdir()
    assert Journals(tmp_path, lambda: 0.0).adopt("", None) is None
    assert {path.name for path in tmp_path.iterdir()} == {"c.owner", "c.new"}, (
        "one that is begun just now stays"
    )
    alive.close()


async def test_a_lock_that_was_removed_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever removes a journal removes its lock; who has just opened that file holds nothing."""
    path = tmp_path / f"a{JOURNAL}.lock"
    really = os.open

    def removed(name: Path, *arguments: int) -> int:
        descriptor = really(name, *arguments)
        monkeypatch.undo()
        path.unlink()
        return descriptor

    monkeypatch.setattr(os, "open", removed)
    file = posix.lock_file(path)
    assert file is not None
    assert os.path.samestat(os.fstat(file.fileno()), path.stat())
    file.close()


# ---- who has put it there


def _belongs_to(monkeypatch: pytest.MonkeyPatch, path: Path, user: int) -> None:
    """Another user's; for this, the tests would have to be root's."""
    really = Path.lstat

    def lstat(self: Path) -> os.stat_result:
        found = really(self)
        return os.stat_result((*found[:4], user, *found[5:])) if self == path else found

    monkeypatch.setattr(Path, "lstat", lstat)


def _reasons(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "journal left alone" in record.getMessage()]


async def test_a_journal_that_another_user_has_planted_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its changes would be written as people's. This user's own, beside it, is adopted."""
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o1777)
    planted = await _leave(folder)
    own = await _leave(folder)
    _belongs_to(monkeypatch, planted, os.geteuid() + 1)
    journals = Journals(folder, lambda: 0.0)
    for _ in range(2):
        orphan = journals.adopt(None, None)
        assert orphan is not None
        assert orphan.path == own
        assert journals.adopt(None, None, owned=True) is None, "nor for who follows, nor into any database"
        orphan.release()
    assert planted.is_dir()
    (said,) = _reasons(caplog)
    assert str(planted) in said
    assert "chown" in said


@pytest.mark.parametrize(("shared", "is_believed"), [(False, True), (True, False)])
@pytest.mark.parametrize("whose", ["the folder's owner's", "root's"])
async def test_an_administrator_drains_what_an_apps_user_has_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, whose: str, shared: bool, is_believed: bool
) -> None:
    """The folder's owner could change everything in it anyway, while nobody else can."""
    path = await _leave(tmp_path)
    tmp_path.chmod(0o770 if shared else 0o755)
    owner = tmp_path.stat().st_uid if whose == "the folder's owner's" else 0
    monkeypatch.setattr(posix, "user", lambda: max(owner, os.geteuid()) + 1)
    _belongs_to(monkeypatch, path, owner)
    orphan = adopt(tmp_path)
    assert (orphan is not None) is is_believed
    if orphan is not None:
        orphan.release()


async def test_a_journal_that_everybody_may_write_into_or_a_link_is_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    elsewhere = tmp_path / "elsewhere"
    folder = tmp_path / "journals"
    linked = folder / (await _leave(elsewhere)).name
    open_to_all = await _leave(folder)
    linked.symlink_to(elsewhere / linked.name, target_is_directory=True)
    open_to_all.chmod(0o777)
    assert adopt(folder, None) is None
    assert len(_reasons(caplog)) == 2
    open_to_all.chmod(0o700)
    orphan = adopt(folder, None)
    assert orphan is not None
    assert orphan.path == open_to_all
    orphan.release()
