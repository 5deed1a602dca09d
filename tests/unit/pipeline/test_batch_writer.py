"""The writer: one batch after the other, through outages and past rows that the database refuses."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from typing_extensions import override

from forebay.database.checkpoint import Checkpoint, CheckpointMoved, Position
from forebay.database.store import LeftOut
from forebay.errors import DatabaseError, JournalError, RowError, SchemaError, TransientError
from forebay.model.changes import Change, Delete, Upsert
from forebay.pipeline.alarm import Alarm
from forebay.pipeline.batch_writer import Writer
from forebay.pipeline.cursor import Cursor
from forebay.pipeline.intake import Intake
from forebay.pipeline.queue import Batch, Inbox, Op
from forebay.pipeline.tombstones import Tombstones
from forebay.pipeline.write_loop import Worker
from forebay.primitives.backoff import Backoff
from forebay.telemetry.collector import Metrics
from forebay.telemetry.counters import Counts
from tests.support.patience import patience


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class FakeStore:
    """Commits what it is given, unless it is told to fail; `bad` rows are refused as a database refuses them."""

    def __init__(self) -> None:
        self.committed: list[str] = []
        self.attempts: list[list[str]] = []
        self.positions: dict[str, Position] = {}
        self.late: list[bool] = []
        self.shares: list[float] = []
        self.dead: frozenset[str | LeftOut] = frozenset()
        self.bad: set[str] = set()
        self.refusal: str | None = "23514"
        self.held: dict[str, int] = {}  # rows that somebody holds, and for how many tries
        self.fits = 1_000_000  # rows in one transaction, in the time there is
        self.fails: list[BaseException] = []
        self.fails_after_the_commit: list[BaseException] = []
        self.open = asyncio.Event()
        self.open.set()

    async def apply(
        self,
        changes: Sequence[Change],
        checkpoint: Checkpoint | None,
        *,
        late: bool = False,
        share: float = 1.0,
    ) -> frozenset[str | LeftOut]:
        self.late.append(late)
        self.shares.append(share)
        self.attempts.append([change.key for change in changes])
        await self.open.wait()
        if self.fails:
            raise self.fails.pop(0)
        for key in [change.key for change in changes if self.held.get(change.key)]:
            self.held[key] -= 1
            raise TransientError("somebody holds it", sqlstate="55P03")
        if len(changes) > self.fits:
            raise TransientError("too long", sqlstate="57014")
        if self.bad & {change.key for change in changes}:
            raise RowError("the row is refused", sqlstate=self.refusal)
        if checkpoint is not None:
            position = self.positions.get(checkpoint.journal_id, Position())
            if position == checkpoint.after:
                return frozenset()
            if position != checkpoint.before:
                raise CheckpointMoved(position)
            self.positions[checkpoint.journal_id] = checkpoint.after
        self.committed += [change.key for change in changes]
        if self.fails_after_the_commit:
            raise self.fails_after_the_commit.pop(0)
        return self.dead

    has_writer = True

    async def position(self, journal_id: str) -> Position:
        return self.positions.get(journal_id, Position())

    @property
    def checkpoints(self) -> dict[str, int]:
        """Up to where each journal is."""
        return {journal_id: position.seq for journal_id, position in self.positions.items()}


@dataclass
class FakeObserver:
    """Stands for the intake, and notes what it is told."""

    settled: int = 0
    failures: list[str] = field(default_factory=list)
    refills: list[Callable[[], None]] = field(default_factory=list)

    async def refill(self, writer: Writer) -> None:
        self.refills.pop(0)()

    def batch_settled(self) -> None:
        self.settled += 1

    def note(self, failure: DatabaseError | None) -> None:
        if failure is not None:
            self.failures.append(str(failure))


class Bench:
    """A writer with all that is around it."""

    def __init__(self, linger: float = 0.0) -> None:
        self.clock, self.store, self.observer, self.counts = Clock(), FakeStore(), FakeObserver(), Counts()
        self.metrics, self.tombstones = Metrics(), Tombstones(self.counts)
        self.inbox = Inbox(
            max_bytes=10_000, batch_max_rows=100, batch_max_bytes=10_000, linger=linger, counts=self.counts
        )
        self.backoff = Backoff(base=0.0)
        self.letters: list[str] = []
        self.letters_fail: list[JournalError] = []
        self.writer = self.make_writer()
        self.alarm = Alarm(self.clock)
        self.worker = self.make_worker(None)

    def make_worker(self, recovery: Any) -> Worker:
        intake = cast("Intake", self.observer)
        return Worker(self.inbox, intake, self.writer, Cursor("own"), recovery, self.alarm, self.clock)

    def make_writer(self, *, backoff: Backoff | None = None, keep_is_vital: bool = False) -> Writer:
        return Writer(
            self.store,
            self.counts,
            self.metrics,
            self.tombstones,
            self.clock,
            keep=self.keep,
            keep_is_vital=keep_is_vital,
            pending=lambda: self.inbox.pending,
            on_failure=self.observer.note,
            backoff=backoff or self.backoff,
            pause=10.0,
        )

    async def keep(self, change: Change, error: RowError, cursor: Cursor | None, /) -> bool:
        if self.letters_fail:
            raise self.letters_fail.pop(0)
        self.letters.append(change.key)
        return True

    def put(self, *keys: str) -> None:
        for key in keys:
            assert self.inbox.offer(upsert(key), self.clock()) is not None
        self.alarm.notice(now=self.inbox.has_ready_batch)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.worker.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled(), task.exception()

    async def until(self, true: Callable[[], bool]) -> None:
        """Let everything go on that can, without any time going by."""
        for _ in range(200):
            if true():
                return
            await asyncio.sleep(0)
        raise AssertionError("it does not happen")

    async def settled(self) -> None:
        await self.until(lambda: self.inbox.pending == 0 and self.observer.settled > 0)

    def write(self, batch: Batch, cursor: Cursor | None = None) -> Awaitable[None]:
        return self.writer.write(batch, cursor)


@pytest.fixture
async def bench() -> Bench:
    return Bench()


def upsert(key: str) -> Upsert:
    return Upsert("steps", key, {"id": key}, "t", 10)


def a_batch(*keys: str, last_seq: int = 0) -> Batch:
    return Batch(0.0, [Op(upsert(key)) for key in keys], last_seq)


async def test_batches_leave_in_order_one_at_a_time(bench: Bench) -> None:
    bench.store.open.clear()
    bench.put("a", "b")
    async with bench.running():
        await bench.until(lambda: len(bench.store.attempts) == 1)
        bench.put("c")
        bench.put("d")
        await asyncio.sleep(0)
        assert bench.store.attempts == [["a", "b"]]
        bench.store.open.set()
        await bench.settled()
    assert bench.store.attempts == [["a", "b"], ["c", "d"]]
    assert bench.observer.settled == 2
    assert bench.counts.written == {"steps": 4}


async def test_a_notice_ends_the_wait_for_company() -> None:
    bench = Bench(linger=10_000.0)
    async with bench.running():
        await asyncio.sleep(0)
        bench.put("a")
        for _ in range(20):
            await asyncio.sleep(0)
        assert bench.store.attempts == []
        bench.inbox.hurry()
        bench.alarm.notice(now=True)
        await bench.settled()
    assert bench.store.committed == ["a"]


async def test_spilled_changes_are_brought_back_when_there_is_room(bench: Bench) -> None:
    bench.inbox.spill(upsert("a"))
    bench.observer.refills = [lambda: bench.inbox.refill(1, upsert("a"), 0.0)]
    async with bench.running():
        await bench.settled()
    assert bench.store.committed == ["a"]


@pytest.mark.parametrize("error", [TransientError("gone"), SchemaError("no table")])
async def test_the_same_batch_is_tried_until_it_is_in(bench: Bench, error: DatabaseError) -> None:
    bench.store.fails = [error] * 3
    bench.put("a")
    async with bench.running():
        await bench.until(lambda: bench.writer.failure is error)
        assert repr(bench.writer) == "<Writer failing>"
        bench.put("b")
        await bench.settled()
        assert repr(bench.writer) == "<Writer working>"
    assert bench.store.attempts == [["a"]] * 4 + [["b"]]
    assert bench.counts.retries == {type(error).__name__: 3}
    assert bench.observer.failures == [str(error)] * 3
    assert (sum(bench.metrics.batch_rows.counts), bench.metrics.batch_rows.sum) == (2, 2)
    assert bench.backoff.attempts == 0


@pytest.mark.parametrize("code", ["40P01", "40001", "SQLITE_BUSY", "SQLITE_BUSY_SNAPSHOT", "SQLITE_LOCKED"])
async def test_two_writers_that_meet_fail_nobody(bench: Bench, code: str) -> None:
    bench.store.fails = [TransientError("rolled back", sqlstate=code)] * 3
    await bench.write(a_batch("a"))
    assert bench.store.attempts == [["a"]] * 4
    assert bench.counts.retries == {"TransientError": 3}
    assert bench.observer.failures == []


async def test_who_is_always_in_the_way_is_told(bench: Bench) -> None:
    bench.store.fails = [TransientError("rolled back", sqlstate="40001")] * 12
    await bench.write(a_batch("a"))
    assert bench.observer.failures == ["rolled back"]


async def test_waiting_long_for_another_writer_is_told_earlier(bench: Bench) -> None:
    async def slow(*_: Any, **__: Any) -> frozenset[str]:
        bench.clock.now += 2.0
        if bench.clock.now < 8.0:
            raise TransientError("in use", sqlstate="SQLITE_BUSY")
        return frozenset()

    bench.store.apply = slow  # type: ignore[method-assign]
    await bench.write(a_batch("a"))
    assert bench.observer.failures == ["in use"] * 2


async def test_waits_come_from_the_backoff_and_begin_anew_after_a_success(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    class Numbered(Backoff):
        @override
        def next_delay(self) -> float:
            super().next_delay()
            return float(self.attempts)

    monkeypatch.setattr("forebay.pipeline.batch_writer.anyio.sleep", sleep)
    bench.writer = bench.make_writer(backoff=Numbered())
    for _ in range(2):
        bench.store.fails = [TransientError("gone")] * 3
        await bench.write(a_batch("a"))
    assert waits == [1.0, 2.0, 3.0] * 2


@pytest.mark.parametrize("bad", [{"a"}, {"c"}, {"e"}, {"b", "d"}, {"a", "b", "c", "d", "e"}, set()])
async def test_only_the_bad_rows_are_given_up(bench: Bench, bad: set[str]) -> None:
    bench.store.bad = bad
    batch, loop = a_batch(*"abcde"), asyncio.get_running_loop()
    waiting = {op.change.key: loop.create_future() for op in batch.ops}
    for op in batch.ops:
        op.tickets = (waiting[op.change.key],)
    await bench.write(batch)
    good = [key for key in "abcde" if key not in bad]
    assert bench.store.committed == good
    assert bench.counts.written.total() == len(good)
    assert bench.counts.dead_lettered.total() == len(bad)
    assert set(bench.counts.dead_lettered) <= {("steps", "23514")}
    assert {key for key, ticket in waiting.items() if isinstance(ticket.exception(), RowError)} == bad
    assert all(ticket.exception() is None for key, ticket in waiting.items() if key not in bad)
    assert set(bench.letters) == bad


async def test_an_outage_while_the_bad_row_is_looked_for_changes_nothing(bench: Bench) -> None:
    bench.store.bad = {"c"}
    bench.store.fails = [RowError("refused"), TransientError("gone"), TransientError("gone")]
    await bench.write(a_batch(*"abcd"))
    assert bench.store.committed == ["a", "b", "d"]
    assert bench.counts.dead_lettered == {("steps", "23514"): 1}


async def test_a_row_that_cant_be_sent_is_given_up_as_well(bench: Bench) -> None:
    bench.store.fails = [RowError("a row can't be sent to the database (TypeError)")]
    await bench.write(a_batch("a"))
    assert bench.counts.dead_lettered == {("steps", "encoding"): 1}


async def test_what_is_of_a_deleted_thread_is_dropped_and_told(bench: Bench) -> None:
    bench.store.dead = frozenset("t")
    await bench.write(Batch(0.0, [Op(upsert("a")), Op(Delete("steps", "b", "t"))]))
    assert bench.counts.dropped == {"deleted_thread": 1}
    assert bench.tombstones.drops(upsert("c"))
    assert bench.counts.written == {"steps": 1}, "the delete itself"


async def test_a_letter_that_cant_be_kept_is_lost_and_counted(bench: Bench) -> None:
    bench.store.bad, bench.letters_fail = {"a"}, [JournalError("read-only")]
    await bench.write(a_batch("a", "b"))
    assert bench.counts.dropped == {"no_dead_letter": 1}
    assert bench.store.committed == ["b"]


async def test_with_a_journal_the_row_waits_until_its_letter_is_kept(bench: Bench) -> None:
    bench.writer = bench.make_writer(keep_is_vital=True)
    bench.store.bad, bench.letters_fail = {"a"}, [JournalError("full"), JournalError("full")]
    await bench.write(a_batch("a", "b"))
    assert bench.letters == ["a"]
    assert bench.counts.dead_lettered == {("steps", "23514"): 1}
    assert bench.counts.retries == {"JournalError": 2}


@pytest.fixture
def pauses(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    made: list[float] = []

    async def sleep(seconds: float) -> None:
        made.append(seconds)

    monkeypatch.setattr("forebay.pipeline.batch_writer.anyio.sleep", sleep)
    return made


async def test_when_nearly_every_row_is_refused_there_is_a_pause_before_each(
    bench: Bench, pauses: list[float]
) -> None:
    keys = [str(number) for number in range(105)]
    bench.store.bad = set(keys)
    await bench.write(a_batch(*keys))
    assert pauses == [10.0] * 5
    assert len(bench.letters) == 105
    assert any("nearly every row is refused" in failure for failure in bench.observer.failures)


async def test_a_pause_is_seen_while_it_lasts(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    async def look(_seconds: float) -> None:
        seen.append(bench.counts.paused)

    monkeypatch.setattr("forebay.pipeline.batch_writer.anyio.sleep", look)
    keys = [str(number) for number in range(101)]
    bench.store.bad = set(keys)
    await bench.write(a_batch(*keys))
    assert seen == [True]
    assert not bench.counts.paused


async def test_a_pause_ends_when_rows_are_taken_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async def mend(_seconds: float) -> None:
        bench.store.bad = set()

    monkeypatch.setattr("forebay.pipeline.batch_writer.anyio.sleep", mend)
    keys = [str(number) for number in range(300)]
    bench.store.bad = set(keys)
    await bench.write(a_batch(*keys))
    assert len(bench.letters) == 100
    assert len(bench.store.committed) == 200
    assert bench.writer.failure is None


@pytest.mark.parametrize("refusal", ["22P05", "22021", "54000", "SQLITE_TOOBIG", None])
async def test_what_people_write_makes_no_pause(
    bench: Bench, pauses: list[float], refusal: str | None
) -> None:
    keys = [str(number) for number in range(300)]
    bench.store.bad, bench.store.refusal = set(keys), refusal
    await bench.write(a_batch(*keys))
    assert pauses == []
    assert len(bench.letters) == 300


async def test_it_is_asked_at_each_attempt_whether_a_batch_is_late(bench: Bench) -> None:
    bench.store.fails = [TransientError("gone")] * 2
    answers = [False, False, True]
    await bench.writer.write(a_batch("a"), late=lambda: answers.pop(0))
    assert bench.store.late == [False, False, True]


async def test_one_bad_row_in_ten_good_ones_makes_no_pause(bench: Bench, pauses: list[float]) -> None:
    for number in range(150):
        bench.store.bad = {f"bad {number}"}
        await bench.write(a_batch(*(f"{number} {good}" for good in range(10)), f"bad {number}"))
    assert pauses == []
    assert len(bench.letters) == 150


async def test_a_journals_checkpoint_is_set_with_the_batch_alone(bench: Bench) -> None:
    cursor = Cursor("journal")
    await bench.write(a_batch("a", last_seq=7), cursor)
    assert bench.store.positions == {"journal": cursor.at}
    assert cursor.at.seq == 7
    await bench.write(a_batch("b"))
    assert bench.store.checkpoints == {"journal": 7}


async def test_a_checkpoint_waits_for_the_first_half_of_a_batch(bench: Bench) -> None:
    bench.store.bad = {"a"}
    seen: list[dict[str, int]] = []

    class Seen(Op):
        @override
        def settle(self, error: Exception | None) -> None:
            seen.append({**bench.store.checkpoints})

    batch = a_batch("a", "b", "c", last_seq=9)
    batch.ops = [Seen(op.change, ("somebody",)) for op in batch.ops]
    await bench.write(batch, Cursor("journal"))
    assert seen == [{}, {"journal": 9}, {"journal": 9}]


async def test_a_checkpoint_is_set_also_where_the_last_row_is_given_up(bench: Bench) -> None:
    bench.store.bad = {"c"}
    await bench.write(a_batch("a", "b", "c", last_seq=9), Cursor("journal"))
    assert bench.store.checkpoints == {"journal": 9}


async def test_a_commit_whose_answer_was_lost_is_not_repeated(bench: Bench) -> None:
    bench.store.fails_after_the_commit = [TransientError("connection lost")]
    await bench.write(a_batch("a", "b", last_seq=2), Cursor("journal"))
    assert bench.store.committed == ["a", "b"]
    assert bench.counts.written == {"steps": 2}
    assert bench.writer.failure is None


async def test_nor_is_a_part_whose_answer_was_lost(bench: Bench) -> None:
    bench.store.bad = {"d"}
    bench.store.fails = [RowError("refused")]
    bench.store.fails_after_the_commit = [TransientError("connection lost")] * 2
    await bench.write(a_batch(*"abcd", last_seq=2), Cursor("journal"))
    assert bench.store.committed == ["a", "b", "c"]


async def test_a_part_that_comes_late_finds_nothing_to_start_from(bench: Bench) -> None:
    steps: list[Checkpoint] = []
    apply = bench.store.apply

    async def noted(
        changes: Sequence[Change], checkpoint: Checkpoint | None, *, late: bool = False, **_: Any
    ) -> Any:
        assert checkpoint is not None
        steps.append(checkpoint)
        return await apply(changes, checkpoint, late=late)

    bench.store.apply = noted  # type: ignore[method-assign]
    bench.store.bad = {"d"}
    await bench.write(a_batch(*"abcd", last_seq=4), Cursor("journal"))
    for step in steps:
        if step.after != bench.store.positions["journal"]:
            with pytest.raises(CheckpointMoved):
                await apply([upsert("late")], step)
    assert bench.store.committed == ["a", "b", "c"]


@pytest.mark.parametrize("fits", [1, 2, 3])
async def test_a_batch_that_takes_too_long_is_written_in_smaller_parts_in_order(
    bench: Bench, fits: int
) -> None:
    bench.store.fits = fits
    await bench.write(a_batch(*"abcdefghi", last_seq=9), Cursor("journal"))
    assert bench.store.committed == list("abcdefghi")
    assert bench.store.checkpoints == {"journal": 9}
    assert bench.counts.written.total() == 9
    assert bench.writer.failure is None


async def test_one_time_out_takes_no_batch_apart(bench: Bench) -> None:
    bench.store.fails = [TransientError("too long", sqlstate="57014")]
    await bench.write(a_batch(*"abcd", last_seq=4), Cursor("journal"))
    assert bench.store.attempts == [list("abcd"), [], list("abcd")]
    assert bench.observer.failures == []


async def test_a_row_that_takes_too_long_is_tried_until_it_is_in(bench: Bench) -> None:
    bench.store.held = {"a": 5}
    await bench.write(a_batch("a", last_seq=1), Cursor("journal"))
    assert bench.store.attempts == [["a"], []] * 5 + [["a"]]
    assert len(bench.observer.failures) == 4, "one time-out may be the connection's"
    assert bench.store.shares[-1] == 1.0, "it may take its time"


class _Parked:
    """Lanes that keep what they are given."""

    def __init__(self) -> None:
        self.open: dict[str, list[str]] = {}
        self.has_room = True

    def key_of(self, change: Change) -> str | None:
        return change.key if change.key in self.open else None

    async def park(self, ops: Sequence[Op], error: DatabaseError | None = None) -> bool:
        self.open.setdefault(ops[0].change.key, []).extend(op.change.key for op in ops)
        return True


async def test_a_row_that_somebody_holds_is_parked_and_the_others_go_on(bench: Bench) -> None:
    bench.store.held = {"c": 1000, "f": 1000}
    lanes = bench.writer.lanes = _Parked()
    cursor = Cursor("journal")
    await bench.write(a_batch(*"abcdefgh", last_seq=8), cursor)
    assert bench.store.committed == list("abdegh")
    assert lanes.open == {"c": ["c"], "f": ["f"]}
    assert bench.store.checkpoints == {"journal": 8}
    assert bench.counts.written.total() == 6
    assert bench.observer.failures == [], "nobody else is told"
    attempts = len(bench.store.attempts)
    await bench.write(a_batch(*"cxf", last_seq=11), cursor)
    assert bench.store.attempts[attempts:] == [["x"]], "what waits already is no trouble"
    assert lanes.open == {"c": ["c", "c"], "f": ["f", "f"]}


async def test_in_an_outage_nothing_is_parked(bench: Bench) -> None:
    lanes = bench.writer.lanes = _Parked()
    bench.store.fails = [
        TransientError("no answer", sqlstate="57014"),
        *[TransientError("gone")] * 3,
        TransientError("no answer", sqlstate="57014"),
        *[TransientError("gone")] * 3,
    ]
    await bench.write(a_batch("a", last_seq=1), Cursor("journal"))
    assert lanes.open == {}
    assert bench.store.committed == ["a"]
    assert bench.observer.failures == [*["gone"] * 3, "no answer", *["gone"] * 3]


async def test_when_too_much_is_held_up_everything_waits(bench: Bench) -> None:
    lanes = bench.writer.lanes = _Parked()
    lanes.has_room = False
    bench.store.held = {"a": 5}
    await bench.write(a_batch("a", "b", last_seq=2), Cursor("journal"))
    assert bench.store.committed == ["a", "b"]
    assert bench.observer.failures == ["somebody holds it"] * 3


async def test_a_batch_that_got_through_after_its_time_raises_no_alarm(bench: Bench) -> None:
    apply = bench.store.apply
    given_up: list[tuple[Sequence[Change], Checkpoint]] = []

    async def slow(
        changes: Sequence[Change], checkpoint: Checkpoint | None, *, late: bool = False, **_: Any
    ) -> Any:
        assert checkpoint is not None
        if len(changes) > 2:
            given_up.append((changes, checkpoint))
            raise TransientError("too long", sqlstate="57014")
        if given_up:  # it goes on in the database, and commits before what is sent after it
            await apply(*given_up[-1])
            given_up.clear()
        return await apply(changes, checkpoint, late=late)

    bench.store.apply = slow  # type: ignore[method-assign]
    cursor = Cursor("journal")
    await bench.write(a_batch(*"abcd", last_seq=4), cursor)
    assert bench.store.committed == list("abcd")
    assert bench.counts.checkpoint_alarms.total() == 0
    assert (cursor.journal_id, bench.store.checkpoints) == ("journal", {"journal": 4})
    assert bench.counts.written.total() == 4


class _Kept:
    """A journal that has kept the changes of these numbers."""

    def __init__(self, *seqs: int) -> None:
        self.records = [(seq, cast("Change", upsert(str(seq)))) for seq in seqs]
        self.back_to: list[int] = []

    async def read(self, after_seq: int, max_bytes: int) -> list[tuple[int, Change]]:
        return [record for record in self.records if record[0] > after_seq][:2]

    def went_back(self, seq: int) -> None:
        self.back_to.append(seq)


async def test_a_database_that_went_back_is_given_again_what_it_lacks(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    kept = _Kept(*range(1, 7))
    cursor = Cursor("journal", source=kept)
    await bench.write(a_batch("1", "2", last_seq=2), cursor)
    backup = dict(bench.store.positions)
    await bench.write(a_batch("3", "4", "5", last_seq=5), cursor)
    bench.store.positions, bench.store.committed = backup, ["1", "2"]
    await bench.write(a_batch("6", last_seq=6), cursor)
    assert bench.store.committed == ["1", "2", "3", "4", "5", "6"]
    assert bench.store.late[-3:] == [True, True, False]
    assert (kept.back_to, bench.store.checkpoints) == ([2], {"journal": 6})
    assert bench.counts.checkpoint_alarms == {"gone_back": 1}
    assert bench.counts.replayed == 3
    assert bench.counts.written.total() == 9
    assert "database gone back" in caplog.text


async def test_it_may_go_back_again_meanwhile_and_within_a_batch(bench: Bench) -> None:
    cursor = Cursor("journal", source=_Kept(*range(1, 5)))
    await bench.write(a_batch("1", "2", "3", "4", last_seq=4), cursor)
    apply, times = bench.store.apply, 0

    async def goes_back(
        changes: Sequence[Change], step: Checkpoint | None, *, late: bool = False, **_: Any
    ) -> Any:
        nonlocal times
        times += 1
        if times in (2, 4, 7):
            bench.store.positions, bench.store.committed = {}, []
        return await apply(changes, step, late=late)

    bench.store.apply = goes_back  # type: ignore[method-assign,assignment]
    bench.store.bad = {"bad"}
    await bench.write(a_batch("5", "6", "bad", "7", last_seq=8), cursor)
    assert sorted(set(bench.store.committed)) == [str(number) for number in range(1, 8)]
    assert bench.letters == ["bad"]
    assert bench.counts.written.total() + bench.counts.dead_lettered.total() == 4 + 4 + bench.counts.replayed
    assert bench.store.checkpoints == {"journal": 8}


async def test_what_is_not_kept_any_more_is_told(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    for source, lost in ((_Kept(4), 3), (None, 4)):
        caplog.clear()
        cursor = Cursor("journal", source=source)
        bench.store.positions = {}
        await bench.write(a_batch("4", last_seq=4), cursor)
        bench.store.positions = {}
        await bench.write(a_batch("5", last_seq=5), cursor)
        assert f"changes lost changes={lost}" in caplog.text
        assert bench.store.checkpoints == {"journal": 5}


async def test_a_checkpoint_that_somebody_else_moves_on_discards_nothing(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    for lost in ([], [TransientError("connection lost")]):
        bench.store.fails = [*lost]
        bench.store.positions, bench.store.committed = {"shared": Position(20, 7)}, []
        cursor = Cursor("shared")
        await bench.write(a_batch("a", last_seq=20), cursor)
        assert bench.store.committed == ["a"]
        assert bench.store.positions["shared"] == Position(20, 7)
        assert cursor.journal_id != "shared"
        assert "checkpoint not ours" in caplog.text


async def test_it_is_looked_after_without_a_batch(bench: Bench) -> None:
    cursor = Cursor("journal", source=_Kept(1, 2))
    await bench.write(a_batch("1", "2", last_seq=2), cursor)
    await bench.writer.verify(cursor)
    assert bench.store.committed == ["1", "2"]
    bench.store.positions, bench.store.committed = {}, []
    await bench.writer.verify(cursor)
    assert bench.store.committed == ["1", "2"]


async def test_an_outage_is_told_once_and_its_end_too(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    bench.store.fails = [TransientError("gone")] * 5
    await bench.write(a_batch("a"))
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]
    assert "gone" in caplog.messages[0]
    assert "writes resumed" in caplog.messages[1]


async def test_a_long_outage_is_told_now_and_then(
    bench: Bench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def sleep(seconds: float) -> None:
        bench.clock.now += 10.0

    monkeypatch.setattr("forebay.pipeline.batch_writer.anyio.sleep", sleep)
    bench.store.fails = [TransientError("gone")] * 10
    await bench.write(a_batch("a"))
    told = [message for message in caplog.messages if "writes deferred" in message]
    assert len(told) == 4  # at 0, 30, 60 and 90 seconds
    assert "for=90s" in told[-1]


async def test_a_refused_row_is_told_without_what_is_in_it(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.store.bad = {"secret"}
    await bench.write(a_batch("secret"))
    assert len(caplog.messages) == 1
    assert "secret" not in caplog.text
    assert "table=steps" in caplog.text


async def test_it_can_be_cancelled_at_any_await(bench: Bench) -> None:
    bench.store.open.clear()
    bench.put("a")
    async with bench.running():
        await bench.until(lambda: bool(bench.store.attempts))
    assert bench.store.committed == []
    assert bench.inbox.pending == 1


class _SlowRecovery:
    """Looks around once, until it is let go; then it has nothing to do for ever."""

    due = float("inf")

    def __init__(self) -> None:
        self.looks = asyncio.Event()
        self.go_on = asyncio.Event()

    async def advance(self) -> bool:
        self.looks.set()
        await self.go_on.wait()
        return False


async def test_what_comes_while_recovery_looks_around_is_written_at_once() -> None:
    bench, recovery = Bench(), _SlowRecovery()
    bench.worker = bench.make_worker(recovery)
    async with bench.running(), patience():
        await recovery.looks.wait()
        bench.put("1")
        recovery.go_on.set()
        while bench.store.committed != ["1"]:  # noqa: ASYNC110 - the writer tells nobody
            await asyncio.sleep(0)


def test_a_reader_is_to_see_what_was_there_before_the_database_went_back() -> None:
    cursor = Cursor("j", Position(10, 1))
    cursor.went_back(Position(4, 2))
    assert (cursor.at.seq, cursor.known_seq) == (4, 10)
    cursor.went_back(Position(2, 3))
    assert cursor.known_seq == 10
    cursor.given_again()
    assert cursor.known_seq == 2
