"""The contract's promises about steps and their feedback, on both databases."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from chainlit.element import Text
from chainlit.step import StepDict
from chainlit.types import Feedback

from forebay import ForebayDataLayer, RowError
from tests.integration.conftest import MakeLayer
from tests.integration.contract import (
    a_step,
    a_thread,
    a_user,
    at,
    dead_letters,
    how_many,
    new_id,
    rows,
    stored_step,
    stored_thread,
)
from tests.support.storage import MemoryStorage

# A value for each key of Chainlit's StepDict, none of them a column's default.
FULL: dict[str, Any] = {
    "name": "search the web",
    "type": "tool",
    "parentId": new_id(),
    "command": "search",
    "modes": {"model": "large"},
    "streaming": True,
    "waitForAnswer": True,
    "isError": True,
    "metadata": {"nested": {"list": [1, 2.5, None, True, "ключ"]}},
    "tags": ["a", "b,c", '"'],
    "input": '{"q": "漢字"}',
    "output": "line\nline 🙂",
    "createdAt": at(1),
    "start": at(2),
    "end": at(3),
    "generation": {"provider": "none", "messages": [{"role": "user"}]},
    "showInput": "json",
    "defaultOpen": True,
    "autoCollapse": True,
    "language": "python",
    "icon": "globe",
}
write_methods = pytest.mark.parametrize("method", ["create_step", "update_step"])


@write_methods
async def test_every_field_of_a_step_is_kept_and_read_back(layer: ForebayDataLayer, method: str) -> None:
    step = {"id": new_id(), "threadId": new_id(), **FULL}
    assert step.keys() >= StepDict.__annotations__.keys() - {"feedback"}
    await getattr(layer, method)(step)
    assert await stored_step(layer, step["id"]) == {**step, "feedback": None}
    (in_thread,) = (await stored_thread(layer, step["threadId"]))["steps"]
    assert in_thread == {**step, "feedback": None}


@write_methods
@pytest.mark.parametrize("together", [True, False], ids=["folded", "apart"])
async def test_none_and_missing_leave_a_field_alone(
    layer: ForebayDataLayer, method: str, together: bool
) -> None:
    step = {"id": new_id(), "threadId": new_id(), **FULL}
    await layer.create_step(cast(StepDict, step))
    if not together:
        await layer.flush()
    nothing: dict[str, Any] = dict.fromkeys(list(FULL)[::2])
    await getattr(layer, method)({"id": step["id"], **nothing})
    assert await stored_step(layer, step["id"]) == {**step, "feedback": None}


@write_methods
@pytest.mark.parametrize("together", [True, False], ids=["folded", "apart"])
async def test_empty_and_false_overwrite(layer: ForebayDataLayer, method: str, together: bool) -> None:
    step = {"id": new_id(), "threadId": new_id(), **FULL}
    await layer.create_step(cast(StepDict, step))
    if not together:
        await layer.flush()
    emptied = {"name": "", "output": "", "input": "", "streaming": False, "isError": False, "tags": []}
    emptied |= {"metadata": {}, "generation": {}, "language": ""}
    await getattr(layer, method)({"id": step["id"], **emptied})
    assert await stored_step(layer, step["id"]) == {**step, **emptied, "feedback": None}


async def test_an_update_before_its_create_makes_the_row_and_the_create_completes_it(
    layer: ForebayDataLayer,
) -> None:
    step = a_step(new_id(), input="question", showInput=True)
    await layer.update_step({"id": step["id"], "threadId": step["threadId"], "output": "answer"})
    await layer.flush()
    del step["output"]
    await layer.create_step(step)
    stored = await stored_step(layer, step["id"])
    assert (stored["output"], stored["input"], stored["createdAt"]) == ("answer", "question", at(0))


async def test_what_a_new_step_must_have_gets_a_default(layer: ForebayDataLayer) -> None:
    step_id, thread_id = new_id(), new_id()
    before = await layer.get_current_timestamp()
    await layer.create_step({"id": step_id, "threadId": thread_id})
    stored = await stored_step(layer, step_id)
    assert (stored["name"], stored["type"], stored["streaming"]) == ("", "undefined", False)
    assert before <= stored["createdAt"] <= await layer.get_current_timestamp()
    assert (stored["metadata"], stored["input"], stored["output"]) == ({}, "", "")


async def test_a_default_never_overwrites_what_is_stored(layer: ForebayDataLayer) -> None:
    step = {"id": new_id(), "threadId": new_id(), **FULL}
    await layer.create_step(cast(StepDict, step))
    await layer.flush()
    await layer.update_step({"id": step["id"], "output": "later"})
    assert await stored_step(layer, step["id"]) == {**step, "output": "later", "feedback": None}


async def test_a_step_without_a_thread_row_makes_one(layer: ForebayDataLayer) -> None:
    step = a_step(new_id())
    await layer.create_step(step)
    thread = await stored_thread(layer, step["threadId"])
    assert [s["id"] for s in thread["steps"]] == [step["id"]]
    assert thread["createdAt"].endswith("Z")


async def test_unknown_keys_are_kept_merged_counted_and_given_back(layer: ForebayDataLayer) -> None:
    step = a_step(new_id(), newInTheNextRelease={"a": [1]}, other="x")
    await layer.create_step(step)
    await layer.flush()
    await layer.update_step(cast(StepDict, {"id": step["id"], "other": "y"}))
    stored = await stored_step(layer, step["id"])
    assert (stored["newInTheNextRelease"], stored["other"]) == ({"a": [1]}, "y")
    assert layer.registry.get_sample_value("forebay_unknown_values_total", {"table": "steps"}) == 3


@pytest.mark.parametrize(
    ("shown", "stored", "given"),
    [
        (True, "true", "question"),
        ("json", "json", "question"),
        ("JSON", "json", "question"),
        (False, "false", ""),
        ("False", "false", ""),
        (None, None, ""),
    ],
)
async def test_the_input_is_given_back_only_where_it_is_to_be_shown(
    layer: ForebayDataLayer, shown: Any, stored: str | None, given: str
) -> None:
    step = a_step(new_id(), input="question", showInput=shown)
    await layer.create_step(step)
    read = await stored_step(layer, step["id"])
    assert (read["showInput"], read["input"]) == (stored, given)
    (row,) = await rows(layer, "SELECT input FROM steps")
    assert row["input"] == "question"


async def test_the_dict_may_change_once_the_call_has_begun(layer: ForebayDataLayer) -> None:
    tags = ["a"]
    step = a_step(new_id(), metadata={"list": [1]}, tags=tags)
    call = asyncio.create_task(layer.create_step(step))
    await asyncio.sleep(0)
    step["metadata"]["list"].append(2)
    tags.append("b")
    await call
    stored = await stored_step(layer, step["id"])
    assert (stored["metadata"], stored["tags"]) == ({"list": [1]}, ["a"])


async def test_get_step_of_an_unknown_one_is_none(layer: ForebayDataLayer) -> None:
    assert await layer.get_step(new_id()) is None


async def test_a_deleted_step_takes_its_descendants_their_feedback_and_content_with_it(
    layer: ForebayDataLayer, storage: MemoryStorage
) -> None:
    thread_id = new_id()
    root, kept = a_step(thread_id, output="root"), a_step(thread_id, output="kept")
    child = a_step(thread_id, parentId=root["id"])
    grandchild = a_step(thread_id, parentId=child["id"])
    for step in (root, child, grandchild, kept):
        await layer.create_step(step)
        await layer.upsert_feedback(Feedback(forId=step["id"], value=1))
        text = Text(thread_id=thread_id, name=step["output"], content="x", for_id=step["id"])
        await layer.create_element(text)
    await layer.delete_step(root["id"])
    thread = await stored_thread(layer, thread_id)
    assert [s["id"] for s in thread["steps"]] == [kept["id"]]
    assert [e["forId"] for e in thread["elements"] or []] == [kept["id"]]
    assert len(storage.files) == 1
    assert await how_many(layer, "feedbacks") == 1


async def test_steps_that_are_each_others_parents_can_be_deleted(layer: ForebayDataLayer) -> None:
    thread_id, one, other = new_id(), new_id(), new_id()
    await layer.create_step(a_step(thread_id, id=one, parentId=other))
    await layer.create_step(a_step(thread_id, id=other, parentId=one))
    await layer.delete_step(one)
    assert (await stored_thread(layer, thread_id))["steps"] == []


@pytest.mark.parametrize("table", ["step", "feedback", "element", "thread"])
async def test_deleting_what_is_not_there_is_no_error(layer: ForebayDataLayer, table: str) -> None:
    await getattr(layer, f"delete_{table}")(new_id())
    assert dead_letters(layer) == 0


# ---- favourites


async def test_favourites_are_the_users_own_newest_first(layer: ForebayDataLayer) -> None:
    ada, bob = await a_user(layer, "ada"), await a_user(layer, "bob")
    threads = [await a_thread(layer, user_id=user.id) for user in (ada, ada, bob)]
    steps = [a_step(threads[n % 3], createdAt=at(n), output=f"{n}") for n in range(6)]
    for step in steps:
        await layer.create_step(step)
        await layer.set_step_favorite(step, True)
    await layer.set_step_favorite(steps[0], False)
    found = await layer.get_favorite_steps(ada.id)
    assert [step["output"] for step in found] == ["4", "3", "1"]
    assert found[0]["metadata"] == {"favorite": True}


@pytest.mark.parametrize("user_id", ["3b7b59a8-007a-4cb6-be21-7b675fd42c1d", "not a uuid"])
async def test_an_unknown_user_has_no_favourites(layer: ForebayDataLayer, user_id: str) -> None:
    assert await layer.get_favorite_steps(user_id) == []


# ---- feedback


async def test_feedback_gets_an_id_and_the_threads_of_its_step(layer: ForebayDataLayer) -> None:
    step = a_step(new_id())
    await layer.create_step(step)
    feedback = Feedback(forId=step["id"], value=0, comment="no")
    feedback_id = await layer.upsert_feedback(feedback)
    assert feedback_id == feedback.id
    expected = {"id": feedback_id, "forId": step["id"], "value": 0, "comment": "no"}
    assert (await stored_step(layer, step["id"]))["feedback"] == expected
    (in_thread,) = (await stored_thread(layer, step["threadId"]))["steps"]
    assert in_thread["feedback"] == expected
    (row,) = await rows(layer, 'SELECT "threadId" FROM feedbacks')
    assert row["threadId"] == step["threadId"]


async def test_a_feedback_with_an_id_is_changed_whole(layer: ForebayDataLayer) -> None:
    step = a_step(new_id())
    await layer.create_step(step)
    first = await layer.upsert_feedback(Feedback(forId=step["id"], value=1, comment="good"))
    again = Feedback(forId=step["id"], threadId=step["threadId"], value=0, id=first)
    assert await layer.upsert_feedback(again) == first
    stored = (await stored_step(layer, step["id"]))["feedback"]
    assert (stored["value"], stored["comment"]) == (0, None)
    assert await how_many(layer, "feedbacks") == 1


@pytest.mark.parametrize("value", [0, 1])
async def test_of_several_feedbacks_on_a_step_the_newest_is_read_and_the_step_once(
    layer: ForebayDataLayer, value: Any
) -> None:
    step = a_step(new_id())
    await layer.create_step(step)
    for n in range(5):
        await layer.upsert_feedback(Feedback(forId=step["id"], value=(value + n) % 2))
    newest = await layer.upsert_feedback(Feedback(forId=step["id"], value=value))
    (in_thread,) = (await stored_thread(layer, step["threadId"]))["steps"]
    assert in_thread["feedback"]
    assert (in_thread["feedback"]["id"], in_thread["feedback"]["value"]) == (newest, value)


async def test_feedback_that_comes_before_its_step_waits_for_it(layer: ForebayDataLayer) -> None:
    step = a_step(new_id())
    await layer.upsert_feedback(Feedback(forId=step["id"], threadId=step["threadId"], value=1))
    await layer.flush()
    await layer.create_step(step)
    assert (await stored_step(layer, step["id"]))["feedback"]["value"] == 1


async def test_feedback_without_a_thread_for_an_unknown_step_is_refused(layer: ForebayDataLayer) -> None:
    with pytest.raises(RowError, match="its step is unknown"):
        await layer.upsert_feedback(Feedback(forId=new_id(), value=1))


async def test_deleted_feedback_is_gone(layer: ForebayDataLayer) -> None:
    step = a_step(new_id())
    await layer.create_step(step)
    feedback_id = await layer.upsert_feedback(Feedback(forId=step["id"], value=1))
    assert await layer.delete_feedback(feedback_id) is True
    assert (await stored_step(layer, step["id"]))["feedback"] is None


# ---- as another layer left them


async def test_json_text_that_another_layer_wrote_is_read_as_objects(
    migrated_sqlite_url: str, make_layer: MakeLayer
) -> None:
    layer = make_layer(migrated_sqlite_url)
    thread_id = await a_thread(layer)
    text = json.dumps({"a": 1})
    insert = """INSERT INTO steps (id, name, type, "threadId", streaming, metadata, generation, tags, "createdAt")
        VALUES ('s', 'n', 'run', :thread, 0, :text, :text, '["x"]', '2024')"""
    await layer.execute_sql(insert, {"thread": thread_id, "text": text})
    stored = await stored_step(layer, "s")
    assert (stored["metadata"], stored["generation"], stored["tags"]) == ({"a": 1}, {"a": 1}, ["x"])


async def test_timestamps_are_utc_with_a_z(layer: ForebayDataLayer) -> None:
    before = datetime.now(UTC)
    user, thread_id = await a_user(layer), await a_thread(layer)
    written = [user.createdAt, (await stored_thread(layer, thread_id))["createdAt"]]
    written.append(await layer.get_current_timestamp())
    after = datetime.now(UTC)
    assert all(text.endswith("Z") for text in written)
    assert all(before <= datetime.fromisoformat(text) <= after for text in written)
