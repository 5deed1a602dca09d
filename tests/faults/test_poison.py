"""Rows that the database refuses: each harms itself alone, and none is lost."""

from __future__ import annotations

import asyncio
import random
import sys
import time
import uuid
from collections.abc import Awaitable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa
from chainlit.types import Feedback
from typing_extensions import override

from forebay import ForebayDataLayer
from forebay.errors import InvalidId, RowError
from forebay.journal.dead_letters import DeadLetters, Letter
from forebay.model import changes
from forebay.model.changes import Upsert
from tests.faults.conftest import MakeLayer
from tests.faults.load import LONG, a_seed, versioned
from tests.integration.contract import accounted_for, rows
from tests.support.patience import PATIENCE
from tests.support.postgres import PostgresServer, name_of

_CHANGES = 10_000
_AT_ONCE = 500
# Each bad row costs a few transactions, and half would be the most before the writer pauses.
_BAD_SHARE = 0.2 if LONG else 0.005
_POISON = "poison"
_TRIGGERS = {
    "postgresql": (
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN IF NEW.name = '{_POISON}' THEN RAISE EXCEPTION 'no'; END IF; RETURN NEW; END $$",
        "CREATE TRIGGER refuse BEFORE INSERT ON steps FOR EACH ROW EXECUTE FUNCTION refuse()",
    ),
    "sqlite": (
        f"CREATE TRIGGER refuse BEFORE INSERT ON steps WHEN NEW.name = '{_POISON}'"
        " BEGIN SELECT RAISE(ABORT, 'no'); END",
    ),
}


@pytest.fixture
async def layer(migrated_url: str, make_journaled: MakeLayer) -> ForebayDataLayer:
    """A layer whose database refuses steps of a certain name."""
    layer = make_journaled(migrated_url)
    for statement in _TRIGGERS[layer._store.url.get_backend_name()]:
        await layer.execute_sql(statement, {})
    return layer


def _letters(layer: ForebayDataLayer) -> list[Letter]:
    return DeadLetters(layer.settings.journal_dir).find()


async def _assert_balanced(layer: ForebayDataLayer) -> None:
    counts = layer._engine.counts
    assert accounted_for(layer)
    assert counts.pending == counts.dropped.total() == 0
    assert counts.dead_lettered.total() == len(_letters(layer))
    await layer.close()
    assert [path.name for path in layer.settings.journal_dir.iterdir()] == ["dead-letters.db"]


@pytest.mark.parametrize("where", ["first", "anywhere", "last"])
async def test_one_bad_row_among_a_thousand(layer: ForebayDataLayer, where: str) -> None:
    place = {"first": 0, "anywhere": random.Random(a_seed()).randrange(1000), "last": 999}[where]
    thread_id = str(uuid.uuid4())
    steps = [versioned(str(uuid.uuid4()), thread_id, number) for number in range(1000)]
    steps[place]["name"] = _POISON
    await asyncio.gather(*(layer.create_step(step) for step in steps))
    await layer.flush()
    (letter,) = _letters(layer)
    assert (letter.table, letter.row_id) == ("steps", steps[place]["id"])
    assert isinstance(letter.change, Upsert)
    assert letter.change.row.items() >= steps[place].items(), "whole, for another try"
    stored = await rows(layer, "SELECT id, output FROM steps")
    del steps[place]
    assert {row["id"]: row["output"] for row in stored} == {step["id"]: step["output"] for step in steps}
    assert layer._engine.counts.written["steps"] == 999
    assert layer._engine.counts.dead_lettered.total() == 1
    await _assert_balanced(layer)


_ONLY_POSTGRESQL = {
    **{
        sqlstate: (
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.name = 'poison' THEN"
            f" RAISE EXCEPTION 'no' USING ERRCODE = '{sqlstate}'; END IF; RETURN NEW; END $$",
            "CREATE TRIGGER refuse BEFORE INSERT ON steps FOR EACH ROW EXECUTE FUNCTION refuse()",
        )
        for sqlstate in ("AB123", "42501", "57014", "40001", "08006")
    },
    "row-level security": (
        "ALTER TABLE steps ENABLE ROW LEVEL SECURITY",
        "ALTER TABLE steps FORCE ROW LEVEL SECURITY",
        "CREATE POLICY refuse ON steps USING (true) WITH CHECK (name <> 'poison')",
        "CREATE ROLE {role} LOGIN",
        "GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}",
    ),
}


