"""Where recent pages ended, so that the next one goes on from there."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from chainlit.types import ThreadFilter

_MOST = 10_000


class Cursor(NamedTuple):
    """The last thread of a page, and which list the page was of: one list's end is another's middle."""

    user_id: str | None
    search: str | None
    feedback: int | None
    thread_id: str | None

    @classmethod
    def of(cls, filters: ThreadFilter, thread_id: str | None) -> Cursor:
        """That of a page of the threads that `filters` keeps."""
        return cls(filters.userId, filters.search or None, filters.feedback, thread_id)


class Positions:
    """Where the last threads of recent pages stood.

    A page goes on from there, also when the thread has been deleted or has moved up since. After a restart,
    and in another process, the thread's present place counts.
    """

    def __init__(self) -> None:
        self._activities: OrderedDict[Cursor, str] = OrderedDict()

    def remember(self, cursor: Cursor, activity: str) -> None:
        """The thread stood at this activity."""
        self._activities[cursor] = activity
        self._activities.move_to_end(cursor)
        if len(self._activities) > _MOST:
            self._activities.popitem(last=False)

    def of(self, cursor: Cursor) -> str | None:
        """The activity at which the thread stood; None where that is not known."""
        return self._activities.get(cursor)
