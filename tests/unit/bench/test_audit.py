"""The load's audit finds what is missing, altered, and in another place."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from loadtests import seen, texts
from loadtests.audit import Stored, StoredStep, compare
from loadtests.seen import Chat, Turn

_NOON = datetime(2026, 1, 1, 12)


def _turn(number: int) -> Turn:
    tools = {name: f"{name}{number}" for name in texts.TOOLS}
    return Turn(f"q{number}", f"question {number}", tools, f"a{number}", 0.1, 0.2)


@pytest.fixture
def chat() -> Chat:
    return Chat("somebody", "t", [_turn(0), _turn(1)], {"a1": 0}, {"q0": "file.txt"})


@pytest.fixture
def stored() -> Stored:
    outputs = {}
    for number in range(2):
        question = f"question {number}"
        outputs[f"q{number}"] = question
        outputs |= {f"{name}{number}": texts.found_by(name, question) for name in texts.TOOLS}
        outputs[f"a{number}"] = texts.answer(question)
    steps = {
        step_id: StoredStep("t", output, _NOON + timedelta(milliseconds=position))
        for position, (step_id, output) in enumerate(outputs.items())
    }
    files: dict[tuple[str, str], bytes | None] = {("q0", "file.txt"): texts.file_content("file.txt")}
    return Stored({"t": "somebody"}, steps, {"a1": 0}, files)


def _faults(chat: Chat, stored: Stored) -> list[tuple[str, str, str]]:
    return [(one.what, one.fault, one.id) for one in compare([chat], stored).findings]


def test_everything_is_as_it_was_seen(chat: Chat, stored: Stored) -> None:
    audit = compare([chat], stored)
    assert audit.passed
    assert audit.expected == {
        "thread": 1,
        "question": 2,
        "tool output": 4,
        "answer": 2,
        "feedback": 1,
        "file": 1,
    }


@pytest.mark.parametrize(
    ("step_id", "what"), [("q1", "question"), ("search0", "tool output"), ("a0", "answer")]
)
def test_a_removed_and_an_altered_step_are_found(chat: Chat, stored: Stored, step_id: str, what: str) -> None:
    stored.steps[step_id] = replace(stored.steps[step_id], output=texts.beginning("question 0"))
    assert _faults(chat, stored) == [(what, "stale", step_id)]
    del stored.steps[step_id]
    assert _faults(chat, stored) == [(what, "missing", step_id)]


def test_a_step_in_another_thread_is_found(chat: Chat, stored: Stored) -> None:
    stored.steps["a0"] = replace(stored.steps["a0"], thread_id="another")
    assert _faults(chat, stored) == [("answer", "misplaced", "a0")]


def test_a_step_that_has_moved_is_found(chat: Chat, stored: Stored) -> None:
    stored.steps["a1"] = replace(stored.steps["a1"], position=_NOON)
    assert _faults(chat, stored) == [("answer", "misplaced", "a1")]


def test_an_answer_before_its_question_is_found_between_equal_times(chat: Chat, stored: Stored) -> None:
    stored.steps["q0"] = replace(stored.steps["q0"], position=stored.steps["search0"].position)
    assert _faults(chat, stored) == []
    stored.steps["q0"] = replace(stored.steps["q0"], position=stored.steps["read0"].position)
    assert _faults(chat, stored) == [("tool output", "misplaced", "search0")]


def test_a_tool_that_was_not_shown_is_missed(chat: Chat, stored: Stored) -> None:
    del chat.turns[0].tools["read"]
    assert _faults(chat, stored) == [("tool output", "missing", "q0 read")]


def test_lost_and_altered_feedback_is_found(chat: Chat, stored: Stored) -> None:
    stored.feedback["a1"] = 1
    assert _faults(chat, stored) == [("feedback", "stale", "a1")]
    stored.feedback.clear()
    assert _faults(chat, stored) == [("feedback", "missing", "a1")]


def test_lost_and_altered_files_are_found(chat: Chat, stored: Stored) -> None:
    stored.files["q0", "file.txt"] = b"half"
    assert _faults(chat, stored) == [("file", "stale", "q0")]
    stored.files["q0", "file.txt"] = None  # a row without content
    assert _faults(chat, stored) == [("file", "missing", "q0")]


def test_a_lost_thread_and_anothers_are_found(chat: Chat, stored: Stored) -> None:
    stored.threads["t"] = None
    assert _faults(chat, stored) == [("thread", "misplaced", "t")]
    stored.threads.clear()
    assert _faults(chat, stored) == [("thread", "missing", "t")]


def test_what_was_seen_survives_its_file(chat: Chat, tmp_path: Path) -> None:
    seen.save(tmp_path / "seen.json", [chat])
    assert seen.load(tmp_path / "seen.json") == [chat]
