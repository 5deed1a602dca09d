"""Changes that are not taken: each is counted by its reason, and told in the log."""

from __future__ import annotations

import logging

from forebay.errors import ForebayError, QueueFull
from forebay.model.changes import Change
from forebay.telemetry.counters import Counts

logger = logging.getLogger("forebay.engine")


class Refusals:
    """Notes in `counts` and in the log that a change is refused; its caller raises the error."""

    def __init__(self, counts: Counts) -> None:
        self._counts = counts

    def note(self, error: ForebayError) -> None:
        """A change that could not be made, brought or journaled."""
        self._counts.refused[type(error).__name__] += 1
        logger.error("change refused reason=%s", error)

    def note_full(self, change: Change, error: QueueFull, reason: str = "queue_full") -> QueueFull:
        """A change for which there is no room; the error, to be raised."""
        self._counts.refused[reason] += 1
        logger.error("change refused table=%s reason=%s", change.table, error)
        return error

    def note_cancelled(self) -> None:
        """A change whose caller has gone before there was room."""
        self._counts.refused["cancelled"] += 1