@pytest.mark.parametrize("how", _ONLY_POSTGRESQL)
async def test_a_row_is_refused_whatever_the_code(
    migrated_postgres_url: str, postgres_server: PostgresServer, make_journaled: MakeLayer, how: str
) -> None:
    role = f"tenant_{uuid.uuid4().hex[:8]}"
    for statement in _ONLY_POSTGRESQL[how]:
        postgres_server.execute(statement.format(role=role), name_of(migrated_postgres_url))
    url = sa.make_url(migrated_postgres_url)
    if how == "row-level security":  # a superuser is above it
        url = url.set(username=role)
    layer = make_journaled(url.render_as_string(hide_password=False))
    thread_id = str(uuid.uuid4())
    steps = [versioned(str(uuid.uuid4()), thread_id, number) for number in range(20)]
    steps[7]["name"] = _POISON
    try:
        await asyncio.gather(*(layer.create_step(step) for step in steps))
        await asyncio.wait_for(layer.flush(), PATIENCE)
        assert [letter.row_id for letter in _letters(layer)] == [steps[7]["id"]]
        assert layer._engine.counts.written["steps"] == 19
        await layer.close()
    finally:
        if how == "row-level security":
            postgres_server.execute(f"DROP OWNED BY {role}", name_of(migrated_postgres_url))
            postgres_server.execute(f"DROP ROLE {role}", name_of(migrated_postgres_url))


async def test_rows_too_slow_for_one_statement_are_written_in_several(
    migrated_postgres_url: str, postgres_server: PostgresServer, make_journaled: MakeLayer
) -> None:
    for statement in (
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM pg_sleep(0.02); RETURN NEW; END $$",
        "CREATE TRIGGER slow BEFORE INSERT ON steps FOR EACH ROW EXECUTE FUNCTION slow()",
    ):
        postgres_server.execute(statement, name_of(migrated_postgres_url))
    layer = make_journaled(migrated_postgres_url, statement_timeout=1.0, linger=1.0)
    thread_id = str(uuid.uuid4())
    steps = [versioned(str(uuid.uuid4()), thread_id, number) for number in range(90)]
    await asyncio.gather(*(layer.create_step(step) for step in steps))
    await asyncio.wait_for(layer.flush(), PATIENCE)
    stored = await rows(layer, "SELECT id FROM steps")
    assert {row["id"] for row in stored} == {step["id"] for step in steps}
    assert layer._engine.counts.checkpoint_alarms.total() == 0
    await _assert_balanced_without_letters(layer)


async def _assert_balanced_without_letters(layer: ForebayDataLayer) -> None:
    counts = layer._engine.counts
    assert accounted_for(layer)
    assert counts.pending == counts.dropped.total() == counts.dead_lettered.total() == 0
    await layer.close()


# ---- anything


def _deep(levels: int) -> Any:
    value: Any = "end"
    for level in range(levels):
        value = [value] if level % 2 else {"in": value}
    return value


class _Unprintable:
    @override
    def __str__(self) -> str:
        raise ValueError


_ODD: tuple[Any, ...] = (
    *(
        None,
        "",
        "text",
        "a\x00b",
        "\ud83d",
        "\ud83d\ude42 and \ude42",
        "🙂" * 50,
        "x" * 10_000,
        "'; DROP TABLE",
    ),
    *(0, -1, 2**31, 2**63, 2**90, 1.5, float("nan"), float("inf"), True, False, b"\xff\x00", object()),
    *([], {}, [1, [2, {"three": None}]], {"a\x00": {1, 2}}, {1: "one", None: 2}, {"": "", "\ud83d": 3}),
    *(datetime(2026, 1, 1, tzinfo=UTC), uuid.UUID(int=7), _deep(300), _Unprintable(), "2026-01-01T00:00:00Z"),
)
_FIELDS = {
    "steps": "name type input output metadata tags streaming isError start end generation showInput"
    " language indent defaultOpen autoCollapse command modes createdAt waitForAnswer of_a_later_release",
    "elements": "type chainlitKey url name display objectKey size page language mime props autoPlay extra",
}


