"""The journals in a folder, one by one: what can't be dealt with at present is parked, and the others go on."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from typing_extensions import override

from forebay.journal.orphan import Orphan, adopt, journal_paths, reason_of
from forebay.journal.ownership import is_owned, is_written_out, sweep
from forebay.primitives.backoff import Backoff

logger = logging.getLogger("forebay.journal")

# Seconds between two tries at a journal, at first and at most.
_FIRST_RETRY, _LAST_RETRY = 20.0, 600.0


@dataclass(slots=True)
class Parked:
    """Why a journal is left for a while, and until when on the clock."""

    reason: str
    until: float = 0.0
    backoff: Backoff = field(default_factory=lambda: Backoff(_FIRST_RETRY, _LAST_RETRY))


class Journals:
    """The journals in `folder` that other processes have left, or append to.

    `parked` holds those that can't be read, decoded or removed, by id. Each is tried again with backoff, and by the
    next process at its start. `left_alone`: the ids of those that are another database's, as far as was looked last.
    Calls block.
    """

    def __init__(self, folder: Path, clock: Callable[[], float]) -> None:
        self.parked: dict[str, Parked] = {}
        self.left_alone: frozenset[str] = frozenset()
        self._folder = folder
        self._clock = clock

    @override
    def __repr__(self) -> str:
        return f"<Journals in {self._folder}, {len(self.parked)} parked>"

    def are_there(self) -> bool:
        """Whether there is a journal that nobody writes out and no living process appends to. Raises no error."""
        with contextlib.suppress(OSError):
            paths = journal_paths(self._folder)
            return any(not is_written_out(path) and not is_owned(path) for path in paths)
        return True

    def adopt(
        self,
        location: str | None,
        database_id: str | None,
        *,
        owned: bool = False,
        but: Sequence[str] = (),
    ) -> Orphan | None:
        """See `orphan.adopt`; those that are parked are left alone until it is time. Raises no error."""
        now = self._clock()
        waiting = [journal_id for journal_id, parked in self.parked.items() if parked.until > now]
        others: set[str] = set()
        try:
            if self._folder.is_dir():
                sweep(self._folder)
            orphan = adopt(
                self._folder,
                location,
                database_id=database_id,
                owned=owned,
                but=(*but, *waiting),
                on_error=self._not_taken,
                on_left=others.add,
            )
        except OSError as error:
            logger.error("journals not looked for in=%s reason=%s", self._folder, reason_of(error))
            return None
        if orphan is None:  # all were looked at
            self.left_alone = frozenset(others)
        return orphan

    def park(self, orphan: Orphan, reason: str) -> None:
        """Leave a journal for a while, for this process or another."""
        orphan.release()
        self._park(orphan.id, reason)

    def finished(self, orphan: Orphan) -> None:
        """A journal is written out, and gone."""
        self.parked.pop(orphan.id, None)

    def _not_taken(self, journal_id: str, error: OSError) -> None:
        self._park(journal_id, f"a journal can't be taken ({reason_of(error)})")

    def _park(self, journal_id: str, reason: str) -> None:
        parked = self.parked.setdefault(journal_id, Parked(reason))
        delay = _FIRST_RETRY + parked.backoff.next_delay()
        parked.reason, parked.until = reason, self._clock() + delay
        logger.error("journal parked journal=%s retry_in=%.0fs reason=%s", journal_id, delay, reason)
