"""Refused rows that can't be kept as dead letters: they wait, the others go on, and nothing acknowledged is lost."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from forebay import ForebayDataLayer, QueueFull, RowError, Settings
from forebay.database.store import Store
from forebay.errors import JournalError
from forebay.journal.dead_letters import DeadLetters
from forebay.journal.side_journal import SideJournal
from forebay.model import changes
from forebay.pipeline import letterbox
from forebay.pipeline.drain import Drain
from forebay.telemetry.collector import Metrics
from tests.faults.conftest import MakeLayer
from tests.faults.letters_worker import POISON
from tests.faults.load import versioned
from tests.faults.test_poison import _TRIGGERS
from tests.integration.contract import accounted_for, rows, until
from tests.support.disk import disk_of, mount
from tests.support.patience import FOR_EVER, patience

_BOUND = 256 * 1024


@pytest.fixture(autouse=True)
def _retried_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(letterbox, "_BACKOFF", (0.01, 0.02))


async def _refuse_poison(layer: ForebayDataLayer) -> None:
    for statement in _TRIGGERS[layer._store.url.get_backend_name()]:
        await layer.execute_sql(statement, {})


class _Chat:
    """Steps of one thread, some of which the database refuses."""

    def __init__(self, layer: ForebayDataLayer) -> None:
        self.layer = layer
        self.thread_id = str(uuid.uuid4())
        self.good: set[str] = set()
        self.refused: set[str] = set()

    async def write(self, *, size: int = 100) -> None:
        step = versioned(str(uuid.uuid4()), self.thread_id, 0, size=size)
        await self.layer.update_step(step)
        self.good.add(step["id"])

    async def write_poison(self, *, size: int = 20_000) -> None:
        step = versioned(str(uuid.uuid4()), self.thread_id, 0, size=size)
        step["name"] = POISON
        self.refused.add(step["id"])
        with contextlib.suppress(RowError):  # with `commit` it is told
            await self.layer.update_step(step)

    async def read(self) -> set[str]:
        thread = await self.layer.get_thread(self.thread_id)
        assert thread is not None
        return {step["id"] for step in thread["steps"]}


def _letters(layer: ForebayDataLayer) -> set[str]:
    return {letter.row_id for letter in DeadLetters(layer.settings.journal_dir).find()}


async def _recovered(layer: ForebayDataLayer) -> None:
    """What a process before this one has left is in; reads wait for that for a while only."""
    await layer.execute_sql("SELECT 1", {})
    recovery = layer._engine.recovery
    assert recovery is not None
    await until(recovery.done_once.is_set)


# ---- ways in which no letter can be kept: each makes it so, and gives back what mends it

_Mend = Callable[[], Any]


def _at_the_bound(layer: ForebayDataLayer, _patch: pytest.MonkeyPatch) -> _Mend:
    """The letters of somebody before fill their file."""

    def fill() -> None:
        letters = DeadLetters(layer.settings.journal_dir, _BOUND)
        for _ in range(100):
            change = changes.step(versioned(str(uuid.uuid4()), str(uuid.uuid4()), 0, size=10_000))
            letters.keep("sqlite:///other.db", change, RowError("no"))

    with pytest.raises(JournalError, match="FOREBAY_DEAD_LETTERS_MAX_BYTES"):
        fill()
    assert (layer.settings.journal_dir / "dead-letters.db").stat().st_size <= _BOUND
    letters = DeadLetters(layer.settings.journal_dir)

    def mend() -> None:
        for letter in letters.find():
            letters.remove(letter.id)

    return mend


def _not_a_file(layer: ForebayDataLayer, _patch: pytest.MonkeyPatch) -> _Mend:
    path = layer.settings.journal_dir / "dead-letters.db"
    path.mkdir(parents=True)
    return path.rmdir


def _no_room(layer: ForebayDataLayer, patch: pytest.MonkeyPatch) -> _Mend:
    """Neither for a letter nor for a journal beside the process's own."""
    mended = False
    keep, append = DeadLetters.keep, SideJournal.append

    def failing(call: Callable[..., Any]) -> Callable[..., Any]:
        def attempt(*arguments: Any) -> Any:
            if not mended:
                raise JournalError("No space left on device")
            return call(*arguments)

        return attempt

    patch.setattr(DeadLetters, "keep", failing(keep))
    patch.setattr(SideJournal, "append", failing(append))

    def mend() -> None:
        nonlocal mended
        mended = True

    return mend


_TROUBLES = [_at_the_bound, _not_a_file, _no_room]


