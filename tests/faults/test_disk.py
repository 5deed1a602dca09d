"""A journal on a disk that is full, read-only, or gives back something else than what was written."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from forebay import ForebayDataLayer, QueueFull
from forebay.errors import JournalError
from forebay.journal import folder_check, log
from forebay.journal.journal import Journal
from forebay.journal.log_reader import segments_of
from forebay.journal.orphan import adopt
from forebay.model import changes
from forebay.model.changes import Change, Upsert
from forebay.pipeline import own_journal
from tests.faults.conftest import MakeLayer
from tests.faults.load import LONG, Audit, a_seed, versioned
from tests.integration.contract import accounted_for, rows, until
from tests.support.disk import disk_of, mount
from tests.support.patience import patience
from tests.support.proxy import Proxy

_GROUPS = 120


# ---- no room


async def _run_worker(url: str, folder: Path, what: str) -> dict[str, Any]:
    """What `disk_worker` says."""
    worker = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.faults.disk_worker", url, str(folder), what),
        stdout=subprocess.PIPE,
        env={**os.environ, "HOME": "/"},  # the driver looks there for passwords, also when it may not
    )
    async with patience():
        said, _ = await worker.communicate()
    assert worker.returncode == 0
    told: dict[str, Any] = json.loads(said.splitlines()[-1])
    return told


async def test_with_a_full_disk_the_database_acknowledges(migrated_postgres_url: str, tmp_path: Path) -> None:
    """Nobody is told that a change failed that is made."""
    told = await _run_worker(migrated_postgres_url, tmp_path / "journals", "full")
    assert told["refused"] == told["errors"] == []
    assert told["works_again"]
    assert told["balanced"]
    assert told["pending"] == 0
    assert await Audit(migrated_postgres_url).stored() == told["acknowledged"]
    assert list((tmp_path / "journals").iterdir()) == []


async def test_a_full_disk_in_an_outage(
    migrated_postgres_url: str, tmp_path: Path, make_journaled: MakeLayer
) -> None:
    """What was acknowledged is in the journal of a process that then died, and what was refused is not."""
    folder = tmp_path / "journals"
    async with Proxy.before(migrated_postgres_url) as proxy:
        await proxy.refuse()
        told = await _run_worker(proxy.url(migrated_postgres_url), folder, "outage")
        assert told["refused"]
        assert told["works_again"]
        assert told["balanced"]
        assert told["dropped"]["journal"] > 0
        await proxy.listen()
        layer = make_journaled(proxy.url(migrated_postgres_url))
        await layer.execute_sql("SELECT 1", {})
        assert layer._engine.counts.replayed == len(told["acknowledged"])
        assert accounted_for(layer)
        await layer.close()
    assert await Audit(migrated_postgres_url).stored() == told["acknowledged"]
    assert list(folder.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    with disk_of("1m", tmp_path / "disk", "; a limit on the file's size stands in for it") as path:
        yield path


async def test_a_disk_that_gets_room_again(
    migrated_url: str, small_disk: Path, make_journaled: MakeLayer, caplog: pytest.LogCaptureFixture
) -> None:
    layer, thread_id = make_journaled(migrated_url, journal_dir=small_disk / "journals"), str(uuid.uuid4())
    tried: list[str] = []

    async def write(times: int) -> None:
        for _ in range(times):
            tried.append(str(uuid.uuid4()))
            await layer.update_step(versioned(tried[-1], thread_id, 0, size=5000))

    with caplog.at_level(logging.ERROR):
        await write(300)
    assert "the disk that holds the journal is full; make room" in caplog.text
    assert mount("-o", "remount,size=64m", small_disk)
    await write(50)
    await layer.flush()
    stored = {str(row["id"]) for row in await rows(layer, "SELECT id FROM steps")}
    assert stored == set(tried)
    assert accounted_for(layer)
    assert layer._engine.counts.pending == 0
    await layer.close()


@pytest.fixture
def read_only_folder() -> Iterator[Path]:
    """A folder that can be read and entered, by nobody too, and not written to but by root."""
    path = Path(tempfile.mkdtemp(prefix="forebay-read-only-"))
    path.chmod(0o555)
    yield path
    path.chmod(0o700)
    shutil.rmtree(path)


async def test_a_read_only_folder(migrated_postgres_url: str, read_only_folder: Path) -> None:
    told = await _run_worker(migrated_postgres_url, read_only_folder, "read-only")
    (error,) = told["errors"]
    assert "Permission denied" in error
    assert "FOREBAY_JOURNAL_DIR" in error
    assert told["refusals"] == {"JournalError": 1}
    assert told["acknowledged"] == {}
    assert told["balanced"]
    assert told["reads"], "reading needs no journal"
    assert await Audit(migrated_postgres_url).stored() == {}


# ---- damage


class _Left:
    """A journal that somebody has left behind in `folder`, a change in each of its groups, in one segment."""

    def __init__(self, folder: Path, changes_: list[Change]) -> None:
        self.folder = folder
        self.changes = changes_
        (path,) = folder.glob("*.journal")
        (self.segment,) = segments_of(path)
        self.content = self.segment.read_bytes().rstrip(b"\0")  # without what is reserved

    def bodies(self) -> list[bytes]:
        """As they stand in the file."""
        return [changes.encode([change]) for change in self.changes]

    def damage(self, content: bytes) -> None:
        """Put something else in its place."""
        self.segment.write_bytes(content)

    def recovered(self) -> dict[int, bytes]:
        """What an adopter reads, by number."""
        found: dict[int, bytes] = {}
        orphan = adopt(self.folder)
        assert orphan is not None
        while records := orphan.read(max(found, default=0), 64 * 1024):
            for seq, change in records:
                assert seq > max(found, default=0), "out of order"
                found[seq] = changes.encode([change])
        orphan.release()
        assert orphan.damaged or orphan.torn or len(found) == len(self.changes), "not told"
        return found


async def _leave_behind(folder: Path, rng: random.Random) -> _Left:
    thread_id, made = str(uuid.uuid4()), []
    journal = Journal(folder, asyncio.get_running_loop())
    for number in range(_GROUPS):
        values = versioned(str(uuid.uuid4()), thread_id, number, size=rng.choice([10, 200, 900, 9000]))
        made.append(changes.step(values))
        await journal.append(number + 1, made[-1])
    await journal.close(remove=False)
    return _Left(folder, list(made))


def _flipped(content: bytes, at: int, bit: int) -> bytes:
    return content[:at] + bytes([content[at] ^ (1 << bit)]) + content[at + 1 :]


async def test_bits_that_flip_in_a_change_cost_that_change_alone(
    migrated_url: str, make_journaled: MakeLayer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rng = random.Random(a_seed())
    left = await _leave_behind(tmp_path / "journals", rng)
    damaged = rng.sample(range(1, _GROUPS), 3)
    content = left.content
    for number in damaged:
        body = left.bodies()[number]
        content = _flipped(content, left.content.index(body) + rng.randrange(len(body)), rng.randrange(8))
    left.damage(content)

    layer = make_journaled(migrated_url)
    with caplog.at_level(logging.ERROR):
        stored = await rows(layer, 'SELECT id, output FROM steps ORDER BY "forebayWrittenAt"')
    intact = [change for number, change in enumerate(left.changes) if number not in damaged]
    assert [(row["id"], row["output"]) for row in stored] == [
        (change.key, change.row["output"]) for change in intact if isinstance(change, Upsert)
    ]
    assert "journal damaged" in caplog.text
    assert layer._engine.counts.replayed == len(intact)
    assert accounted_for(layer)
    await layer.close()
    assert [path.suffix for path in (tmp_path / "journals").iterdir() if path.suffix != ".lock"] == [
        ".damaged"
    ]


async def test_bits_that_flip_anywhere(tmp_path: Path) -> None:
    """Nothing may be read that was not written, and most of what was must be."""
    rng = random.Random(a_seed())
    left = await _leave_behind(tmp_path / "journals", rng)
    written = dict(enumerate(left.bodies(), 1))
    recovered, tries = 0, 5000 if LONG else 200
    for _ in range(tries):
        content = left.content
        for _ in range(rng.choice([1, 1, 8])):
            content = _flipped(content, rng.randrange(len(content)), rng.randrange(8))
        left.damage(content)
        found = left.recovered()
        assert found.items() <= written.items(), "invented"
        recovered += len(found)
    assert recovered > 0.9 * tries * _GROUPS


async def test_bits_that_flip_beside_a_change(tmp_path: Path) -> None:
    """Its numbers, its length, its checksum: no more is lost than that change."""
    left = await _leave_behind(tmp_path / "journals", random.Random(a_seed()))
    number = 60
    at = left.content.index(left.bodies()[number])
    others = {seq: body for seq, body in enumerate(left.bodies(), 1) if seq != number + 1}
    for place in range(at - 28, at):
        for bit in range(8):
            left.damage(_flipped(left.content, place, bit))
            assert left.recovered() == others


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
async def test_a_journal_that_was_cut_off(
    migrated_sqlite_url: str,
    make_journaled: MakeLayer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    share: float,
) -> None:
    """What stands before the cut is recovered. It can't be told from a change that was never acknowledged."""
    left = await _leave_behind(tmp_path / "journals", random.Random(a_seed()))
    left.damage(left.content[: int(len(left.content) * share)])
    layer = make_journaled(migrated_sqlite_url)
    with caplog.at_level(logging.WARNING):
        stored = [row["id"] for row in await rows(layer, 'SELECT id FROM steps ORDER BY "forebayWrittenAt"')]
    assert stored == [change.key for change in left.changes][: len(stored)]
    assert len(stored) >= int(share * _GROUPS / 2)
    assert "journal ends within a change" in caplog.text
    assert accounted_for(layer)
    await layer.close()


