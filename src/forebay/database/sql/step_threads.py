"""The threads of feedbacks that name none: their steps'."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import orjson
import sqlalchemy as sa

from forebay.database.sql.statement import Compiler, Statement
from forebay.model import changes
from forebay.model.changes import Upsert
from forebay.model.schema import steps


class StepThreads(Compiler):
    """Statements that come before a batch's upserts, in its transaction, where a feedback names no thread."""

    @cached_property
    def step_threads(self) -> Statement:
        """The id and the thread of those of `step_ids`, a JSON array, that are there, a row each."""
        given = self._sql.given("step_ids")
        ids = sa.select(sa.cast(given.c.value, steps.c.id.type))
        found = sa.select(sa.cast(steps.c.id, sa.Text()), sa.cast(steps.c.threadId, sa.Text()))
        return self._compile(found.where(self._sql.among(steps.c.id, ids)))


def step_threads_parameters(upserts: Sequence[Upsert]) -> dict[str, str] | None:
    """The statement's parameters; None where every feedback names its thread."""
    wanted = {upsert.row["forId"] for upsert in upserts if changes.lacks_thread(upsert)}
    return {"step_ids": orjson.dumps(sorted(wanted)).decode()} if wanted else None


def put_into_threads(upserts: Sequence[Upsert], stored: Mapping[str, str]) -> list[Upsert | None]:
    """The upserts, each in a thread: of the step as `stored`, or as one of them brings it. None for an unknown step."""
    brought = {one.key: one.thread_id for one in upserts if one.table == "steps" and one.thread_id}
    known = {**brought, **stored}
    return [_put(upsert, known) if changes.lacks_thread(upsert) else upsert for upsert in upserts]


def _put(upsert: Upsert, known: Mapping[str, str]) -> Upsert | None:
    thread_id = known.get(upsert.row["forId"])
    return changes.put_into(upsert, thread_id) if thread_id is not None else None
