"""With `writer=external`: what another process has written of this one's journal. See `forebay drain --watch`.

It stands where the worker stands otherwise, and only looks how far the other one has come.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import anyio

from forebay.database.store import Store
from forebay.errors import TransientError
from forebay.journal.journal import Journal
from forebay.journal.ownership import is_written_out
from forebay.pipeline.alarm import Alarm
from forebay.pipeline.barrier import Barrier
from forebay.pipeline.intake import Intake
from forebay.pipeline.own_journal import OwnJournal
from forebay.pipeline.queue import Inbox

# How often to look, in seconds: while a reader waits, and while nobody does.
_POLL_HURRIED = 0.001
_POLL = 0.02
# For so long nobody may hold the journal before that counts as a failure: a daemon takes a moment to find it.
_PATIENCE = 5.0
_LOOK_FOR_DAEMON = 1.0
_MARK_INTERVAL = 1.0


class Handover:
    """Runs until it is cancelled, and tells intake and barrier of every step forward."""

    def __init__(
        self,
        inbox: Inbox,
        intake: Intake,
        own: OwnJournal,
        barrier: Barrier,
        store: Store,
        alarm: Alarm,
        clock: Callable[[], float],
    ) -> None:
        self._inbox = inbox
        self._intake = intake
        self._own = own
        self._barrier = barrier
        self._store = store
        self._alarm = alarm
        self._clock = clock
        # By when everything up to a `seq` had come: what is not written is at least as old as the first of these says.
        self._marks: deque[tuple[int, float]] = deque()
        self._seen_daemon = 0.0
        self._looked = 0.0

    async def run(self) -> None:
        """Look again and again, while something is not written."""
        self._seen_daemon = self._clock()
        while True:
            journal = self._own.journal
            if journal is None or not self._inbox.spilled:
                self._alarm.hurried = False
                await self._alarm.rest(None)
                self._seen_daemon = self._clock()
                continue
            self._look(journal)
            if self._alarm.hurried:
                await anyio.sleep(_POLL_HURRIED)
            else:
                await self._alarm.rest(self._clock() + _POLL)

    def _look(self, journal: Journal) -> None:
        assert journal.progress is not None
        applied_seq = journal.progress.applied
        if applied_seq >= journal.durable_seq and journal.is_quiet:
            applied_seq = self._inbox.accepted_seq  # what is not on the disk was refused to its caller
        if applied_seq > self._inbox.applied_seq:
            self._store.handed_over(journal.id, journal.progress.applied)
            self._inbox.hand_over(applied_seq)
            self._intake.batch_settled()
        self._note_age()
        self._check_daemon(journal, failing=journal.progress.failing)

    def _note_age(self) -> None:
        marks, now, accepted_seq = self._marks, self._clock(), self._inbox.accepted_seq
        while marks and marks[0][0] <= self._inbox.applied_seq:
            marks.popleft()
        is_new = accepted_seq > (marks[-1][0] if marks else self._inbox.applied_seq)
        if is_new and (not marks or now - marks[-1][1] >= _MARK_INTERVAL):
            marks.append((accepted_seq, now))
        self._inbox.oldest_elsewhere = marks[0][1] if marks else None

    def _check_daemon(self, journal: Journal, *, failing: bool) -> None:
        now = self._clock()
        if now - self._looked >= _LOOK_FOR_DAEMON:
            self._looked = now
            if is_written_out(journal.path):
                self._seen_daemon = now
        failure = None
        if now - self._seen_daemon > _PATIENCE:
            failure = TransientError(
                f"nobody writes the journals out: run `forebay drain {journal.path.parent} --watch`"
            )
        elif failing:
            failure = TransientError("`forebay drain` can't write to the database; its log says why")
        self._barrier.note(failure)
