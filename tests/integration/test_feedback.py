"""Feedback that names no thread, as Discord and Teams leave it: its thread is the step's, its place its call's."""

from __future__ import annotations

from typing import Any

import pytest
from chainlit.types import Feedback

from forebay import ForebayDataLayer, InvalidId, RowError, Settings, TransientError
from forebay.model import changes
from tests.integration.conftest import MakeLayer
from tests.integration.contract import a_step, how_many, new_id, rows, stored_step, stored_thread
from tests.support.sessions import in_session


@pytest.fixture(params=["journal", "memory", "commit"])
def layer_of_any_durability(
    request: pytest.FixtureRequest, make_layer: MakeLayer, migrated_url: str
) -> ForebayDataLayer:
    return make_layer(migrated_url, settings=Settings(durability=request.param))


def _away(layer: ForebayDataLayer, patch: pytest.MonkeyPatch) -> None:
    async def fail(*_arguments: Any, **_named: Any) -> Any:
        raise TransientError("the database is away")

    for name in ("apply", "read"):
        patch.setattr(layer._store, name, fail)


@pytest.mark.parametrize("durability", ["journal", "memory"])
async def test_it_is_taken_while_the_database_is_away(
    make_layer: MakeLayer, migrated_url: str, durability: Any
) -> None:
    layer = make_layer(migrated_url, settings=Settings(durability=durability))
    step, late_step = a_step(new_id()), a_step(new_id())
    await layer.create_step(step)
    await layer.flush()
    with pytest.MonkeyPatch.context() as patch:
        _away(layer, patch)
        first = await layer.upsert_feedback(Feedback(forId=step["id"], value=1, comment="good"))
        await layer.create_step(late_step)
        second = await layer.upsert_feedback(Feedback(forId=late_step["id"], value=0))
    await layer.flush()
    for written, feedback_id, value in ((step, first, 1), (late_step, second, 0)):
        thread = await stored_thread(layer, written["threadId"])
        rated = thread["steps"][0]["feedback"]
        assert rated is not None
        assert (rated["id"], rated["value"]) == (feedback_id, value)
    assert {row["threadId"] for row in await rows(layer, 'SELECT "threadId" FROM feedbacks')} == {
        step["threadId"],
        late_step["threadId"],
    }


async def test_it_is_in_the_journal_that_is_left(
    make_layer: MakeLayer, migrated_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, step = make_layer(migrated_url, settings=Settings(close_timeout=0.1)), a_step(new_id())
    await before.create_step(step)
    await before.flush()
    with monkeypatch.context() as patch:
        _away(before, patch)
        feedback_id = await before.upsert_feedback(Feedback(forId=step["id"], value=1))
        await before.close()
    rated = (await stored_step(make_layer(migrated_url), step["id"]))["feedback"]
    assert rated
    assert rated["id"] == feedback_id


async def test_it_keeps_its_place(layer_of_any_durability: ForebayDataLayer) -> None:
    layer, step = layer_of_any_durability, a_step(new_id())
    await layer.create_step(step)
    feedback = Feedback(forId=step["id"], value=1, id=new_id())
    given = layer.upsert_feedback(feedback)
    taken_back = layer.delete_feedback(feedback.id or "")
    await given
    await taken_back
    assert (await stored_step(layer, step["id"]))["feedback"] is None
    assert await how_many(layer, "feedbacks") == 0


async def test_on_a_step_that_nobody_knows_it_is_no_dead_letter(
    layer_of_any_durability: ForebayDataLayer,
) -> None:
    layer = layer_of_any_durability
    for _ in range(3):
        with pytest.raises(RowError, match="its step is unknown"):
            await layer.upsert_feedback(Feedback(forId=new_id(), value=1))
    counts = layer._engine.counts
    assert counts.dropped == {"unknown_step": 3}
    assert not counts.dead_lettered
    assert await how_many(layer, "feedbacks") == 0


async def test_its_step_may_be_in_its_own_batch(layer: ForebayDataLayer) -> None:
    step, other = a_step(new_id()), a_step(new_id())
    unknown = changes.feedback({"id": new_id(), "forId": new_id(), "value": 1}, in_its_steps_thread=True)
    known = changes.feedback({"id": new_id(), "forId": step["id"], "value": 1}, in_its_steps_thread=True)
    found = await layer._store.apply([changes.step(other), unknown, changes.step(step), known])
    assert {(one.place, one.reason) for one in found if not isinstance(one, str)} == {(1, "unknown_step")}
    assert (await stored_step(layer, step["id"]))["feedback"]


async def test_its_step_is_known_in_any_spelling(make_layer: MakeLayer, migrated_postgres_url: str) -> None:
    layer, step = make_layer(migrated_postgres_url), a_step(new_id())
    await layer.create_step(step)
    await layer.upsert_feedback(Feedback(forId=step["id"].upper(), value=1, threadId=""))
    assert (await stored_step(layer, step["id"]))["feedback"]
    with pytest.raises(InvalidId):
        await layer.upsert_feedback(Feedback(forId="x", value=1))


async def test_in_a_chat_it_comes_behind_what_was_written_before(layer: ForebayDataLayer) -> None:
    with in_session(spoken=True) as session:
        step = a_step(session.thread_id)
        written = layer.create_step(step)
        rated = layer.upsert_feedback(Feedback(forId=step["id"], value=1))
        await rated
        await written
    assert (await stored_step(layer, step["id"]))["feedback"]
