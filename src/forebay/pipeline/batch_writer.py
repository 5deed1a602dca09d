"""Getting a batch into the database, whatever it answers.

An outage repeats the same batch, for ever and with backoff: nothing overtakes it. A row that the
database refuses is found by halving the batch in order, and only that row is given up, to the dead letters.
When nearly every row is refused, something else is wrong: then there is a pause before each further one.
What takes too long, waits for somebody's lock or is answered no for now, while the database takes something else, is
written in halves too, down to a row; the thread of that one is held up, and waits in a lane of its own.

Each statement moves the journal's checkpoint on from where the one before has left it. Where the database has gone
back, as one does that took over from a primary which it lagged behind, it is given again what the journal still has.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, TypeVar

import anyio
from typing_extensions import override

from forebay.database import error_codes
from forebay.database.checkpoint import Checkpoint, CheckpointMoved, Position
from forebay.database.store import LeftOut
from forebay.errors import DatabaseError, JournalError, RowError, TransientError
from forebay.journal.dead_letters import Unfit
from forebay.model.changes import Change, Delete, Upsert
from forebay.pipeline.cursor import Cursor
from forebay.pipeline.queue import Batch, Op, batch_of
from forebay.pipeline.tombstones import Tombstones
from forebay.primitives.backoff import Backoff
from forebay.telemetry.collector import Metrics
from forebay.telemetry.counters import Counts

logger = logging.getLogger("forebay.writer")

_Answer = TypeVar("_Answer")

# An outage is told when it begins and ends, and this often in between, in seconds.
_REMINDER = 30.0
# Refused rows make a pause when they are at least so many, and such a share of the recent ones.
_REFUSED_MIN = 100
_REFUSED_SHARE = 0.9
_RECENT_ROWS = 200
PAUSE = 10.0  # seconds
_AGAIN_BYTES = 256 * 1024
# Of the time limit, what a batch may take, and a part of one where something takes too long: the others wait for it.
_SHARE, _CAREFUL_SHARE = 1 / 4, 1 / 8
# Two writers that meet cost one of them a try. Nobody hears of so many, in so many seconds.
_QUIET_TRIES = 5
_QUIET_SPELL = 3.0


class Applies(Protocol):
    """What the writer needs of a store."""

    async def apply(
        self,
        changes: Sequence[Change],
        checkpoint: Checkpoint | None,
        *,
        late: bool = False,
        share: float = 1.0,
    ) -> frozenset[str | LeftOut]:
        """Write changes in order, all or none; the ids of the deleted threads, and the rows that are left out.

        `share`: of the time limit, which part it may take.
        """

    async def position(self, journal_id: str) -> Position:
        """Where a journal stands."""

    @property
    def has_writer(self) -> bool:
        """Whether the connection that batches are written on is open, as far as is known."""


class Parking(Protocol):
    """Where changes of threads that the database holds up wait by themselves. See `lanes`."""

    @property
    def open(self) -> Mapping[str, object]:
        """What is held up, by thread."""

    @property
    def has_room(self) -> bool:
        """Whether one thread more may be held up."""

    def key_of(self, change: Change) -> str | None:
        """With which thread a change has to wait, or None."""

    async def park(self, ops: Sequence[Op], error: DatabaseError | None = None) -> bool:
        """Have changes of one thread wait; False where it waits no more.

        Raises JournalError or a DatabaseError; then they do not.
        """


class Keep(Protocol):
    """Where refused changes go. See `letterbox`."""

    async def __call__(self, change: Change, error: RowError, cursor: Cursor | None, /) -> bool:
        """Keep a change; False: it waits until it can be kept. Raises JournalError, and Unfit where it never can."""


class Writer:
    """Writes batches, one at a time. `failure` is why it can't at present, None while it works.

    `keep` stores a refused change and raises JournalError where it can't, nor may more of them wait; `keep_is_vital`:
    then the change must not be let go. `pending` tells the log how much waits. `on_failure` is called with the error of
    each attempt that will be repeated, and with None when one is answered again. `lanes`, set afterwards: where what is
    held up goes; without, it is tried on.
    """

    def __init__(
        self,
        store: Applies,
        counts: Counts,
        metrics: Metrics,
        tombstones: Tombstones,
        clock: Callable[[], float],
        *,
        keep: Keep,
        keep_is_vital: bool = False,
        pending: Callable[[], int],
        on_failure: Callable[[DatabaseError | None], None],
        backoff: Backoff | None = None,
        pause: float = PAUSE,
        is_aside: bool = False,
    ) -> None:
        self.failure: DatabaseError | JournalError | None = None
        self.lanes: Parking | None = None
        self._store = store
        self._counts = counts
        self._metrics = metrics
        self._tombstones = tombstones
        self._clock = clock
        self._keep = keep
        self._keep_is_vital = keep_is_vital
        self._pending = pending
        self._on_failure = on_failure
        self._backoff = backoff or Backoff()
        self._pause = pause
        self._is_aside = is_aside
        self._failures = 0
        self._attempted_at = 0.0  # when the present attempt began, on the clock
        self._refusals = _Refusals()
        self._failing_since = 0.0
        self._reminded = 0.0

    @override
    def __repr__(self) -> str:
        return f"<Writer {'failing' if self.failure else 'working'}>"

    def aside(
        self,
        store: Applies,
        *,
        pending: Callable[[], int],
        on_failure: Callable[[DatabaseError | None], None],
        backoff: Backoff,
    ) -> Writer:
        """A writer of what waits by itself: its trouble is not the process's, so neither log nor counts tell it."""
        return Writer(
            store,
            self._counts,
            self._metrics,
            self._tombstones,
            self._clock,
            keep=self._keep,
            keep_is_vital=self._keep_is_vital,
            pending=pending,
            on_failure=on_failure,
            backoff=backoff,
            is_aside=True,
        )

    async def write(
        self, batch: Batch, cursor: Cursor | None = None, *, late: Callable[[], bool] = lambda: False
    ) -> None:
        """Write a batch, however long it takes, and give up the rows that the database refuses.

        `cursor`: of the journal whose checkpoint goes with it; `late`, asked at each attempt: whether what is newer in
        the database stays.
        """
        task = _Task(cursor, late)
        while True:
            try:
                await self._write(task, task.remaining(batch))
                await self._conclude(task, batch)
                return
            except CheckpointMoved as moved:
                assert cursor is not None
                if (part := task.left_behind.get(moved.position)) is not None:
                    cursor.reached(moved.position)  # it got through after its time
                    task.pass_over(batch, part)
                    self._settle(task, part, frozenset())
                else:
                    task.passed.clear()
                    await self._realign(cursor, moved)

    async def _write(self, task: _Task, part: Batch) -> None:
        had_rows = bool(part.ops)
        while True:
            if self.lanes is not None and self.lanes.open:
                await self._divert(task, part)
            part = task.remaining(part)
            if had_rows and not part.ops and not part.last_seq:
                return
            try:
                dead = await self._apply(task, part)
            except RowError as error:
                await self._isolate(task, part, error)
                return
            except _HeldUp as held:
                if await self._go_round(task, part, held.error):
                    return
            else:
                self._settle(task, part, dead)
                return

    async def _divert(self, task: _Task, part: Batch) -> None:
        """Park what has to wait with a thread that is held up."""
        assert self.lanes is not None
        waiting: dict[str, list[Op]] = {}
        for op in task.remaining(part).ops:
            if (key := self.lanes.key_of(op.change)) is not None:
                waiting.setdefault(key, []).append(op)
        for ops in waiting.values():
            await self._park(task, ops)

    async def _park(self, task: _Task, ops: Sequence[Op]) -> None:
        """Have what must not overtake what waits already wait, too."""
        assert self.lanes is not None
        # One whose place on the disk is not sure must not be passed over.
        if await self.until_answered(partial(self.lanes.park, ops)):
            self._note_parked(task, ops)

    async def _try_to_park(self, task: _Task, op: Op, error: DatabaseError) -> None:
        """Have a row that is held up wait by itself; where it can't, it is tried again, as it may be free by then."""
        assert self.lanes is not None
        try:
            await self.lanes.park([op], error)
        except (DatabaseError, JournalError) as failed:
            await self._wait(failed)
        else:
            self._note_parked(task, [op])

    def _note_parked(self, task: _Task, ops: Sequence[Op]) -> None:
        task.is_split = True
        for op in ops:
            task.given_up.add(id(op))
            if not task.is_first(op):  # it is written once more
                self._counts.accepted[op.change.table] += 1

    async def _go_round(self, task: _Task, part: Batch, error: DatabaseError) -> bool:
        """Write a part that is held up, while the database takes something else, in halves; park a row by itself.

        False where it is to be tried again: as a whole, or without what is parked.
        """
        is_first = not task.is_careful
        task.is_careful = True
        # One time-out may be a connection's that a firewall forgot; in an outage nothing is anybody's.
        if not await self._takes_something(task, part) or is_first:
            return False
        if len(part.ops) > 1:
            await self._write_halves(task, part)
            return True
        if self.lanes is not None and self.lanes.has_room:
            await self._try_to_park(task, part.ops[0], error)
        else:
            await self._wait(error)
        return False

    async def _takes_something(self, task: _Task, part: Batch) -> bool:
        """Whether the database takes a step of the checkpoint at once. What was tried before can't get through then."""
        failures = self._failures
        if task.cursor is not None:
            await self._apply(task, Batch(part.oldest))
            task.left_behind.clear()
        return self._failures == failures

    async def _write_halves(self, task: _Task, part: Batch) -> None:
        task.is_split = True
        for half in part.halves():
            await self._write(task, half)

    async def _conclude(self, task: _Task, batch: Batch) -> None:
        """Say that all of the batch is accounted for, where its last row was given up."""
        if task.cursor is None:
            return
        if batch.last_seq > task.cursor.at.seq and not task.cursor.is_held:
            await self._apply(task, Batch(batch.oldest, last_seq=batch.last_seq))
        task.cursor.written(batch.last_seq)

    def _settle(self, task: _Task, part: Batch, gone: frozenset[str | LeftOut]) -> None:
        self._refusals.note_accepted(len(part.ops))
        reasons = self._left_out(part, gone) if gone else {}
        for place, op in enumerate(part.ops):
            if not task.is_first(op):
                continue
            if (reason := reasons.get(place)) is not None:
                self._counts.dropped[reason] += 1
            else:
                self._counts.written[op.change.table] += 1
            # One that came late may have left what was said since: the database knows.
            if isinstance(op.change, Delete) and op.change.table == "threads" and not task.late():
                self._tombstones.add((op.change.key,))
            if op.tickets:
                op.settle(None)

    def _left_out(self, batch: Batch, gone: frozenset[str | LeftOut]) -> dict[int, str]:
        """Why which of the batch's rows were not written, by their place."""
        dead = frozenset(one for one in gone if isinstance(one, str))
        self._tombstones.add(dead)
        reasons = {one.place: one.reason for one in gone if isinstance(one, LeftOut)}
        if not reasons:  # threads alone stand for all of their rows
            dropped = (isinstance(op.change, Upsert) and op.change.thread_id in dead for op in batch.ops)
            reasons = {place: "deleted_thread" for place, is_dropped in enumerate(dropped) if is_dropped}
        for reason, rows in sorted(Counter(reasons.values()).items()):
            logger.warning("rows left out reason=%s rows=%d", reason, rows)
        return reasons

    async def _isolate(self, task: _Task, part: Batch, error: RowError) -> None:
        if len(part.ops) > 1:
            await self._write_halves(task, part)
            return
        task.is_split = True
        # The pause is a thing between operator and database: one person's texts must not bring it about.
        is_somebodys = error_codes.is_of_a_value(error)
        if self._refusals.are_nearly_all and not is_somebodys:
            await self._wait_out(error)
            try:
                dead = await self._apply(task, part)
            except RowError as again:
                error = again
            except _HeldUp:
                await self._write(task, part)
                return
            else:
                self._settle(task, part, dead)
                return
        if not is_somebodys:
            self._refusals.note_refused()
        task.given_up.add(id(part.ops[0]))
        await self._give_up(task, part.ops[0], error)

    async def look_back(self, cursor: Cursor, *, doubted: bool = False) -> None:
        """Now and then, while nothing is written: is the database still where it was left?

        Whoever has lost its connection may meet another server behind the same name; `doubted`: somebody has, it seems.
        """
        if cursor.at.seq and (doubted or not self._store.has_writer):
            with contextlib.suppress(DatabaseError):
                await self.verify(cursor)

    async def verify(self, cursor: Cursor) -> None:
        """Look whether the database is where it was left, and give it again what it lacks. Raises a DatabaseError."""
        position = await self._store.position(cursor.journal_id)
        if position != cursor.at:
            await self._realign(cursor, CheckpointMoved(position))

    async def _realign(self, cursor: Cursor, moved: CheckpointMoved) -> None:
        """Go on from where the database stands; what was acknowledged is never discarded on trust."""
        position, known_seq = moved.position, cursor.written_seq
        if cursor.has_tried(position):
            cursor.reached(position)
            return
        if not cursor.is_ahead_of(position):
            self._counts.checkpoint_alarms["not_ours"] += 1
            journal_id = cursor.journal_id
            cursor.renew()
            logger.critical(
                "checkpoint not ours journal=%s stored=%d known=%d goes_on_as=%s reason=somebody else writes it too",
                *(journal_id, position.seq, known_seq, cursor.journal_id),
            )
            return
        self._counts.checkpoint_alarms["gone_back"] += 1
        logger.critical(
            "database gone back journal=%s stored=%d known=%d; what it lacks is written again",
            *(cursor.journal_id, position.seq, known_seq),
        )
        cursor.went_back(position)
        missing = known_seq - position.seq - await self._write_again(cursor, known_seq)
        cursor.given_again()
        if missing > 0:
            self._counts.checkpoint_alarms["not_kept"] += 1
            logger.critical(
                "changes lost changes=%d reason=the database had them, and the journal has not kept them",
                missing,
            )

    async def _write_again(self, cursor: Cursor, up_to_seq: int) -> int:
        """Write what the database has lost, beneath what is newer in it; how many changes that were."""
        again = 0
        while cursor.source is not None and cursor.written_seq < up_to_seq:
            records = await cursor.source.read(cursor.written_seq, _AGAIN_BYTES)
            records = [record for record in records if record[0] <= up_to_seq]
            if not records:
                break
            await self.write(batch_of(records, self._clock(), self._counts), cursor, late=lambda: True)
            again += len(records)
            self._counts.replayed += len(records)
        return again

    async def _wait_out(self, error: RowError) -> None:
        """Give the operator time, rather than empty the queue into the dead letters."""
        refused = TransientError(
            f"nearly every row is refused, so there are {self._pause:g} s between two tries: {error}",
            sqlstate=error.sqlstate,
        )
        self._fail(refused)
        self._counts.paused = True
        try:
            await anyio.sleep(self._pause)
        finally:
            self._counts.paused = False

    async def _give_up(self, task: _Task, op: Op, error: RowError) -> None:
        async def attempt() -> bool | Unfit:
            try:
                return await self._keep(op.change, error, task.cursor)
            except Unfit as unfit:
                return unfit

        try:
            is_kept = await (self.until_answered(attempt) if self._keep_is_vital else attempt())
            if isinstance(is_kept, Unfit):
                raise is_kept
        except JournalError as lost:
            self._counts.dropped["no_dead_letter"] += 1
            logger.error(
                "row lost table=%s refused_for=%s reason=%s", op.change.table, reason_of(error), lost
            )
        else:
            logger.error("row refused table=%s reason=%s", op.change.table, error)
            if is_kept:
                self._counts.dead_lettered[op.change.table, reason_of(error)] += 1
        op.settle(error)

    async def _apply(self, task: _Task, part: Batch) -> frozenset[str | LeftOut]:
        """Try until the database answers yes, or no to a row.

        Raises RowError for the latter, CheckpointMoved where the journal is not where the cursor says, _HeldUp
        where a smaller part may get through.
        """
        share = self._share(task, part)
        # The same for every attempt, which tells whether one before this went through.
        step = task.cursor.step(part.last_seq) if task.cursor is not None else None

        async def attempt() -> frozenset[str | LeftOut]:
            started = self._clock()
            changes = [op.change for op in part.ops]
            dead = await self._store.apply(changes, step, late=task.late(), share=share)
            now = self._clock()
            if part.ops or not self._is_aside:
                self._metrics.batch_written(len(part.ops), part.size, now - started, now - part.oldest)
            return dead

        try:
            dead = await self.until_answered(attempt, may_go_round=bool(part.ops))
        except _HeldUp:
            if step is not None:
                task.left_behind[step.after] = part
            raise
        if task.cursor is not None and step is not None:
            task.cursor.reached(step.after)
        return dead

    def _share(self, task: _Task, part: Batch) -> float:
        """A row that has nowhere else to go may take its time."""
        if len(part.ops) == 1 and task.is_careful and not (self.lanes is not None and self.lanes.has_room):
            return 1.0
        return _CAREFUL_SHARE if task.is_careful or not part.ops else _SHARE

    async def until_answered(
        self, attempt: Callable[[], Awaitable[_Answer]], *, may_go_round: bool = False
    ) -> _Answer:
        """Repeat an attempt for as long as there is no answer. Raises RowError, and _HeldUp if it `may_go_round`."""
        quiet = _Quiet(self._clock)
        while True:
            self._attempted_at = self._clock()
            try:
                answer = await attempt()
            except (RowError, CheckpointMoved):
                self._recovered()
                raise
            except (DatabaseError, JournalError) as error:
                if quiet.lasts(error):
                    self._note_retry(error)
                    await anyio.sleep(quiet.backoff.next_delay())
                    continue
                if (
                    may_go_round
                    and isinstance(error, DatabaseError)
                    and error_codes.is_of_what_is_written(error)
                ):
                    self._note_retry(error)
                    raise _HeldUp(error) from None
                await self._wait(error)
                continue
            self._recovered()
            return answer

    async def _wait(self, error: DatabaseError | JournalError) -> None:
        self._fail(error)
        await anyio.sleep(self._backoff.next_delay())

    def _fail(self, error: DatabaseError | JournalError) -> None:
        now = self._clock()
        begins = self.failure is None
        if begins:
            self._failing_since = now
        self.failure = error
        self._failures += 1
        self._note_retry(error)
        self._on_failure(error if isinstance(error, DatabaseError) else TransientError(str(error)))
        if self._is_aside:
            return
        self._metrics.flush_duration.observe(now - self._attempted_at, "failed")
        if begins or now - self._reminded >= _REMINDER:
            self._reminded = now
            logger.error(
                "writes deferred pending=%d for=%.0fs reason=%s",
                self._pending(),
                now - self._failing_since,
                error,
            )

    def _note_retry(self, error: Exception) -> None:
        if not self._is_aside:
            self._counts.retries[type(error).__name__] += 1

    def _recovered(self) -> None:
        if self.failure is None:
            return
        if not self._refusals.are_nearly_all and not self._is_aside:
            logger.warning("writes resumed after=%.1fs", self._clock() - self._failing_since)
        self.failure = None
        self._backoff.reset()
        self._on_failure(None)