async def test_a_segment_that_is_missing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "SEGMENT_BYTES", 20_000)
    folder, made = tmp_path / "journals", []
    journal = Journal(folder, asyncio.get_running_loop())
    for number in range(60):
        made.append(changes.step(versioned(str(number), "t", 0, size=1500)))
        await journal.append(number + 1, made[-1])
    await journal.close(remove=False)
    paths = segments_of(journal.path)
    assert len(paths) > 3
    whole = adopt(folder)
    assert whole is not None
    assert [change for _, change in whole.read(0, 10**9)] == made
    assert not whole.damaged
    whole.release()
    paths[1].unlink()
    orphan = adopt(folder)
    assert orphan is not None
    found = [seq for seq, _ in orphan.read(0, 10**9)]
    assert orphan.damaged
    assert len(found) < 60
    assert (found[0], found[-1]) == (1, 60)
    orphan.release()


async def test_the_oldest_segments_go_as_the_database_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "SEGMENT_BYTES", 20_000)
    journal = Journal(tmp_path / "journals", asyncio.get_running_loop())
    for seq in range(1, 101):
        await journal.append(seq, changes.step(versioned(str(seq), "t", 0, size=1500)))
        journal.trim(seq)
    await journal.read(0, 1)  # behind the trimming, in the thread's own order
    assert len(segments_of(journal.path)) <= 2
    assert journal.size == 0
    await journal.close(remove=True)
    assert list((tmp_path / "journals").iterdir()) == []


