"""Compares what people have seen with what the database has: lost, stale and misplaced."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from forebay import LocalStorageClient
from forebay.database.urls import parse_url
from loadtests import texts
from loadtests.seen import Chat, Turn

What = Literal["thread", "question", "tool output", "answer", "feedback", "file"]
Fault = Literal["missing", "stale", "misplaced"]
_EXAMPLES = 20

_FOREBAY_QUERIES = {
    "threads": "SELECT CAST(t.id AS TEXT) AS id, u.identifier AS person"
    ' FROM threads t LEFT JOIN users u ON u.id = t."userId"',
    "steps": 'SELECT CAST(id AS TEXT) AS id, CAST("threadId" AS TEXT) AS thread_id, output,'
    ' "createdAt" AS position FROM steps',
    "feedback": 'SELECT CAST("forId" AS TEXT) AS step_id, value FROM feedbacks',
    "files": 'SELECT CAST("forId" AS TEXT) AS step_id, name, "objectKey" AS key FROM elements',
}
# It reads a thread in the order of startTime.
_CHAINLIT_QUERIES = {
    "threads": 'SELECT t.id, u.identifier AS person FROM "Thread" t LEFT JOIN "User" u ON u.id = t."userId"',
    "steps": 'SELECT id, "threadId" AS thread_id, output, "startTime" AS position FROM "Step"',
    "feedback": 'SELECT "stepId" AS step_id, value FROM "Feedback"',
    "files": 'SELECT "stepId" AS step_id, name, "objectKey" AS key FROM "Element"',
}


@dataclass(frozen=True)
class StoredStep:
    """A step in the database. `position` is what its thread is ordered by."""

    thread_id: str | None
    output: str | None
    position: datetime | None


@dataclass
class Stored:
    """What a database has: people by thread, steps by id, feedback by step, files by step and name."""

    threads: dict[str, str | None] = field(default_factory=dict)
    steps: dict[str, StoredStep] = field(default_factory=dict)
    feedback: dict[str, int] = field(default_factory=dict)
    files: dict[tuple[str, str], bytes | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Finding:
    """Something that is not as it was seen."""

    what: What
    fault: Fault
    id: str


@dataclass
class Audit:
    """How much was looked for, and what is wrong with it."""

    expected: dict[What, int]
    findings: list[Finding]

    @property
    def passed(self) -> bool:
        """Whether everything is as it was seen."""
        return not self.findings

    def count(self, what: What, *faults: Fault) -> int:
        """How many of a kind have one of the faults; without faults, any."""
        return sum(one.what == what and (not faults or one.fault in faults) for one in self.findings)

    def summary(self) -> dict[str, Any]:
        """For JSON: the counts, and a few of the findings."""
        counts = {
            what: {
                "expected": number,
                **{fault: self.count(what, fault) for fault in ("missing", "stale", "misplaced")},
            }
            for what, number in self.expected.items()
        }
        examples = [vars(one) for one in self.findings[:_EXAMPLES]]
        return {"passed": self.passed, "counts": counts, "examples": examples}


def compare(chats: list[Chat], stored: Stored) -> Audit:
    """What of the chats is missing, not as it was shown last, or in another place."""
    chats = [chat for chat in chats if chat.turns]
    expected: dict[What, int] = {
        "thread": len(chats),
        "question": sum(len(chat.turns) for chat in chats),
        "tool output": sum(len(chat.turns) for chat in chats) * len(texts.TOOLS),
        "answer": sum(len(chat.turns) for chat in chats),
        "feedback": sum(len(chat.feedback) for chat in chats),
        "file": sum(len(chat.files) for chat in chats),
    }
    return Audit(expected, [finding for chat in chats for finding in _of_chat(chat, stored)])


def _of_chat(chat: Chat, stored: Stored) -> Iterator[Finding]:
    if chat.thread_id not in stored.threads:
        yield Finding("thread", "missing", chat.thread_id)
    elif stored.threads[chat.thread_id] != chat.person:
        yield Finding("thread", "misplaced", chat.thread_id)
    yield from _of_steps(chat, stored)
    for step_id, value in chat.feedback.items():
        if stored.feedback.get(step_id) != value:
            yield Finding("feedback", "stale" if step_id in stored.feedback else "missing", step_id)
    for step_id, name in chat.files.items():
        content = stored.files.get((step_id, name))
        if content != texts.file_content(name):
            yield Finding("file", "missing" if content is None else "stale", step_id)


def _of_steps(chat: Chat, stored: Stored) -> Iterator[Finding]:
    latest = datetime.min
    for what, step_id, output in (one for turn in chat.turns for one in _shown(turn)):
        step = stored.steps.get(step_id)
        if step is None:
            yield Finding(what, "missing", step_id)
            continue
        if step.output != output:
            yield Finding(what, "stale", step_id)
        if step.thread_id != chat.thread_id or step.position is None or step.position < latest:
            yield Finding(what, "misplaced", step_id)
        else:
            latest = step.position


def _shown(turn: Turn) -> Iterator[tuple[What, str, str]]:
    """A turn's steps in their order, with what they say."""
    yield "question", turn.question_id, turn.question
    for name in texts.TOOLS:
        # A tool's step that was not shown is looked for in vain.
        yield (
            "tool output",
            turn.tools.get(name, f"{turn.question_id} {name}"),
            texts.found_by(name, turn.question),
        )
    yield "answer", turn.answer_id, texts.answer(turn.question)


async def read(layer: str, url: str, files: Path) -> Stored:
    """What a layer's database and its folder of files have."""
    queries = _CHAINLIT_QUERIES if layer == "chainlit" else _FOREBAY_QUERIES
    engine = create_async_engine(parse_url(url)[0])
    try:
        async with engine.connect() as connection:
            rows = {
                name: (await connection.execute(sa.text(query))).mappings().all()
                for name, query in queries.items()
            }
    finally:
        await engine.dispose()
    content = _contents(files)
    return Stored(
        threads={row["id"]: row["person"] for row in rows["threads"]},
        steps={
            row["id"]: StoredStep(row["thread_id"], row["output"], _moment(row["position"]))
            for row in rows["steps"]
        },
        feedback={row["step_id"]: int(row["value"]) for row in rows["feedback"]},
        files={(row["step_id"], row["name"]): content(row["key"]) for row in rows["files"]},
    )


def _moment(value: str | datetime | None) -> datetime | None:
    """UTC without saying so, from text or from the database."""
    return datetime.fromisoformat(value.removesuffix("Z")) if isinstance(value, str) else value


def _contents(folder: Path) -> Callable[[str | None], bytes | None]:
    client = LocalStorageClient(folder)

    def content(key: str | None) -> bytes | None:
        found = client.find(key) if key else None
        return found.path.read_bytes() if found else None

    return content