def reason_of(error: RowError) -> str:
    """What a refused row is counted under."""
    return error.sqlstate or "encoding"


@dataclass(slots=True)
class _Task:
    """One batch on its way, which may be split, and written a second time to a database that went back."""

    cursor: Cursor | None
    late: Callable[[], bool]
    is_split: bool = False
    is_careful: bool = False  # something was held up
    given_up: set[int] = field(default_factory=set)  # rows that wait or are letters, by `id`
    # Where attempts led to that were not waited for: one may get through all the same.
    left_behind: dict[Position, Batch] = field(default_factory=dict)
    passed: set[int] = field(default_factory=set)  # rows that are in, as far as is known
    _settled: set[int] = field(default_factory=set)

    def is_first(self, op: Op) -> bool:
        """Whether a row was not settled before."""
        if not self.is_split:
            return True
        known = id(op) in self._settled
        self._settled.add(id(op))
        return not known

    def remaining(self, batch: Batch) -> Batch:
        """The batch without the rows that were given up, or got through after their time."""
        if not self.given_up and not self.passed:
            return batch
        ops = [op for op in batch.ops if id(op) not in self.given_up and id(op) not in self.passed]
        return Batch(batch.oldest, ops, batch.last_seq, sum(op.change.size for op in ops), batch.threads)

    def pass_over(self, batch: Batch, part: Batch) -> None:
        """Everything up to the end of a part is in, since the parts are written in order."""
        last = part.ops[-1]
        for op in batch.ops:
            self.passed.add(id(op))
            if op is last:
                return


