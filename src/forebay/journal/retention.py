"""How long a journal keeps what the database has: a database that went back can be given it again meanwhile."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from forebay.journal.log import Log

# Shares of the time to keep, at which to look and to begin a new segment; only whole segments can be removed.
_LOOK_SHARE, _SEGMENT_SHARE = 1 / 12, 1 / 6
_SEGMENT_MIN_AGE = 1.0  # seconds
_IDLE_LOOK_MIN = 0.25  # seconds


class Retention:
    """Removes a log's segments when the database has had them for `keep` seconds, or beyond `keep_bytes`.

    What was applied leaves the disk 4/3 of `keep` later, and two seconds, at the latest, also while nothing is
    written. `kept_seq`: everything behind it is still there. Runs in the thread that writes the log.
    """

    def __init__(self, log: Log, keep: float, keep_bytes: int, clock: Callable[[], float]) -> None:
        self.kept_seq = 0
        self.went_back = False  # set when the database may lack again what it was said to have
        self._log = log
        self._keep = keep
        self._keep_bytes = keep_bytes
        self._clock = clock
        self._look_at = 0.0
        self._segments = 0  # that were there at the last look
        self._active = 0  # the first seq of the segment that is written to, and since when it is known
        self._active_since = 0.0

    @property
    def wait(self) -> float | None:
        """How long the thread may sleep, in seconds; None for as long as it likes, as nothing is on the disk."""
        if not self._log.closed and not self._log.first_seq:
            return None
        return max(_IDLE_LOOK_MIN, self._look_at - self._clock())

    def look(self, applied_seq: int) -> None:
        """Remove what is due, if it is time to look. `applied_seq`: what the database has, as far as is known."""
        now = self._clock()
        if now < self._look_at and len(self._log.closed) <= self._segments:
            return
        self._look_at = now + self._keep * _LOOK_SHARE
        self._end_segment(applied_seq, now)
        self._note_applied(applied_seq, now)
        with contextlib.suppress(OSError):  # it is tried again
            self._remove(now)
        self._segments = len(self._log.closed)

    def _end_segment(self, applied_seq: int, now: float) -> None:
        """Close a segment that is old enough, so that what the database has of it can go."""
        first_seq = self._log.first_seq
        if first_seq != self._active:
            self._active, self._active_since = first_seq, now
        old = now - self._active_since >= max(_SEGMENT_MIN_AGE, self._keep * _SEGMENT_SHARE)
        if first_seq and first_seq <= applied_seq and old:
            self._log.end_segment()

    def _note_applied(self, applied_seq: int, now: float) -> None:
        again, self.went_back = self.went_back, False
        for segment in self._log.closed:
            if segment.last_seq > applied_seq:
                segment.applied_at = None
            elif segment.applied_at is None or again:
                segment.applied_at = now

    def _remove(self, now: float) -> None:
        kept = sum(segment.size for segment in self._log.closed if segment.applied_at is not None)
        while self._log.closed:
            oldest = self._log.closed[0]
            if oldest.applied_at is None:
                return
            if now - oldest.applied_at < self._keep and kept <= self._keep_bytes:
                return
            self.kept_seq = oldest.last_seq
            self._log.remove_oldest()
            kept -= oldest.size
