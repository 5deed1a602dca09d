"""Folding two changes of a row stores what writing them one after the other stores, on both databases.

Each example holds several rows, which are written together: whether a row is partial, and so which statement
writes it, depends on its neighbours as well.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from forebay import Settings
from forebay.database.store import Store
from forebay.model import changes, cleaning, schema
from forebay.model.changes import Upsert
from tests.support.examples import examples

Values = dict[str, Any]

THREADS = [str(uuid.UUID(int=number)) for number in range(1, 4)]
USERS = [str(uuid.UUID(int=number)) for number in range(101, 103)]

odd_texts = st.sampled_from(
    [
        "",
        "\x00",
        "\ud83d",
        "\ude00",
        "e\u0301",
        "\U0001f469\u200d\U0001f680",
        "\u202egnp",
        "\\u0000",
        "'",
        '"',
    ]
)
odd_texts |= st.sampled_from(
    ["{}", "null", "false", "1e5", "$1", ":name", "%s", "\ufeff", "\uffff", "a\r\nb"]
)
texts = st.none() | odd_texts | st.text(max_size=12)
flags = st.sampled_from([None, True, False, "true", 0, "perhaps"])
numbers = st.sampled_from([None, 0, 1, -1, 2**31 - 1, 2**31, "7", "x", 1.5])
ids = st.none() | st.sampled_from([*THREADS, str(uuid.UUID(int=7))])
leaves = texts | st.booleans() | st.integers() | st.floats() | st.just(2**70)
# What comes together in one object: few keys, so that two objects often share some.
keys = st.sampled_from(["a", "b", "name", "", "\x00", "\ud83d", "ключ"])
json_values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(keys, inner, max_size=2)
)
objects = (
    st.none() | st.dictionaries(keys, json_values, max_size=3) | st.lists(leaves, max_size=2) | odd_texts
)
lists = st.none() | st.lists(texts, max_size=3) | texts
extras = st.dictionaries(st.sampled_from(["later", "\x00new", "ещё"]), json_values, max_size=2)

BY_KIND = {
    schema.Kind.ID: ids,
    schema.Kind.TEXT: texts,
    schema.Kind.BOOL: flags,
    schema.Kind.INT: numbers,
    schema.Kind.OBJECT: objects,
    schema.Kind.LIST: lists,
}


@dataclass
class Case:
    """What one row gets: what may be stored before, and the two changes that are folded."""

    before: Values | None
    older: Values
    newer: Values

    def written(self) -> list[Values]:
        return [values for values in (self.before, self.older, self.newer) if values is not None]


def partial(table: str, *, leaving_out: tuple[str, ...] = ()) -> st.SearchStrategy[Values]:
    """Any of the table's columns with values of any kind that the column may meet."""
    columns = {str(c.name): BY_KIND[schema.kind_of(c)] for c in schema.TABLES[table].columns}
    for name in ("id", "threadId", "userIdentifier", "updatedAt", schema.EXTRA, *leaving_out):
        columns.pop(name, None)
    return st.fixed_dictionaries({}, optional=columns)


@st.composite
def cases(draw: st.DrawFn, values: st.SearchStrategy[Values], fixed: st.SearchStrategy[Values]) -> Case:
    """`fixed` is what every change of the row says alike, except that a later one may leave it out."""
    same = draw(fixed)
    case = Case(draw(st.none() | values), draw(values), draw(values))
    first, *later = case.written()
    first.update(same)
    for change in later:
        if draw(st.booleans()):
            change.update(same)
    return case


@st.composite
def step_cases(draw: st.DrawFn) -> Case:
    in_thread = st.fixed_dictionaries({"threadId": st.sampled_from(THREADS)})
    case = draw(cases(st.tuples(partial("steps", leaving_out=("createdAt",)), extras).map(merged), in_thread))
    # A step's createdAt never goes back, and comes with its thread. Else its thread's activity, which is the
    # greatest createdAt that was written with it, would tell whether the two changes left together.
    times = sorted(draw(st.lists(st.sampled_from(["2024-01-01T00:00:00Z", "2025", "é"]), max_size=2)))
    for change, created in zip((case.older, case.newer), times, strict=False):
        change |= {"createdAt": created, "threadId": case.written()[0]["threadId"]}
    return case


