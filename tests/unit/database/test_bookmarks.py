"""What a standby must have: by a model of a database whose standby has any part of its commits, from the first on."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from forebay.database.bookmarks import Bookmarks
from forebay.database.checkpoint import Checkpoint, Position

JOURNALS = ("own", "lane", "mark")


@dataclass
class _Database:
    """Commits in their order; each says what it was, and where the checkpoints stood then."""

    stands: list[dict[str, Position]] = field(default_factory=lambda: [{}])

    def commit(self, checkpoint: Checkpoint | None = None) -> int:
        """How many there are then."""
        moved = {checkpoint.journal_id: checkpoint.after} if checkpoint is not None else {}
        self.stands.append({**self.stands[-1], **moved})
        return len(self.stands)

    def answers(self, replayed: int, bookmarks: Bookmarks) -> bool:
        """Whether a standby that has so many of them would answer a read."""
        there = self.stands[replayed - 1]
        return bookmarks.complete and all(
            journal_id in there and (there[journal_id].seq > position.seq or there[journal_id] == position)
            for journal_id, position in bookmarks.positions.items()
        )


@dataclass
class _Step:
    checkpoint: Checkpoint
    committed: int | None = None


@given(st.data())
def test_a_standby_answers_only_with_all_that_had_been_committed(data: st.DataObject) -> None:
    database, bookmarks = _Database(), Bookmarks()
    tokens = iter(range(1, 1000))
    at = {journal_id: Position() for journal_id in JOURNALS}
    under_way: dict[str, _Step] = {}
    written = (
        database.commit()
    )  # what a process before this one wrote: after how many is all known to be there?
    for _ in range(data.draw(st.integers(1, 30), label="events")):
        possible = [("unmarked", "")]
        for journal_id in JOURNALS:
            step = under_way.get(journal_id)
            # It is repeated where its answer is lost, or it never arrived.
            kinds = ("begin",) if step is None else ("answer" if step.committed else "commit", "repeat")
            possible += [(kind, journal_id) for kind in kinds]
        kind, journal_id = data.draw(st.sampled_from(possible), label="event")
        step = under_way.get(journal_id)
        if kind == "unmarked":
            written = max(written, database.commit())
            bookmarks.committed_unmarked()
        elif step is None:
            seq = at[journal_id].seq + data.draw(st.integers(0, 1), label="parts stay")
            step = _Step(Checkpoint(journal_id, at[journal_id], Position(seq, next(tokens))))
            under_way[journal_id] = step
            bookmarks.begin(step.checkpoint)
        elif kind == "commit":
            step.committed = database.commit(step.checkpoint)
        elif kind == "repeat":
            bookmarks.begin(step.checkpoint)
        else:
            assert step.committed is not None
            written = max(written, step.committed)
            at[journal_id] = step.checkpoint.after
            bookmarks.committed(step.checkpoint)
            del under_way[journal_id]
        for replayed in range(1, written):
            assert not database.answers(replayed, bookmarks)
    last = Checkpoint("mark", at["mark"], Position(at["mark"].seq + 1, next(tokens)))
    bookmarks.begin(last)
    database.commit(last)
    bookmarks.committed(last)
    assert database.answers(len(database.stands), bookmarks)
    assert len(bookmarks.positions) <= len(JOURNALS)


def _taken(bookmarks: Bookmarks, journal_id: str, seq: int, token: int) -> None:
    step = Checkpoint(journal_id, Position(), Position(seq, token))
    bookmarks.begin(step)
    bookmarks.committed(step)


def test_a_later_checkpoint_stands_for_those_before() -> None:
    bookmarks = Bookmarks()
    for number in range(100):
        _taken(bookmarks, f"lane {number}", 1, 1)
    _taken(bookmarks, "own", 1, 1)
    assert bookmarks.positions == {"own": Position(1, 1)}


def test_what_is_written_again_is_needed_whole() -> None:
    """The database has gone back, and a standby of the former one may still be there."""
    bookmarks = Bookmarks()
    _taken(bookmarks, "own", 10, 1)
    _taken(bookmarks, "own", 7, 2)
    assert bookmarks.positions == {"own": Position(10, 1)}
    _taken(bookmarks, "own", 10, 3)
    assert bookmarks.positions == {"own": Position(10, 3)}


def test_another_process_tells_the_number_alone() -> None:
    bookmarks = Bookmarks()
    bookmarks.reached("own", 7)
    assert not bookmarks.complete  # it may have begun before this process
    assert bookmarks.positions["own"] < Position(7, 0)
    assert bookmarks.positions["own"].seq + 1 == 7
