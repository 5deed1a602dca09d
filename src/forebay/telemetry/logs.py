"""Log lines: one an event, `what happened key=value …`, where the last value may have spaces; and few under faults.

No line holds a chat's content, a password or a user's id. What others chose, as a file's name, can't end a line or
drive a terminal. Each module has a logger of its own below `forebay`.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from typing_extensions import override

from forebay.errors import told
from forebay.primitives.visible import visible

# Every logger there is. A filter on `forebay` would not see what its children log.
_MODULES = (
    *("blobs", "drain", "engine", "journal", "migrations", "reads", "recovery", "replica", "secured"),
    *("server", "store", "uploads", "writer"),
)
LOGGERS = ("forebay", *(f"forebay.{name}" for name in _MODULES))
BURST = 5
WINDOW = 30.0  # seconds
_MOST_EVENTS = 1000


@dataclass(slots=True)
class _Event:
    since: float
    seen: int = 0
    suppressed: int = 0


class Limit(logging.Filter):
    """Lets through `burst` lines of one event in a `window`; the next one after that says how many it left out.

    One event is one message with the same errors in it, whatever its other values are. What is below a warning,
    and what is critical, is never left out: the one is asked for, the other is told once.
    """

    def __init__(
        self, burst: int = BURST, window: float = WINDOW, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__()
        self._burst = burst
        self._window = window
        self._clock = clock
        self._events: OrderedDict[tuple[str, ...], _Event] = OrderedDict()

    @override
    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is written, and with what in it: errors say where the database is, and nothing is unseen."""
        allowed = self._allows(record)
        if isinstance(record.args, tuple):
            record.args = tuple(map(_shown, record.args))
        if record.exc_info:
            record.exc_text = _where(record.exc_info[1])
            record.exc_info = None
        return allowed

    def _allows(self, record: logging.LogRecord) -> bool:
        if not logging.WARNING <= record.levelno < logging.CRITICAL:
            return True
        now = self._clock()
        event = self._event(record, now)
        event.seen += 1
        if event.seen > self._burst:
            event.suppressed += 1
            return False
        if event.suppressed and isinstance(record.args, tuple):
            # In front of the others: the last value may have spaces.
            record.msg = _with_field("suppressed=%d", str(record.msg))
            record.args = (event.suppressed, *record.args)
            event.suppressed = 0
        return True

    def _event(self, record: logging.LogRecord, now: float) -> _Event:
        arguments = record.args if isinstance(record.args, tuple) else ()
        errors = (str(value) for value in arguments if isinstance(value, Exception))
        key = (record.name, str(record.msg), *errors)
        event = self._events.pop(key, None) or _Event(now)
        if now - event.since >= self._window:
            event.since, event.seen = now, 0
        self._events[key] = event
        if len(self._events) > _MOST_EVENTS:
            self._events.popitem(last=False)
        return event

    def clear(self) -> None:
        """Forget what was written."""
        self._events.clear()


def _shown(value: object) -> object:
    """A value of a line; numbers stay numbers, for `%d`."""
    if isinstance(value, BaseException):
        return visible(told(value))
    return value if isinstance(value, int | float | None) else visible(str(value))


def _where(error: BaseException | None) -> str | None:
    """Where an exception comes from, without its message, which may quote a row."""
    if error is None:
        return None
    return "".join((*traceback.format_tb(error.__traceback__), type(error).__name__))


def _with_field(field: str, message: str) -> str:
    """The message with a field in front of its others, or at its end where it has none."""
    what, separator, _ = message.partition("=")
    if not separator:
        return f"{message} {field}"
    words = what.rpartition(" ")[0]
    return f"{words} {field} {message[len(words) + 1 :]}"


@cache
def limit_repeats() -> Limit:
    """Limit every logger of forebay's, once; what limits them."""
    limit = Limit()
    for name in LOGGERS:
        logging.getLogger(name).addFilter(limit)
    return limit