def merged(parts: tuple[Values, ...]) -> Values:
    return {key: value for part in parts for key, value in part.items()}


# One key is often set by the one change and taken away by the other.
thread_metadata = st.dictionaries(st.sampled_from(["a", "b", "name"]), st.none() | json_values, min_size=1)
thread_values = st.fixed_dictionaries(
    {
        "metadata": thread_metadata
        | st.sampled_from([None, {}])
        | st.dictionaries(keys, json_values, max_size=3)
    },
    optional={
        "name": texts | st.just("long" * 100),
        "user_id": st.none() | st.sampled_from(USERS),
        "tags": st.none() | st.lists(texts, max_size=3),
    },
)
element_cases = cases(
    st.tuples(partial("elements"), extras).map(merged),
    st.fixed_dictionaries({"threadId": st.none() | st.sampled_from(THREADS)}),
)
# All of a feedback's required fields are in each change: one without them never becomes a change.
feedback_values = st.fixed_dictionaries(
    {"forId": st.sampled_from(THREADS), "threadId": st.just(THREADS[0]), "value": st.integers(0, 1)},
    optional={"comment": texts},
)

Make = Callable[[str, Values], Upsert]
TABLES: dict[str, tuple[st.SearchStrategy[Case], Make]] = {
    "threads": (cases(thread_values, st.just({})), lambda key, values: changes.thread(key, **values)),
    "steps": (step_cases(), lambda key, values: changes.step({"id": key, **values})),
    "elements": (element_cases, lambda key, values: changes.element({"id": key, **values})),
    "feedbacks": (
        cases(feedback_values, st.just({})),
        lambda key, values: changes.feedback({"id": key, **values}),
    ),
}


@pytest.fixture
async def store(migrated_url: str) -> AsyncIterator[Store]:
    store = Store(migrated_url, Settings())
    await store.prepare()
    async with store.engine.begin() as connection:
        for number, user in enumerate(USERS):
            insert = schema.users.insert().values(id=user, identifier=f"user {number}", metadata={})
            await connection.execute(insert)
    yield store
    await store.close()


class Clock:
    """Stands still while rows are written, so that the columns that it gives are compared like all others."""

    def __init__(self) -> None:
        self.year: int | None = None

    def __call__(self) -> str:
        return f"{self.year or 2030}-01-01T00:00:00.000000Z"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(cleaning, "now", clock)
    return clock


@pytest.mark.parametrize("table", TABLES)
# Without shrinking: it would take minutes, and an example is small.
@settings(max_examples=examples(50), phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(data=st.data())
async def test_a_fold_stores_what_its_two_changes_store(
    data: st.DataObject, store: Store, clock: Clock, table: str
) -> None:
    strategy, make = TABLES[table]
    before: list[Upsert] = []
    older: list[Upsert] = []
    newer: list[Upsert] = []
    for number, case in enumerate(data.draw(st.lists(strategy, min_size=1, max_size=12))):
        for clock.year, batch, values in (
            (2021, before, case.before),
            (2022, older, case.older),
            (2023, newer, case.newer),
        ):
            if values is not None:
                batch.append(make(str(uuid.UUID(int=1000 + number)), values))
    clock.year = None
    folded = [changes.fold(a, b) for a, b in zip(older, newer, strict=True)]
    one_by_one = await stored_after(store, before, older, newer)
    assert await stored_after(store, before, folded) == one_by_one


async def stored_after(store: Store, *batches: list[Upsert]) -> dict[str, list[Values]]:
    """Every row of every table after these batches, on empty tables."""
    for batch in filter(None, batches):
        await store.apply(batch)
    rows: dict[str, list[Values]] = {}
    async with store.engine.begin() as connection:
        for table in reversed(schema.WRITE_ORDER):
            found = await connection.execute(sa.text(f'SELECT * FROM {table.name} ORDER BY "id"'))
            rows[table.name] = [
                {str(name): readable(value) for name, value in row.items()} for row in found.mappings()
            ]
            await connection.execute(table.delete())
    return rows


def readable(value: Any) -> Any:
    """SQLite's objects are text, whose keys may stand in another order."""
    try:
        return json.loads(value) if isinstance(value, str) and value[:1] in "[{" else value
    except json.JSONDecodeError:
        return value