class _Fuzz:
    """Changes of any kind, some of which a database can't take, and what became of each by its row."""

    def __init__(self, layer: ForebayDataLayer, seed: int) -> None:
        self.tried: set[tuple[str, str]] = set()
        self.refused = 0
        self.outputs: dict[str, str] = {}  # of steps, as they must be if nothing of them was refused
        self._threads: dict[str, str] = {}  # of steps and elements
        self._of: dict[str, str] = {}  # the steps that feedback is on
        self._layer = layer
        self._rng = random.Random(seed)
        self._ids: dict[str, list[str]] = {name: [] for name in ("steps", "elements", "feedbacks", "threads")}
        self._kinds = (self._step, self._step, self._element, self._feedback, self._thread)

    async def one(self) -> None:
        """Make a change; what is refused at once is counted."""
        try:
            await self._rng.choice(self._kinds)()
        except RowError:
            self.refused += 1

    def _id(self, table: str) -> str:
        """A new one, one that was there before, or none that the tables take."""
        ids = self._ids[table]
        if ids and self._rng.random() < 0.3:
            return self._rng.choice(ids)
        made = str(uuid.UUID(int=self._rng.getrandbits(128), version=4))
        if self._rng.random() < _BAD_SHARE / 4:  # a change has a few of them
            return self._rng.choice(["no uuid ", "{", "\x00", "\ud83d"]) + made[:8]
        ids.append(made)
        return made

    def _odd(self) -> Any:
        return self._rng.choice(_ODD)

    def _values(self, table: str) -> dict[str, Any]:
        names = self._rng.sample(_FIELDS[table].split(), self._rng.randrange(8))
        values = {name: self._odd() for name in names}
        key = self._id(table)
        return {"id": key, "threadId": self._thread_of(key), **values}

    def _thread_of(self, key: str) -> str:
        """A row stays in its thread."""
        return self._threads.setdefault(key, self._id("threads"))

    def _enters(self, change: Upsert, *, by_the_door: bool) -> bool:
        """Note a change, unless it is to be refused at once. Only a journal's changes come by another way."""
        if by_the_door:
            try:
                self._layer._store.ids.enter(change)
            except InvalidId:
                return False
        self.tried.add((change.table, change.key))
        return True

    def _step(self) -> Awaitable[Any]:
        values = self._values("steps")
        values["parentId"] = self._id("steps") if self._rng.random() < 0.2 else None
        if self._rng.random() < _BAD_SHARE:
            values["name"] = _POISON
        change, by_the_door = changes.step(values), self._rng.random() < 0.5
        if self._enters(change, by_the_door=by_the_door) and "output" in change.row:
            self.outputs[change.key] = change.row["output"]
        if not by_the_door:
            return self._layer._engine.intake.write(change)
        return self._layer.update_step(values)  # type: ignore[arg-type]

    def _element(self) -> Awaitable[Any]:
        values = self._values("elements") | {"forId": self._id("steps")}
        change = changes.element(values)
        self._enters(change, by_the_door=False)
        return self._layer._engine.intake.write(change)

    def _feedback(self) -> Awaitable[Any]:
        feedback = Feedback(forId="", value=0, id=self._id("feedbacks"))
        feedback.forId = self._of.setdefault(feedback.id or "", self._id("steps"))
        feedback.threadId = self._thread_of(feedback.forId)
        feedback.comment = self._odd()  # past its checks
        change, by_the_door = changes.feedback(asdict(feedback)), self._rng.random() < 0.5
        self._enters(change, by_the_door=by_the_door)
        if not by_the_door:
            return self._layer._engine.intake.write(change)
        return self._layer.upsert_feedback(feedback)

    def _thread(self) -> Awaitable[Any]:
        metadata = self._rng.choice([{}, {"name": self._odd()}, {"key": self._odd(), "other": None}])
        arguments = (
            self._id("threads"),
            self._odd(),
            None,
            metadata,
            self._rng.choice([None, [], ["a", "b"]]),
        )
        self._enters(changes.thread(*arguments), by_the_door=True)
        return self._layer.update_thread(*arguments)


async def test_ten_thousand_changes_of_any_kind(layer: ForebayDataLayer) -> None:
    """Each is in the database or a dead letter, and nothing else is."""
    fuzz, began = _Fuzz(layer, a_seed()), time.monotonic()
    for _ in range(_CHANGES // _AT_ONCE):
        await asyncio.gather(*(fuzz.one() for _ in range(_AT_ONCE)))
    await layer.flush()
    counts, letters = layer._engine.counts, _letters(layer)
    sys.stdout.write(f"{len(letters)} dead letters, {time.monotonic() - began:.1f} s\n")
    assert counts.accepted.total() + fuzz.refused == _CHANGES
    assert counts.dead_lettered.total() == len(letters) > 0

    stored: set[tuple[str, str]] = set()
    for table in ("steps", "elements", "feedbacks", "threads"):
        stored |= {(table, row["id"]) for row in await rows(layer, f"SELECT id FROM {table}")}
    given_up = {(letter.table, letter.row_id) for letter in letters}
    assert fuzz.tried - stored - given_up == set(), "lost"
    assert given_up <= fuzz.tried
    assert {row for row in stored - fuzz.tried if row[0] != "threads"} == set(), "invented"

    outputs = {row["id"]: row["output"] for row in await rows(layer, "SELECT id, output FROM steps")}
    whole = {key: output for key, output in fuzz.outputs.items() if ("steps", key) not in given_up}
    assert {key: output for key, output in whole.items() if outputs[key] != output} == {}
    await _assert_balanced(layer)