class _HeldUp(Exception):
    """A part of a batch does not get through, which may be for what is in it."""

    def __init__(self, error: DatabaseError) -> None:
        super().__init__()
        self.error = error


class _Quiet:
    """How often an attempt that the database rolled back for the sake of another one is repeated without a word."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.backoff = Backoff(base=0.002, cap=0.05)
        self._clock = clock
        self._since = clock()

    def lasts(self, error: Exception) -> bool:
        """Whether the attempt that failed so is to be repeated at once."""
        return (
            isinstance(error, DatabaseError)
            and error_codes.is_passing(error)
            and self.backoff.attempts < _QUIET_TRIES
            and self._clock() - self._since < _QUIET_SPELL
        )


class _Refusals:
    """How many of the recent rows the database has refused."""

    def __init__(self) -> None:
        self._accepted = 0.0
        self._refused = 0.0

    @property
    def are_nearly_all(self) -> bool:
        return self._refused >= _REFUSED_MIN and self._refused >= _REFUSED_SHARE * (
            self._accepted + self._refused
        )

    def note_accepted(self, rows: int) -> None:
        self._accepted += rows
        self._fade()

    def note_refused(self) -> None:
        self._refused += 1
        self._fade()

    def _fade(self) -> None:
        """What is long ago counts less."""
        total = self._accepted + self._refused
        if total > _RECENT_ROWS:
            self._accepted *= _RECENT_ROWS / total
            self._refused *= _RECENT_ROWS / total