@pytest.mark.parametrize("trouble", _TROUBLES)
@pytest.mark.parametrize("durability", ["journal", "commit", "memory"])
async def test_what_can_not_be_kept_waits_and_the_others_go_on(
    migrated_url: str,
    make_journaled: MakeLayer,
    monkeypatch: pytest.MonkeyPatch,
    trouble: Callable[..., _Mend],
    durability: str,
) -> None:
    layer = make_journaled(migrated_url, durability=durability, dead_letters_max_bytes=_BOUND)
    await _refuse_poison(layer)
    chat = _Chat(layer)
    await chat.write()
    await layer.flush()
    mend = trouble(layer, monkeypatch)
    for _ in range(3):
        await chat.write_poison()
        await chat.write()
    assert await chat.read() == chat.good, "its neighbours are written, its readers read"
    counts = layer._engine.counts
    assert counts.letters_waiting == 3
    assert not counts.dead_lettered
    assert layer._engine.failure is None
    assert "3 refused rows wait" in str(layer._engine.letterbox.warning)
    assert accounted_for(layer)
    mend()
    await until(lambda: counts.letters_waiting == 0)
    assert _letters(layer) == chat.refused
    assert counts.dead_lettered.total() == 3
    assert layer._engine.letterbox.warning is None
    await chat.write()
    await layer.flush()
    assert counts.pending == counts.dropped.total() == 0
    await layer.close()
    assert [path.name for path in layer.settings.journal_dir.iterdir()] == ["dead-letters.db"]


@pytest.mark.parametrize("trouble", _TROUBLES)
@pytest.mark.parametrize("durability", ["journal", "memory"])
async def test_what_waits_at_the_end(
    migrated_sqlite_url: str,
    make_journaled: MakeLayer,
    monkeypatch: pytest.MonkeyPatch,
    trouble: Callable[..., _Mend],
    durability: str,
) -> None:
    """It is left to the next process, in a journal; without one it is lost, and counted."""
    layer = make_journaled(migrated_sqlite_url, durability=durability, dead_letters_max_bytes=_BOUND)
    await _refuse_poison(layer)
    chat = _Chat(layer)
    await chat.write()
    await layer.flush()
    mend = trouble(layer, monkeypatch)
    await chat.write_poison()
    await chat.write()
    await layer.flush()
    await layer.close()
    if durability == "memory":
        assert layer._engine.counts.dropped == {"no_dead_letter": 1}
        return
    mend()
    after = make_journaled(migrated_sqlite_url)
    await _recovered(after)
    assert {row["id"] for row in await rows(after, "SELECT id FROM steps")} == chat.good
    await until(lambda: _letters(after) == chat.refused)
    await after.close()
    assert [path.name for path in after.settings.journal_dir.iterdir()] == ["dead-letters.db"]