# ---- a disk that says no, or nothing, while the database answers


async def test_a_journal_that_fails_is_no_failed_write(
    migrated_url: str, make_journaled: MakeLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The change is made, so its caller is told so: by the database."""
    layer, thread_id, step_id = make_journaled(migrated_url), str(uuid.uuid4()), str(uuid.uuid4())
    await layer.update_thread(thread_id, name="n")

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", full)
        await layer.update_step(versioned(step_id, thread_id, 1))
        assert [row["id"] for row in await _stored_now(layer)] == [step_id]
        await layer.delete_thread(thread_id)
        assert await _stored_now(layer) == []
    assert not layer._engine.counts.refused
    assert accounted_for(layer)
    await layer.close()


async def _stored_now(layer: ForebayDataLayer) -> list[dict[str, Any]]:
    """What the database has, whether something is queued or not."""
    found = await layer._store.execute_sql("SELECT CAST(id AS TEXT) AS id FROM steps", {})
    assert isinstance(found, list)
    return found


async def test_what_only_a_full_disk_would_hold_is_refused(
    migrated_postgres_url: str, make_journaled: MakeLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an external writer nothing but the journal has it: the error is true, and so is its absence."""
    layer, thread_id = make_journaled(migrated_postgres_url, writer="external"), str(uuid.uuid4())
    await layer.update_thread(thread_id, name="n")

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    refused = str(uuid.uuid4())
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", full)
        with pytest.raises(JournalError, match="make room"):
            await layer.update_step(versioned(refused, thread_id, 1))
    kept = str(uuid.uuid4())
    await layer.update_step(versioned(kept, thread_id, 1))
    assert layer._engine.journal is not None
    written = {change.key for _, change in await layer._engine.journal.read(0, 10**6)}
    assert written == {thread_id, kept}
    assert layer._engine.counts.dropped == {"journal": 1}
    await layer.close()


async def test_a_disk_that_does_not_answer_is_bounded_and_the_database_acknowledges(
    migrated_url: str, make_journaled: MakeLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_journal, "_UNSYNCED", 256 * 1024)
    layer, thread_id = make_journaled(migrated_url, queue_max_bytes=256 * 1024), str(uuid.uuid4())
    await layer.update_thread(thread_id, name="n")
    await layer.flush()
    answers, write = threading.Event(), os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda *given: (answers.wait(), write(*given))[1])
    try:
        ids = [str(uuid.uuid4()) for _ in range(200)]
        for step_id in ids:  # ten times what may wait for the disk
            await layer.update_step(versioned(step_id, thread_id, 1, size=10_000))
        journal = layer._engine.journal
        assert journal is not None
        assert journal.unsynced <= 256 * 1024
        assert journal.stalled_for > 0
        assert {row["id"] for row in await _stored_now(layer)} == set(ids)
        assert not layer._engine.counts.refused
    finally:
        answers.set()
    await layer.close()
    assert accounted_for(layer)


