"""What people have seen in their chats, on its way from those who chat to the audit. Standard library only."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Turn:
    """A question that was answered before the person's eyes. `tools` is the ids of the tools' steps, by name.

    `first_token` and `took` are in seconds from the sending of the question.
    """

    question_id: str
    question: str
    tools: dict[str, str]
    answer_id: str
    first_token: float
    took: float


@dataclass
class Chat:
    """A thread as its person knows it. `feedback`: values by answer's id; `files`: names by question's id."""

    person: str
    thread_id: str = ""
    turns: list[Turn] = field(default_factory=list)
    feedback: dict[str, int] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)


def dump(chats: list[Chat]) -> list[dict[str, Any]]:
    """As JSON's values."""
    return [asdict(chat) for chat in chats]


def parse(values: list[dict[str, Any]]) -> list[Chat]:
    """What `dump` has made."""
    return [Chat(**{**chat, "turns": [Turn(**turn) for turn in chat["turns"]]}) for chat in values]


def save(path: Path, chats: list[Chat]) -> None:
    """Write them to a file."""
    path.write_text(json.dumps(dump(chats)))


def load(path: Path) -> list[Chat]:
    """Read what `save` has written."""
    return parse(json.loads(path.read_text()))


def turn_of(
    question_id: str, question: str, shown: list[dict[str, Any]], first_token: float, took: float
) -> Turn:
    """A turn from the steps that it has shown. Raises LookupError where there is no answer."""
    tools = {step["name"]: step["id"] for step in shown if step["type"] == "tool"}
    answers = [step["id"] for step in shown if step["type"] == "assistant_message"]
    if not answers:
        raise LookupError("no answer was shown")
    return Turn(question_id, question, tools, answers[-1], first_token, took)
