"""With `writer=external`: what another process has written of this one's journal. See `forebay drain --watch`.

It stands where the worker stands otherwise, and only looks how far the other one has come.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

import anyio

from forebay.database.store import Store
from forebay.errors import TransientError
from forebay.journal.journal import Journal
from forebay.journal.ownership import is_written_out
from forebay.pipeline.queue import Inbox

# How often to look, in seconds: while a reader waits, and while nobody does.
_POLL_HURRIED = 0.001
_POLL = 0.02
# For so long nobody may hold the journal before that counts as a failure: a daemon takes a moment to find it.
_PATIENCE = 5.0
_LOOK_FOR_DAEMON = 1.0
_MARK_INTERVAL = 1.0


class Owner(Protocol):
    """Whose changes are handed over; see the engine."""

    @property
    def journal(self) -> Journal | None:
        """Where they are, if there were any."""

    @property
    def store(self) -> Store:
        """Where they go."""

    def batch_settled(self) -> None:
        """Some of them are written."""

    def handover_failed(self, error: TransientError) -> None:
        """They can't be written at present."""


class Handover:
    """Runs until it is cancelled. `failure` is why nothing is written at present, None while it is."""

    def __init__(self, inbox: Inbox, owner: Owner, clock: Callable[[], float]) -> None:
        self.failure: TransientError | None = None
        self._inbox = inbox
        self._owner = owner
        self._clock = clock
        self._work = anyio.Event()
        self._hurry = anyio.Event()
        # By when everything up to a `seq` had come: what is not written is at least as old as the first of these says.
        self._marks: deque[tuple[int, float]] = deque()
        self._seen_daemon = 0.0
        self._looked = 0.0

    def notice(self, *, now: bool) -> None:
        """Something was journaled; `now`: somebody waits for it."""
        self._work.set()
        if now:
            self._hurry.set()

    async def run(self) -> None:
        """Tell the owner of every step forward."""
        self._seen_daemon = self._clock()
        while True:
            journal = self._owner.journal
            if journal is None or not self._inbox.spilled:
                self._work, self._hurry = anyio.Event(), anyio.Event()
                await self._work.wait()
                self._seen_daemon = self._clock()
                continue
            self._look(journal)
            if self._hurry.is_set():
                await anyio.sleep(_POLL_HURRIED)
            else:
                with anyio.move_on_after(_POLL):
                    await self._hurry.wait()

    def _look(self, journal: Journal) -> None:
        assert journal.progress is not None
        applied_seq = journal.progress.applied
        if applied_seq >= journal.durable_seq and journal.is_quiet:
            applied_seq = self._inbox.accepted_seq  # what is not on the disk was refused to its caller
        if applied_seq > self._inbox.applied_seq:
            self._owner.store.handed_over(journal.id, journal.progress.applied)
            self._inbox.hand_over(applied_seq)
            self._owner.batch_settled()
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
        self.failure = failure
        if failure is not None:
            self._owner.handover_failed(failure)
