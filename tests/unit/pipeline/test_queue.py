"""The queue's decisions: order, folding, bounds, tickets, and when a batch is ready."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from typing_extensions import override

from forebay.errors import QueueFull
from forebay.model import changes
from forebay.model.changes import Change, Delete, Upsert
from forebay.model.schema import SENT_AT
from forebay.pipeline.queue import Batch, Inbox, Waiting
from forebay.telemetry.counters import Counts
from tests.support.examples import examples

LINGER = 5.0


def an_inbox(*, max_bytes: int = 1000, max_rows: int = 100, max_batch_bytes: int = 1000) -> Inbox:
    return Inbox(
        max_bytes=max_bytes,
        batch_max_rows=max_rows,
        batch_max_bytes=max_batch_bytes,
        linger=LINGER,
        counts=Counts(),
    )


def upsert(key: str, thread: str | None = "t", size: int = 10, **row: Any) -> Upsert:
    return Upsert("steps", key, {"id": key, **row}, thread, size)


def delete(key: str, thread: str | None = None) -> Delete:
    return Delete("steps", key, thread, size=10)


def keys(batch: Batch) -> list[str]:
    return [op.change.key for op in batch.ops]


def taken(inbox: Inbox, now: float = LINGER) -> Batch:
    """The batch that leaves at this time."""
    batch = inbox.poll(now)
    assert isinstance(batch, Batch)
    return batch


def may_leave(inbox: Inbox) -> bool:
    return inbox.has_ready_batch


def nowhere_else(change: Change) -> bool:
    return False


def put(inbox: Inbox, *changes: Change, now: float = 0.0) -> list[int | None]:
    return [inbox.offer(change, now) for change in changes]


# ---- when a batch is ready


def test_an_empty_queue_has_nothing_to_wait_for() -> None:
    assert an_inbox().poll(0.0) is None


def test_a_batch_leaves_when_its_first_change_has_lingered() -> None:
    inbox = an_inbox()
    put(inbox, upsert("a"), now=100.0)
    put(inbox, upsert("b"), now=104.0)
    assert inbox.poll(104.9) == 105.0
    assert keys(taken(inbox, 105.0)) == ["a", "b"]


@pytest.mark.parametrize(
    ("inbox", "last"),
    [(an_inbox(max_rows=2), upsert("b")), (an_inbox(max_batch_bytes=30), upsert("b", size=20))],
)
def test_a_full_batch_leaves_at_once(inbox: Inbox, last: Upsert) -> None:
    put(inbox, upsert("a"))
    assert not may_leave(inbox)
    put(inbox, last, upsert("c"))
    assert may_leave(inbox)
    assert keys(taken(inbox, 0.0)) == ["a", "b"]


def test_a_hurried_batch_does_not_linger_and_the_next_one_does() -> None:
    inbox = an_inbox()
    inbox.hurry()
    assert not may_leave(inbox)
    put(inbox, upsert("a"))
    inbox.hurry()
    assert may_leave(inbox)
    batch = taken(inbox, 0.0)
    assert keys(batch) == ["a"]
    put(inbox, upsert("b"), now=1.0)
    assert not may_leave(inbox)
    inbox.done(batch)
    assert inbox.poll(1.0) == 6.0


# ---- folding


def test_upserts_of_a_row_become_one() -> None:
    inbox = an_inbox()
    put(inbox, upsert("a", output="1"), upsert("b"), upsert("a", output="2", input="x"))
    batch = taken(inbox)
    assert keys(batch) == ["a", "b"]
    first = batch.ops[0].change
    assert isinstance(first, Upsert)
    assert first.row == {"id": "a", "output": "2", "input": "x"}
    assert inbox.counts.coalesced == {"steps": 1}


def test_rows_of_two_tables_do_not_meet() -> None:
    inbox = an_inbox()
    put(inbox, upsert("a"), Upsert("elements", "a", {"id": "a"}, "t", 10))
    assert keys(taken(inbox)) == ["a", "a"]


def test_a_delete_ends_a_run_of_upserts() -> None:
    inbox = an_inbox()
    put(inbox, upsert("a"), delete("b"), upsert("a"), upsert("a"), delete("a"))
    assert keys(taken(inbox)) == ["a", "b", "a", "a"]


def test_nothing_folds_into_a_batch_that_has_left() -> None:
    inbox = an_inbox()
    put(inbox, upsert("a"))
    in_flight = taken(inbox)
    put(inbox, upsert("a"), now=LINGER)
    assert keys(in_flight) == ["a"]
    assert inbox.pending == 2


def test_whoever_waits_for_a_folded_row_waits_for_the_whole() -> None:
    inbox = an_inbox()
    for tickets in (("first",), (), ("third",)):
        inbox.offer(upsert("a"), 0.0, tickets)
    batch = taken(inbox)
    assert batch.ops[0].tickets == ("first", "third")


def test_the_queue_counts_the_bytes_that_a_fold_holds() -> None:
    first, second = changes.step({"id": "a", "output": "x" * 50}), changes.step({"id": "a", "input": "y"})
    inbox = an_inbox(max_bytes=10_000, max_batch_bytes=10_000)
    put(inbox, first, second)
    assert inbox.size == changes.fold(first, second).size
    batch = taken(inbox)
    inbox.done(batch)
    assert inbox.size == 0


def test_halves_keep_the_order_and_lose_nothing() -> None:
    inbox = an_inbox()
    put(inbox, *(upsert(key) for key in "abcde"))
    batch = taken(inbox)
    assert [keys(half) for half in batch.halves()] == [["a", "b"], ["c", "d", "e"]]
    assert sum(half.size for half in batch.halves()) == batch.size
    # A checkpoint says that everything up to it is in: the first half must not set it.
    assert [half.last_seq for half in batch.halves()] == [0, 5]


# ---- readers


def test_a_reader_waits_for_its_thread_alone() -> None:
    inbox = an_inbox()
    put(inbox, upsert("a", "one"), upsert("b", "two"), upsert("c", "two"))
    assert inbox.ticket_for("one") == 1
    assert inbox.ticket_for("two") == 3
    assert inbox.ticket_for("three") is None
    assert inbox.ticket_for(None) == 3


def test_a_change_of_an_unknown_thread_may_be_of_any() -> None:
    inbox = an_inbox()
    put(inbox, upsert("a", "one"), upsert("b", None))
    assert inbox.ticket_for("one") == inbox.ticket_for("three") == 2


def test_a_reader_of_what_is_written_does_not_wait() -> None:
    inbox = an_inbox()
    put(inbox, upsert("a", "one"))
    batch = taken(inbox)
    put(inbox, upsert("b", "two"))
    assert inbox.ticket_for("one") == 1
    inbox.done(batch)
    assert inbox.ticket_for("one") is None
    assert inbox.ticket_for("two") == 2


# ---- bounds


def test_a_full_queue_takes_nothing_until_a_batch_is_done() -> None:
    inbox = an_inbox(max_bytes=20)
    assert put(inbox, upsert("a"), upsert("b"), upsert("c")) == [1, 2, None]
    waiting = inbox.wait(upsert("c"), (), "token")
    assert inbox.admit(0.0, nowhere_else) == []
    batch = taken(inbox)
    inbox.done(batch)
    assert inbox.admit(0.0, nowhere_else) == [waiting]
    assert waiting.seq == 3
    assert inbox.waiting_size == 0


def test_nobody_passes_those_who_wait() -> None:
    inbox = an_inbox(max_bytes=20)
    put(inbox, upsert("a"))
    inbox.wait(upsert("large", size=15), (), None)
    assert inbox.offer(upsert("small", size=1), 0.0) is None
    small = inbox.wait(upsert("small", size=1), (), None)
    assert inbox.admit(0.0, nowhere_else) == []
    assert small.seq is None


def test_a_change_larger_than_the_queue_passes_when_it_is_alone() -> None:
    inbox = an_inbox(max_bytes=20, max_batch_bytes=20)
    assert inbox.offer(upsert("huge", size=500), 0.0) == 1
    assert inbox.offer(upsert("a"), 0.0) is None
    assert keys(taken(inbox, 0.0)) == ["huge"]


def test_the_waiting_room_is_as_large_as_the_queue() -> None:
    inbox = an_inbox(max_bytes=20)
    put(inbox, upsert("a"), upsert("b"))
    first = inbox.wait(upsert("c"), (), None)
    inbox.wait(upsert("d"), (), None)
    with pytest.raises(QueueFull):
        inbox.wait(upsert("e"), (), None)
    inbox.give_up(first)
    inbox.wait(upsert("e"), (), None)
    assert (inbox.waiting, inbox.waiting_size) == (2, 20)


def test_what_is_spilled_counts_as_accepted_and_comes_back_in_order() -> None:
    inbox = an_inbox(max_bytes=20)
    put(inbox, upsert("a"), upsert("b"))
    assert [inbox.spill(upsert("c")), inbox.spill(upsert("a"))] == [3, 4]
    assert (inbox.pending, inbox.counts.pending, inbox.size) == (4, 4, 20)
    before = inbox.wants_refill
    inbox.done(taken(inbox))
    assert (before, inbox.wants_refill) == (False, True)
    inbox.refill(3, upsert("c"), 9.0, ("ticket",))
    inbox.refill(4, upsert("a"), 9.0)
    batch = taken(inbox, 9.0 + LINGER)
    assert [(op.change.key, op.tickets) for op in batch.ops] == [("c", ("ticket",)), ("a", ())]
    inbox.done(batch)
    assert (inbox.applied_seq, inbox.pending, inbox.ticket_for(None)) == (4, 0, None)


def test_nothing_is_taken_past_what_is_spilled() -> None:
    inbox = an_inbox(max_bytes=20)
    put(inbox, upsert("a"), upsert("b"))
    inbox.spill(upsert("c"))
    inbox.done(taken(inbox))
    assert inbox.offer(upsert("d"), 0.0) is None
    door = inbox.wait(upsert("d"), (), None)
    assert inbox.admit(0.0, nowhere_else) == []
    assert inbox.admit(0.0, lambda change: True) == [door]
    assert (door.seq, door.spilled, inbox.spilled) == (4, True, 2)


def test_a_reader_waits_for_what_is_spilled_of_its_thread() -> None:
    inbox = an_inbox(max_bytes=10)
    put(inbox, upsert("a", "one"))
    inbox.spill(upsert("b", "two"))
    inbox.spill(upsert("c", "three"))
    assert [inbox.ticket_for(thread) for thread in ("one", "two", "three", "four", None)] == [
        1,
        2,
        3,
        None,
        3,
    ]


def test_what_another_process_has_written_is_handed_over() -> None:
    inbox = an_inbox(max_bytes=10)
    for key in "abcd":
        inbox.spill(upsert(key, key))
    inbox.lose(2)
    inbox.hand_over(3)
    assert (inbox.applied_seq, inbox.spilled, inbox.counts.handed_over, inbox.counts.pending) == (3, 1, 2, 1)
    assert [inbox.ticket_for(thread) for thread in "abcd"] == [None, None, None, 4]
    inbox.hand_over(4)
    assert (inbox.pending, inbox.counts.pending, inbox.ticket_for(None)) == (0, 0, None)


def test_what_is_lost_holds_nobody_up() -> None:
    inbox = an_inbox(max_bytes=10)
    put(inbox, upsert("a"))
    change = upsert("b")
    seq = inbox.spill(change)
    inbox.done(taken(inbox))
    assert inbox.applied_seq == 1
    inbox.lose(seq)
    assert (inbox.applied_seq, inbox.pending, inbox.ticket_for(None)) == (2, 0, None)
    assert inbox.counts.dropped == {"journal": 1}


def test_the_end_of_the_process_is_told_to_everybody_who_waits() -> None:
    inbox = an_inbox(max_bytes=30, max_rows=1)
    for key in "abc":
        inbox.offer(upsert(key), 0.0, (f"row {key}",))
    inbox.poll(0.0)
    inbox.wait(upsert("d"), ("row d",), "door d")
    inbox.wait(upsert("e"), (), "door e")
    assert sorted(inbox.abandon()) == ["door d", "door e", "row a", "row b", "row c", "row d"]


def test_it_says_how_it_is() -> None:
    inbox = an_inbox(max_bytes=20)
    put(inbox, upsert("a"), upsert("b"))
    inbox.wait(upsert("c"), (), None)
    assert repr(inbox) == "<Inbox 2 pending, 20 bytes, 1 waiting>"
    assert repr(taken(inbox)) == "<Batch 2 rows, 20 bytes, up to 2>"


def test_the_oldest_change_is_that_of_the_batch_being_written() -> None:
    inbox = an_inbox(max_rows=1)
    assert inbox.oldest() is None
    put(inbox, upsert("a"), now=1.0)
    put(inbox, upsert("b"), now=2.0)
    batch = taken(inbox, 3.0)
    assert inbox.oldest() == 1.0
    inbox.done(batch)
    assert inbox.oldest() == 2.0


# ---- anything in any order

row_keys = st.sampled_from("abc")
thread_ids = st.sampled_from(["t", "u", None])
MAX_BYTES = 3000
lengths = st.sampled_from([0, 300, MAX_BYTES + 1])


class AnyOrder(RuleBasedStateMachine):
    """Against a model: all changes in a list, and the values that they leave behind."""

    def __init__(self) -> None:
        super().__init__()
        self.inbox = an_inbox(max_bytes=MAX_BYTES, max_rows=4, max_batch_bytes=2000)
        self.now = 0.0
        self.number = 0
        self.accepted: list[Change] = []
        self.lost: set[int] = set()
        self.spilled: dict[int, Change] = {}
        self.door: list[Waiting] = []
        self.in_flight: Batch | None = None
        self.written: list[Change] = []

    def a_change(self, kind: str, key: str, thread: str | None, length: int) -> Change:
        self.number += 1
        if kind == "delete":
            return Delete("steps", key, thread)
        return changes.step({"id": key, "threadId": thread, "name": str(self.number), "output": "x" * length})

    @rule(
        kind=st.sampled_from(["upsert", "upsert", "delete"]),
        key=row_keys,
        thread=thread_ids,
        length=lengths,
        may_spill=st.booleans(),
    )
    def take(self, kind: str, key: str, thread: str | None, length: int, may_spill: bool) -> None:
        change = self.a_change(kind, key, thread, length)
        seq = self.inbox.offer(change, self.now)
        if seq is not None:
            assert not self.door
            assert not self.spilled
        elif may_spill and not self.door:
            seq = self.inbox.spill(change)
            self.spilled[seq] = change
        else:
            try:
                self.door.append(self.inbox.wait(change, (), object()))
            except QueueFull:
                assert sum(waiting.change.size for waiting in self.door) + change.size > MAX_BYTES
            return
        self.accepted.append(change)
        assert seq == len(self.accepted)

    @precondition(lambda self: self.door)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        self.inbox.give_up(self.door.pop(data.draw(st.integers(0, len(self.door) - 1))))

    @precondition(lambda self: self.inbox.wants_refill)
    @rule()
    def refill(self) -> None:
        for seq, change in [*self.spilled.items()]:
            if self.inbox.size and self.inbox.size + change.size > MAX_BYTES:
                return
            self.inbox.refill(seq, change, self.now)
            del self.spilled[seq]

    @precondition(lambda self: self.spilled)
    @rule()
    def lose(self) -> None:
        seq, _ = self.spilled.popitem()
        self.lost.add(seq)
        self.inbox.lose(seq)

    @rule(seconds=st.sampled_from([0.0, 1.0, LINGER]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def hurry(self) -> None:
        self.inbox.hurry()

    @precondition(lambda self: self.in_flight is None)
    @rule()
    def poll(self) -> None:
        ready = self.inbox.poll(self.now)
        if isinstance(ready, Batch):
            self.in_flight = ready
        elif ready is None:
            assert self.inbox.pending == len(self.spilled)
        else:
            assert self.now < ready <= self.now + LINGER

    @precondition(lambda self: self.in_flight is not None)
    @rule(may_spill=st.booleans())
    def done(self, may_spill: bool) -> None:
        assert self.in_flight is not None
        self.written += [op.change for op in self.in_flight.ops]
        self.inbox.counts.written["steps"] += len(self.in_flight.ops)
        self.inbox.done(self.in_flight)
        self.in_flight = None
        admitted = self.inbox.admit(self.now, lambda change: may_spill)
        assert admitted == self.door[: len(admitted)]
        del self.door[: len(admitted)]
        self.accepted += [waiting.change for waiting in admitted]
        self.spilled |= {
            waiting.seq: waiting.change for waiting in admitted if waiting.spilled and waiting.seq
        }

    @invariant()
    def what_is_written_is_what_was_accepted_up_to_there(self) -> None:
        up_to_there = enumerate(self.accepted[: self.inbox.applied_seq], 1)
        kept = [change for seq, change in up_to_there if seq not in self.lost]
        assert state(self.written) == state(kept)

    @invariant()
    def it_is_bounded(self) -> None:
        assert self.inbox.size <= MAX_BYTES or self.inbox.pending - len(self.spilled) == 1
        assert self.inbox.waiting_size == sum(waiting.change.size for waiting in self.door)
        assert self.inbox.waiting_size <= MAX_BYTES or len(self.door) == 1

    @invariant()
    def every_change_is_accounted_for(self) -> None:
        assert self.inbox.counts.accepted.total() == len(self.accepted) == self.inbox.accepted_seq
        assert self.inbox.counts.pending == self.inbox.pending
        assert self.inbox.spilled == len(self.spilled)

    @invariant()
    def a_reader_waits_for_the_last_change_of_its_thread(self) -> None:
        pending = [
            (seq, change)
            for seq, change in enumerate(self.accepted, 1)
            if seq > self.inbox.applied_seq and seq not in self.lost
        ]
        for thread in ("t", "u", None):
            waits_for = self.inbox.ticket_for(thread) or 0
            needed = [seq for seq, change in pending if thread is None or change.thread_id in (thread, None)]
            assert waits_for >= max(needed, default=0)
            if not self.spilled and not self.lost:
                assert waits_for == max(needed, default=0)

    @override
    def teardown(self) -> None:
        """Whatever has happened, everything can be written in the end."""
        for _ in range(self.number + 1):
            if self.inbox.wants_refill:
                self.refill()
            self.now += LINGER
            if self.in_flight is None:
                self.poll()
            if self.in_flight is not None:
                self.done(may_spill=False)
        assert self.inbox.applied_seq == self.inbox.accepted_seq
        self.what_is_written_is_what_was_accepted_up_to_there()
        assert self.inbox.size == 0
        assert self.inbox.ticket_for(None) is None


def state(changes_in_order: Iterable[Change]) -> dict[str, Any]:
    """The rows that these changes leave."""
    rows: dict[str, Any] = {}
    for change in changes_in_order:
        if isinstance(change, Delete):
            rows.pop(change.key, None)
        else:
            # When it was first sent, a fold notes; one by one, the database does.
            row = {name: value for name, value in change.row.items() if name != SENT_AT}
            rows[change.key] = {**rows.get(change.key, {}), **row}
    return rows


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=examples(100), stateful_step_count=40)
