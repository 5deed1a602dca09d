"""Threads that were deleted: what still comes for one of them is dropped here, rather than sent to the database."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterable

from typing_extensions import override

from forebay.model.changes import Change, Delete
from forebay.model.schema import THREAD_MADE_AT
from forebay.telemetry.counters import Counts

logger = logging.getLogger("forebay")

_MOST = 100_000  # the database knows of all of them


class Tombstones:
    """The threads that this process last deleted, or found to be deleted by another one."""

    def __init__(self, counts: Counts) -> None:
        self._counts = counts
        self._threads: OrderedDict[str, None] = OrderedDict()

    @override
    def __repr__(self) -> str:
        return f"<Tombstones {len(self._threads)}>"

    def add(self, thread_ids: Iterable[str]) -> None:
        """These threads are deleted."""
        for thread_id in thread_ids:
            self._threads[thread_id] = None
            self._threads.move_to_end(thread_id)
            if len(self._threads) > _MOST:
                self._threads.popitem(last=False)

    def drops(self, change: Change) -> bool:
        """Whether its thread was deleted and must stay so; it is counted then. A delete is carried out again."""
        thread_id = change.thread_id
        if thread_id is None or thread_id not in self._threads or isinstance(change, Delete):
            return False
        if THREAD_MADE_AT in change.row:  # perhaps anew, which the database knows
            del self._threads[thread_id]
            return False
        self._counts.accepted[change.table] += 1
        self._counts.dropped["deleted_thread"] += 1
        logger.warning("change dropped table=%s reason=its thread was deleted", change.table)
        return True
