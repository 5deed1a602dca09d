"""Changes that do not fit into the queue lie elsewhere, and come back in their order."""

from __future__ import annotations

from forebay.model.changes import Change, step
from forebay.pipeline.queue import Batch, Inbox
from forebay.telemetry.counters import Counts


def _change(key: str, thread_id: str = "t") -> Change:
    return step({"id": key, "threadId": thread_id, "output": "x" * 100})


def _inbox(fits: int) -> Inbox:
    size = _change("a").size
    return Inbox(max_bytes=fits * size, batch_max_rows=100, batch_max_bytes=10**6, linger=0, counts=Counts())


def _write(inbox: Inbox) -> list[str]:
    """Do as the writer does; the rows' keys in their order."""
    batch = inbox.poll(0)
    assert isinstance(batch, Batch)
    inbox.counts.written["steps"] += len(batch.ops)
    inbox.done(batch)
    return [op.change.key for op in batch.ops]


def test_nothing_overtakes_what_was_spilled() -> None:
    inbox = _inbox(fits=2)
    assert [inbox.offer(_change(key), 0) for key in "ab"] == [1, 2]
    assert inbox.offer(_change("c"), 0) is None
    assert inbox.spill(_change("c")) == 3
    assert _write(inbox) == ["a", "b"]
    assert inbox.offer(_change("d"), 0) is None, "there is room, but c comes first"
    assert inbox.spill(_change("d")) == 4
    assert (inbox.pending, inbox.counts.pending) == (2, 2)

    wanted = [inbox.wants_refill]
    inbox.refill(3, _change("c"), 0)
    inbox.refill(4, _change("d"), 0)
    assert [*wanted, inbox.wants_refill] == [True, False]
    assert inbox.offer(_change("e"), 0) is None, "it is full again"
    assert _write(inbox) == ["c", "d"]
    assert (inbox.applied_seq, inbox.pending) == (4, 0)
    assert inbox.offer(_change("e"), 0) == 5


def test_a_lost_change_is_counted_and_keeps_nobody_waiting() -> None:
    inbox = _inbox(fits=1)
    inbox.offer(_change("a"), 0)
    lost = inbox.spill(_change("b"))
    assert _write(inbox) == ["a"]
    inbox.lose(lost)
    assert (inbox.applied_seq, inbox.counts.dropped["journal"], inbox.counts.pending) == (2, 1, 0)
    assert inbox.ticket_for("t") is None


def test_those_at_the_door_are_let_in_elsewhere_while_the_queue_is_full() -> None:
    inbox = _inbox(fits=2)
    for key in "xy":
        inbox.offer(_change(key), 0)
    waiting = [inbox.wait(_change(key), (), key) for key in "bc"]
    room = iter([True, False])
    assert inbox.admit(0, lambda _change: next(room)) == waiting[:1]
    assert (waiting[0].seq, waiting[0].spilled, waiting[1].seq, inbox.waiting) == (3, True, None, 1)
