"""Log lines: their form, everywhere, and how many of them a fault makes."""

from __future__ import annotations

import ast
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from forebay.errors import QueueFull, TransientError
from forebay.telemetry.logs import LOGGERS, Limit, limit_repeats

_SOURCE = Path(__file__).parents[3] / "src" / "forebay"
_LEVELS = ("debug", "info", "warning", "error", "critical", "exception")
_FIELD = r"\w+=%(?:s|d|\.?\d*f)s?"
# What happened, then fields; what follows the last one, as a remedy, belongs to its value.
_LINE = re.compile(rf"[A-Za-z ,]+(?: {_FIELD})*(?: {_FIELD}; [^%]+| \w+=[^%]+)?")
_FREE = {"another process is migrating this database; waiting for it"}


def _calls() -> Iterator[tuple[str, ast.Call]]:
    for path in sorted(_SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == "logger"
                and node.func.attr in _LEVELS
            ):
                yield f"{path.name}:{node.lineno}", node


def test_every_line_says_what_happened_and_then_its_fields() -> None:
    messages = {place: ast.literal_eval(call.args[0]) for place, call in _calls()}
    assert len(messages) > 10
    assert {
        place: text for place, text in messages.items() if not _LINE.fullmatch(text) and text not in _FREE
    } == {}


def test_a_traceback_is_for_faults_of_forebays_own() -> None:
    for place, call in _calls():
        if any(keyword.arg == "exc_info" for keyword in call.keywords):
            assert isinstance(call.func, ast.Attribute)
            assert call.func.attr == "critical", place


def test_every_logger_is_limited() -> None:
    found = {
        name
        for path in _SOURCE.rglob("*.py")
        for name in re.findall(r'^logger = logging\.getLogger\("([\w.]+)"\)', path.read_text(), re.MULTILINE)
    }
    assert found <= set(LOGGERS)
    for name in LOGGERS:
        assert limit_repeats() in logging.getLogger(name).filters


class _Logger:
    """A logger with a limit on a clock of the test's own; `lines` are those that came through."""

    def __init__(self) -> None:
        self.now = 100.0
        self.lines: list[str] = []
        self.limit = Limit(burst=2, window=10.0, clock=lambda: self.now)

    def log(self, message: str, *arguments: object, level: int = logging.ERROR) -> None:
        record = logging.LogRecord("forebay.x", level, "", 0, message, arguments, None)
        if self.limit.filter(record):
            self.lines.append(record.getMessage())


def test_a_storm_is_a_few_lines_and_a_count() -> None:
    logger = _Logger()
    for _ in range(100):
        logger.log("change refused table=%s reason=%s", "steps", QueueFull("too slow"))
    assert logger.lines == ["change refused table=steps reason=too slow"] * 2
    logger.now += 10
    logger.log("change refused table=%s reason=%s", "steps", QueueFull("too slow"))
    assert logger.lines[2:] == ["change refused suppressed=98 table=steps reason=too slow"]
    logger.log("change refused table=%s reason=%s", "steps", QueueFull("too slow"))
    assert logger.lines[3:] == ["change refused table=steps reason=too slow"], "told once"


def test_another_error_is_another_event() -> None:
    logger = _Logger()
    for reason in ("too slow", "too large"):
        for _ in range(3):
            logger.log("change refused reason=%s", QueueFull(reason))
    assert [line.rpartition("=")[2] for line in logger.lines] == ["too slow"] * 2 + ["too large"] * 2


@pytest.mark.parametrize("level", [logging.INFO, logging.CRITICAL])
def test_what_was_asked_for_and_what_is_told_once_is_never_left_out(level: int) -> None:
    logger = _Logger()
    for _ in range(5):
        logger.log("call method=%s", "get_thread", level=level)
    assert len(logger.lines) == 5


def test_a_line_without_fields_gets_its_count_too() -> None:
    logger = _Logger()
    for _ in range(3):
        logger.log("something happened")
    logger.now += 10
    logger.log("something happened")
    assert logger.lines[2] == "something happened suppressed=1"


def test_so_many_events_are_remembered_and_no_more() -> None:
    logger = _Logger()
    for number in range(5000):
        logger.log("change refused reason=%s", QueueFull(str(number)))
    assert len(logger.limit._events) == 1000


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What forebay.server logs, through the filter that all of forebay's loggers have."""
    limit_repeats().clear()
    return caplog


def test_what_others_chose_can_not_end_a_line_or_drive_a_terminal(lines: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("forebay.server")
    logger.warning("journal left alone path=%s reason=%s rows=%d", "a\nb\x1b[2J", ValueError("x\u202ey"), 3)
    assert lines.messages == ["journal left alone path=a\\nb\\x1b[2J reason=x\\u202ey rows=3"]


def test_the_log_says_where_the_database_is_which_its_errors_do_not(lines: pytest.LogCaptureFixture) -> None:
    error = TransientError("the database can't be reached", location="postgresql://me:***@there/chat")
    assert "there" not in str(error)
    logging.getLogger("forebay.server").error("writes deferred reason=%s", error)
    assert lines.messages == [
        "writes deferred reason=the database can't be reached [postgresql://me:***@there/chat]"
    ]


def test_a_traceback_says_where_and_not_what(lines: pytest.LogCaptureFixture) -> None:
    secret = "sesame"
    try:
        raise ValueError(f"open {secret}")
    except ValueError:
        logging.getLogger("forebay.server").exception("element not written reason=%s", "ValueError")
    assert "test_a_traceback_says_where_and_not_what" in lines.text
    assert "open sesame" not in lines.text
