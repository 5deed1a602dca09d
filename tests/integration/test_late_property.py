"""Changes that come late, in whatever order, leave what they leave in the order in which they were made."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from forebay import Settings
from forebay.database.store import Store
from forebay.model import changes, schema
from forebay.model.changes import Upsert
from forebay.model.schema import NOTES
from tests.integration.test_fold_property import readable
from tests.support.examples import examples

THREAD, STEP, ELEMENT = (str(uuid.UUID(int=number)) for number in (1, 2, 3))
_values = st.none() | st.integers(0, 9)


def _fields(*names: str) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(st.sampled_from(names), st.sampled_from(["", "a", "b"]), max_size=3)


steps = st.tuples(_fields("name", "type", "output", "input"), _fields("later", "newer")).map(
    lambda parts: ("steps", {**parts[0], **parts[1]})
)
elements = _fields("name", "display", "later").map(lambda values: ("elements", values))
threads = st.tuples(
    st.none() | st.sampled_from(["a", "b"]),
    st.dictionaries(st.sampled_from("pqr"), _values, max_size=3),
    st.none() | st.just(["x"]),
).map(lambda parts: ("threads", dict(zip(("name", "metadata", "tags"), parts, strict=True))))


def _made(table: str, values: dict[str, Any]) -> Upsert:
    if table == "threads":
        return changes.thread(THREAD, values["name"], None, values["metadata"], values["tags"])
    row = {"threadId": THREAD, **values}
    if table == "steps":
        return changes.step({"id": STEP, **row})
    return changes.element({"id": ELEMENT, "forId": STEP, **row})


@pytest.fixture
async def store(migrated_url: str, tmp_path: Path) -> AsyncIterator[Store]:
    store = Store(migrated_url, Settings(journal_dir=tmp_path))
    yield store
    await store.close()


@settings(max_examples=examples(25))
@given(data=st.data())
async def test_the_order_of_arrival_does_not_matter(data: st.DataObject, store: Store) -> None:
    drawn = data.draw(st.lists(steps | elements | threads, min_size=2, max_size=6))
    made = [_made(table, values) for table, values in drawn]
    in_order = await _after(store, [[change] for change in made], late=False)
    order = data.draw(st.permutations(made))
    assert await _after(store, [[change] for change in order], late=True) == in_order
    # What a journal holds is folded: here two processes', the later one's of which is there first.
    others = [
        number for number, change in enumerate(made) if data.draw(st.booleans(), f"other {change.table}")
    ]
    theirs = _folded([made[number] for number in others])
    ours = _folded([change for number, change in enumerate(made) if number not in others])
    assert await _after(store, ours, theirs) == in_order


def _folded(made: list[Upsert]) -> list[Upsert]:
    rows: dict[str, Upsert] = {}
    for change in made:
        rows[change.key] = changes.fold(rows[change.key], change) if change.key in rows else change
    return list(rows.values())


async def _after(store: Store, *phases: list[Any], late: bool | None = None) -> dict[str, Any]:
    """The rows after these batches, on empty tables; with two phases the second one is late."""
    for number, phase in enumerate(phases):
        batches = phase if late is not None else [phase]
        for batch in filter(None, batches):
            await store.apply(batch, late=late if late is not None else number > 0)
    rows: dict[str, Any] = {}
    async with store.engine.begin() as connection:
        for table in reversed(schema.WRITE_ORDER):
            found = (await connection.execute(sa.text(f"SELECT * FROM {table.name}"))).mappings()
            rows[table.name] = [
                {k: readable(v) for k, v in row.items() if k not in _NOT_COMPARED} for row in found
            ]
            await connection.execute(table.delete())
    return rows


# A thread's stub has the time at which it is written, and so has the default of a step's `createdAt`.
_NOT_COMPARED = NOTES | {"createdAt"}
