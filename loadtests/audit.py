"""What people saw, beside what is in the database: nothing that was shown may be missing, altered or misplaced."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import asyncpg

_STEPS = {
    "chainlit": 'SELECT id, "threadId" AS thread_id, output, "createdAt"::text AS created FROM "Step"',
    "": 'SELECT id::text, "threadId"::text AS thread_id, output, "createdAt" AS created FROM steps',
}
_FEEDBACKS = {
    "chainlit": 'SELECT "stepId" AS step_id, value FROM "Feedback"',
    "": 'SELECT "forId"::text AS step_id, value FROM feedbacks',
}
_ELEMENTS = {
    "chainlit": 'SELECT "threadId" AS thread_id, name FROM "Element"',
    "": 'SELECT "threadId"::text AS thread_id, name FROM elements',
}


@dataclass
class Turn:
    """What one person saw of one turn. `steps` are the outputs by id, in the order in which they were begun."""

    thread_id: str
    answer_id: str
    steps: dict[str, str]
    rated: int | None = None
    file: str | None = None

    def to_line(self) -> str:
        """A line of JSON."""
        return json.dumps(asdict(self))


@dataclass
class Stored:
    """What the database has: steps by id, feedback values by step, and the names of each thread's files."""

    steps: Mapping[str, Mapping[str, Any]]
    feedbacks: Mapping[str, float] = field(default_factory=dict)
    files: Mapping[str, Sequence[str]] = field(default_factory=dict)


def load_turns(path: Path) -> list[Turn]:
    """The turns in a file of such lines."""
    return [Turn(**json.loads(line)) for line in path.read_text().splitlines()]


async def load_stored(url: str, layer: str) -> Stored:
    """What a layer has put into its database."""
    kind = layer if layer == "chainlit" else ""
    connection = await asyncpg.connect(url)
    try:
        steps = {row["id"]: dict(row) for row in await connection.fetch(_STEPS[kind])}
        feedbacks = {row["step_id"]: row["value"] for row in await connection.fetch(_FEEDBACKS[kind])}
        files: dict[str, list[str]] = {}
        for row in await connection.fetch(_ELEMENTS[kind]):
            files.setdefault(row["thread_id"], []).append(row["name"])
    finally:
        await connection.close()
    return Stored(steps, feedbacks, files)


def faults(turns: Iterable[Turn], stored: Stored) -> dict[str, int]:
    """How many things are not as they were shown, by what is wrong with them; empty when all is well."""
    found: Counter[str] = Counter()
    last: dict[str, str] = {}  # by thread: when its newest answer so far was made
    for turn in turns:
        for key, output in turn.steps.items():
            kind = "answers" if key == turn.answer_id else "outputs"
            row = stored.steps.get(key)
            if row is None:
                found[f"{kind} missing"] += 1
            elif row["output"] != output:
                found[f"{kind} stale"] += 1
            elif row["thread_id"] != turn.thread_id:
                found[f"{kind} in another thread"] += 1
        answer = stored.steps.get(turn.answer_id)
        if answer is not None:
            created = answer["created"] or ""
            found["answers out of order"] += created < last.get(turn.thread_id, "")
            last[turn.thread_id] = created
        if turn.rated is not None:
            found["feedback missing"] += stored.feedbacks.get(turn.answer_id) != turn.rated
        if turn.file is not None:
            found["files missing"] += turn.file not in stored.files.get(turn.thread_id, ())
    return {name: count for name, count in found.items() if count}