async def test_with_an_external_writer_a_disk_that_does_not_answer_refuses_the_newest(
    migrated_sqlite_url: str, make_journaled: MakeLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_journal, "_UNSYNCED", 256 * 1024)
    layer = make_journaled(
        migrated_sqlite_url, writer="external", queue_max_bytes=256 * 1024, queue_timeout=0.1
    )
    thread_id = str(uuid.uuid4())
    await layer.update_thread(thread_id, name="n")
    answers, write = threading.Event(), os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda *given: (answers.wait(), write(*given))[1])
    try:
        steps = [versioned(str(uuid.uuid4()), thread_id, 1, size=10_000) for _ in range(200)]
        writes = [asyncio.ensure_future(layer.update_step(step)) for step in steps]
        await until(lambda: sum(write.done() for write in writes) >= 100)
        waiting = [write for write in writes if not write.done()]
        assert len(waiting) * 10_000 <= 512 * 1024
        refused = len(writes) - len(waiting)
        assert {type(write.exception()) for write in writes if write.done()} == {QueueFull}
        assert layer._engine.counts.refused == {"queue_full": refused}
        assert writes.index(waiting[-1]) < len(waiting), "the newest are refused"
    finally:
        answers.set()
    await asyncio.gather(*waiting)
    await layer.close()


async def test_a_change_that_can_not_be_encoded_fails_alone(
    migrated_url: str, make_journaled: MakeLayer
) -> None:
    layer, thread_id = make_journaled(migrated_url), str(uuid.uuid4())
    good = [changes.step(versioned(str(uuid.uuid4()), thread_id, number)) for number in range(8)]
    bad = changes.step(versioned(str(uuid.uuid4()), thread_id, 0))
    bad.row["output"] = object()
    entered = [layer._engine.intake.write(change) for change in (*good[:4], bad, *good[4:])]
    results = await asyncio.gather(*entered, return_exceptions=True)
    assert [type(result) for result in results] == [*[bool] * 4, JournalError, *[bool] * 4]
    await layer.flush()
    assert {row["id"] for row in await _stored_now(layer)} == {change.key for change in good}
    assert layer._engine.counts.dropped == {"no_dead_letter": 1}
    assert not layer._engine.ended
    assert accounted_for(layer)
    await layer.close()


async def test_a_removed_journal_acknowledges_nothing_that_only_it_would_hold(
    migrated_sqlite_url: str, make_journaled: MakeLayer, tmp_path: Path
) -> None:
    layer, thread_id = make_journaled(migrated_sqlite_url, writer="external"), str(uuid.uuid4())
    await layer.update_thread(thread_id, name="n")
    shutil.rmtree(tmp_path / "journals")
    with pytest.raises(JournalError, match="FOREBAY_JOURNAL_DIR"):
        await layer.update_thread(thread_id, name="m")
    await layer.close()


async def test_a_disk_that_does_not_answer_is_told(
    migrated_sqlite_url: str, make_journaled: MakeLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = make_journaled(migrated_sqlite_url)
    await layer.update_thread(str(uuid.uuid4()), name="n")
    await layer._engine.check_folder()
    monkeypatch.setattr(folder_check, "_DISK_PATIENCE", 0.0)
    answers, write = threading.Event(), os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda *given: (answers.wait(), write(*given))[1])
    try:
        await layer.update_thread(str(uuid.uuid4()), name="n")
        with pytest.raises(JournalError, match="does not answer"):
            await layer._engine.check_folder()
    finally:
        answers.set()
    await layer.close()