async def test_the_journal_stays_while_it_alone_has_a_refused_row(
    migrated_url: str, make_journaled: MakeLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = make_journaled(migrated_url)
    await _refuse_poison(layer)
    chat = _Chat(layer)
    await chat.write()
    await layer.flush()
    cursor, journal = layer._engine.cursor, layer._engine.journal
    assert journal is not None
    mend = _no_room(layer, monkeypatch)
    before = cursor.at.seq
    await chat.write_poison()
    for _ in range(20):
        await chat.write()
        await layer.flush()
    assert (await layer._store.position(cursor.journal_id)).seq == cursor.at.seq == before
    assert journal.size > 0
    assert {change.key for _, change in await journal.read(before, 10**6)} >= chat.refused
    mend()
    await until(lambda: not cursor.is_held)
    await chat.write()
    await layer.flush()
    assert (await layer._store.position(cursor.journal_id)).seq == layer._engine.inbox.accepted_seq
    await until(lambda: journal.size == 0)
    await layer.close()


async def test_who_is_told_that_a_row_is_safe(
    migrated_url: str, make_journaled: MakeLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where neither the journal nor a letter has it, its caller gets the database's no, and nobody else does."""
    layer = make_journaled(migrated_url)
    await _refuse_poison(layer)
    chat = _Chat(layer)
    await chat.write()
    await layer.flush()
    mend = _no_room(layer, monkeypatch)

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", full)
        poison = versioned(str(uuid.uuid4()), chat.thread_id, 0)
        poison["name"] = POISON
        told = await asyncio.gather(
            chat.write(), layer.update_step(poison), chat.write(), return_exceptions=True
        )
    assert [type(one) for one in told] == [type(None), RowError, type(None)]
    assert await chat.read() == chat.good
    mend()
    await until(lambda: layer._engine.counts.letters_waiting == 0)
    assert accounted_for(layer)
    await layer.close()


async def test_no_more_than_so_much_waits(
    migrated_url: str, make_journaled: MakeLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the writer waits, and the newest changes are refused to their callers; nothing is lost."""
    monkeypatch.setattr(letterbox, "MOST_BYTES", 20_000)
    layer = make_journaled(
        migrated_url, queue_max_bytes=50_000, journal_max_bytes=1024 * 1024, queue_timeout=0.05
    )
    await _refuse_poison(layer)
    chat = _Chat(layer)
    await chat.write()
    mend = _not_a_file(layer, monkeypatch)
    for _ in range(5):
        await chat.write_poison(size=9000)

    async def write_too_much() -> None:
        for _ in range(300):
            await chat.write(size=9000)

    with pytest.raises(QueueFull):
        await write_too_much()
    box = layer._engine.letterbox
    assert 0 < box.size <= 20_000
    assert "no more refused rows may wait" in str(layer._engine.failure)
    mend()
    await layer.flush()
    await until(lambda: box.changes == 0)
    assert _letters(layer) == chat.refused
    assert await chat.read() == chat.good
    assert accounted_for(layer)
    await layer.close()


async def test_a_disk_that_does_not_answer_holds_up_nobody(
    migrated_sqlite_url: str, make_journaled: MakeLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(letterbox, "_DISK_PATIENCE", 0.05)
    layer = make_journaled(migrated_sqlite_url)
    await _refuse_poison(layer)
    chat, answers, keep = _Chat(layer), threading.Event(), DeadLetters.keep
    monkeypatch.setattr(DeadLetters, "keep", lambda *given: (answers.wait(FOR_EVER), keep(*given))[1])
    try:
        await chat.write_poison()
        await chat.write()
        assert await chat.read() == chat.good
        assert "does not answer" in str(layer._engine.letterbox.failure)
    finally:
        answers.set()
    await until(lambda: layer._engine.counts.letters_waiting == 0)
    assert _letters(layer) == chat.refused
    await layer.close()


# ---- a disk that is full


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    with disk_of("2m", tmp_path / "disk", "") as path:
        yield path


@pytest.mark.parametrize("how", ["full", "read-only", "gone"])
async def test_a_disk_that_takes_nothing(
    migrated_url: str, small_disk: Path, make_journaled: MakeLayer, how: str
) -> None:
    layer = make_journaled(migrated_url, journal_dir=small_disk / "journals")
    await _refuse_poison(layer)
    chat, ballast = _Chat(layer), small_disk / "ballast"
    await chat.write()
    await layer.flush()
    if how == "full":
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
    elif how == "read-only":
        assert mount("-t", "tmpfs", "-o", "ro", "forebay-test", small_disk)
    else:
        shutil.rmtree(small_disk / "journals")
        (small_disk / "journals").write_text("somebody's file")
    for number in range(40):
        await chat.write(size=9000)
        if number % 10 == 0:
            await chat.write_poison(size=9000)
    assert await chat.read() == chat.good
    counts = layer._engine.counts
    assert counts.letters_waiting == len(chat.refused) == 4
    if how == "full":
        ballast.unlink()
    elif how == "read-only":
        subprocess.run(["umount", small_disk], check=True)
    else:
        (small_disk / "journals").unlink()
    await until(lambda: counts.letters_waiting == 0)
    assert _letters(layer) == chat.refused
    assert accounted_for(layer)
    await layer.close()


# ---- kill -9


@pytest.mark.parametrize("where", ["side", "own"])
async def test_a_kill_while_refused_rows_wait(
    migrated_postgres_url: str, make_journaled: MakeLayer, tmp_path: Path, where: str
) -> None:
    before = make_journaled(migrated_postgres_url, durability="memory")
    await _refuse_poison(before)
    acknowledged = await _killed(migrated_postgres_url, tmp_path / "journals", where, "embedded")
    after = make_journaled(migrated_postgres_url)
    await _recovered(after)
    stored = {str(row["id"]) for row in await rows(after, "SELECT id FROM steps")}
    assert {key for key, name in acknowledged.items() if name != POISON} <= stored, "lost"
    refused = {key for key, name in acknowledged.items() if name == POISON}
    await until(lambda: _letters(after) == refused)
    assert accounted_for(after)
    await after.close()
    assert [path.name for path in after.settings.journal_dir.iterdir()] == ["dead-letters.db"]


async def _killed(url: str, folder: Path, where: str, writer: str) -> dict[str, str]:
    """The names of the steps that were acknowledged."""
    worker = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.faults.letters_worker", url, str(folder), where, writer),
        stdout=asyncio.subprocess.PIPE,
    )
    assert worker.stdout is not None
    lines: list[str] = []
    async with patience():
        while not (lines and lines[-1].startswith("waiting")):
            lines.append((await worker.stdout.readline()).decode())
            assert lines[-1], "it has ended"
        worker.send_signal(signal.SIGKILL)
        lines += (await worker.stdout.read()).decode().splitlines(keepends=True)
        await worker.wait()
    acks = (line.split() for line in lines if line.startswith("ack") and line.endswith("\n"))
    return {key: name for _, key, name in acks}


# ---- with another process that writes


async def _drained(url: str, folder: Path, act: Callable[[Drain], Awaitable[None]], **values: Any) -> None:
    """A daemon in this process, for as long as `act` takes."""
    settings = Settings(journal_dir=folder, **values)
    store = Store(url, settings)
    drain, stop = Drain(folder, store, settings, Metrics()), asyncio.Event()
    running = asyncio.ensure_future(drain.run(stop))
    try:
        async with patience():
            await act(drain)
            stop.set()
            await running
    finally:
        running.cancel()
        await asyncio.wait([running])
        await drain.close()


@pytest.mark.parametrize("trouble", _TROUBLES)
async def test_with_an_external_writer(
    migrated_url: str,
    make_journaled: MakeLayer,
    monkeypatch: pytest.MonkeyPatch,
    trouble: Callable[..., _Mend],
) -> None:
    layer = make_journaled(migrated_url, writer="external", close_timeout=20)
    await _refuse_poison(layer)
    chat = _Chat(layer)

    async def act(drain: Drain) -> None:
        await chat.write()
        await layer.flush()
        mend = trouble(layer, monkeypatch)
        journal = layer._engine.journal
        assert journal is not None
        for _ in range(3):
            await chat.write_poison()
            await chat.write()
        assert await chat.read() == chat.good
        assert drain.counts.letters_waiting == 3
        if trouble is _no_room:
            kept = {change.key for _, change in await journal.read(1, 10**6)}
            assert kept >= chat.refused
            assert journal.size > 0
        mend()
        await until(lambda: drain.counts.letters_waiting == 0)
        assert _letters(layer) == chat.refused
        await chat.write()
        await layer.flush()
        await until(lambda: journal.progress is not None and journal.progress.held is None)
        await layer.close()

    await _drained(migrated_url, layer.settings.journal_dir, act, dead_letters_max_bytes=_BOUND)
    assert [path.name for path in layer.settings.journal_dir.iterdir()] == ["dead-letters.db"]


async def test_the_daemon_ends_while_a_refused_row_is_in_its_owners_journal_alone(
    migrated_url: str, make_journaled: MakeLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one finds it there, also where the owner has closed between them."""
    layer = make_journaled(migrated_url, writer="external", close_timeout=20)
    await _refuse_poison(layer)
    chat, folder = _Chat(layer), layer.settings.journal_dir
    mend = _no_room(layer, monkeypatch)

    async def before(drain: Drain) -> None:
        await chat.write_poison()
        await chat.write()
        await layer.flush()
        assert drain.counts.letters_waiting == 1
        await layer.close()

    await _drained(migrated_url, folder, before)
    assert list(folder.glob("*.journal"))
    mend()

    async def after(_drain: Drain) -> None:
        await until(lambda: _letters(layer) == chat.refused)

    await _drained(migrated_url, folder, after)
    assert [path.name for path in folder.iterdir()] == ["dead-letters.db"]


async def test_a_drain_that_can_not_keep_a_row_says_so_and_ends(
    migrated_postgres_url: str, make_journaled: MakeLayer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = make_journaled(migrated_postgres_url, durability="memory")
    await _refuse_poison(before)
    acknowledged = await _killed(migrated_postgres_url, tmp_path / "journals", "own", "external")
    folder, mend = tmp_path / "journals", _no_room(before, monkeypatch)
    settings = Settings(journal_dir=folder)
    drain = Drain(folder, Store(migrated_postgres_url, settings), settings, Metrics())
    async with patience():
        await drain.run()
    await drain.close()
    (reason,) = drain.parked.values()
    assert "a row that was refused can't be kept" in reason
    mend()
    drain = Drain(folder, Store(migrated_postgres_url, settings), settings, Metrics())
    async with patience():
        await drain.run()
    await drain.close()
    assert drain.parked == {}
    assert _letters(before) == {key for key, name in acknowledged.items() if name == POISON}
    stored = {str(row["id"]) for row in await rows(before, "SELECT id FROM steps")}
    assert {key for key, name in acknowledged.items() if name != POISON} <= stored
