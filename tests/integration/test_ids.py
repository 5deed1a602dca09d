"""Ids that anybody may send: in each spelling one id, refused at once where no row can have them, harming nobody."""

from __future__ import annotations

import contextlib
import re
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest
from chainlit.element import Text
from chainlit.step import StepDict
from chainlit.types import Feedback, Pagination, ThreadFilter
from hypothesis import given, settings
from hypothesis import strategies as st

from forebay import ForebayDataLayer, InvalidId, RowError, Settings
from tests.integration.conftest import MakeLayer
from tests.integration.contract import a_step, a_user, dead_letters, new_id, stored_thread

SECRET = "<secret content>"
NOT_UUIDS = ["test_thread", "a\x00b", "x" * 36, "3b7b59a8-007a-4cb6-be21-7b675fd42c1d0", "\ud83d"]


@pytest.fixture
def postgres_layer(emptied_postgres_url: str, make_layer: MakeLayer) -> ForebayDataLayer:
    """Its tables hold UUIDs alone."""
    return make_layer(emptied_postgres_url)


@pytest.mark.parametrize("bad_id", NOT_UUIDS, ids=ascii)
@pytest.mark.parametrize("field", ["id", "threadId"])
async def test_an_id_that_is_no_uuid_is_refused_at_once_on_postgres_and_its_neighbours_are_written(
    postgres_layer: ForebayDataLayer, caplog: pytest.LogCaptureFixture, bad_id: str, field: str
) -> None:
    layer, thread_id = postgres_layer, new_id()
    await layer.create_step(a_step(thread_id, output=SECRET))
    with pytest.raises(InvalidId, match=field):
        await layer.create_step(cast(StepDict, {**a_step(thread_id, output=SECRET), field: bad_id}))
    await layer.create_step(a_step(thread_id, output=SECRET))
    await layer.flush()
    assert len((await stored_thread(layer, thread_id))["steps"]) == 2
    assert layer._engine.counts.refused == {"InvalidId": 1}
    assert dead_letters(layer) == 0
    assert "is no UUID" in caplog.text


@pytest.mark.parametrize("bad_id", NOT_UUIDS, ids=ascii)
async def test_a_link_that_is_no_uuid_costs_the_link_alone_on_postgres(
    postgres_layer: ForebayDataLayer, bad_id: str
) -> None:
    layer, thread_id, parent = postgres_layer, new_id(), new_id()
    step = a_step(thread_id, parentId=parent)
    await layer.create_step(step)
    await layer.update_step(cast(StepDict, {**step, "parentId": bad_id, "output": "said"}))
    await layer.create_step(a_step(thread_id, parentId=bad_id))
    await layer.create_element(Text(thread_id=thread_id, content="x", name="kept", for_id=bad_id))
    thread = await stored_thread(layer, thread_id)
    assert [(s["parentId"], s["output"]) for s in thread["steps"] if s["id"] == step["id"]] == [
        (parent, "said")
    ]
    assert len(thread["steps"]) == 2
    (element,) = thread["elements"] or []
    assert (element["name"], element["forId"]) == ("kept", None)
    assert layer._engine.counts.unknown_keys == {"steps": 2, "elements": 1}
    assert dead_letters(layer) == 0


@pytest.mark.parametrize("field", ["forId", "threadId", "id"])
async def test_one_login_with_feedback_of_bad_ids_harms_nobody(
    postgres_layer: ForebayDataLayer, field: str
) -> None:
    layer, thread_id = postgres_layer, new_id()
    await layer.create_step(a_step(thread_id))
    for number in range(110):
        good: dict[str, Any] = {"forId": new_id(), "threadId": thread_id, "id": new_id()}
        with pytest.raises(InvalidId):
            await layer.upsert_feedback(Feedback(**{**good, field: f"x{number}"}, value=1, comment="c"))
    await layer.create_step(a_step(thread_id))
    assert len((await stored_thread(layer, thread_id))["steps"]) == 2
    assert not layer._engine.counts.paused
    assert layer._engine.counts.refused == {"InvalidId": 110}


_SPELLINGS: dict[str, Callable[[str], Any]] = {
    "upper": str.upper,
    "braces": lambda key: f"{{{key}}}",
    "plain": lambda key: key.replace("-", ""),
    "fours": lambda key: "-".join(re.findall("....", key.replace("-", ""))),
    "urn": lambda key: f"urn:uuid:{key}",
    "object": uuid.UUID,
}


@pytest.mark.parametrize("spelling", _SPELLINGS)
async def test_a_uuid_is_the_same_in_each_spelling_on_postgres(
    emptied_postgres_url: str, make_layer: MakeLayer, spelling: str
) -> None:
    layer = make_layer(emptied_postgres_url, settings=Settings(linger=10))
    spelled = _SPELLINGS[spelling]
    user = await a_user(layer)
    thread_id, step_id, element_id = new_id(), new_id(), new_id()
    await layer.update_thread(thread_id, user_id=spelled(user.id))
    await layer.create_step(a_step(thread_id, id=step_id))
    # What is queued under one spelling is seen under another.
    assert await layer.get_thread_author(spelled(thread_id)) == user.identifier
    await layer.update_step(a_step(spelled(thread_id), id=spelled(step_id), output="said"))
    element = Text(id=str(spelled(element_id)), thread_id=str(spelled(thread_id)), content="x")
    element.for_id = spelled(step_id)
    await layer.create_element(element)
    rating = Feedback(forId=str(spelled(step_id)), threadId=str(spelled(thread_id)), value=1)
    await layer.upsert_feedback(rating)
    thread = await stored_thread(layer, spelled(thread_id))
    (step,), (stored,) = thread["steps"], thread["elements"] or []
    assert (thread["id"], step["id"], step["output"]) == (thread_id, step_id, "said")
    assert step["feedback"] is not None
    assert (stored["id"], stored["forId"]) == (element_id, step_id)
    assert (await layer.get_element(spelled(thread_id), spelled(element_id)) or {})["id"] == element_id
    page = await layer.list_threads(Pagination(first=5), ThreadFilter(userId=str(spelled(user.id))))
    assert [t["id"] for t in page.data] == [thread_id]
    after = Pagination(first=5, cursor=str(spelled(thread_id)))
    assert (await layer.list_threads(after, ThreadFilter(userId=user.id))).data == []

    await layer.delete_element(spelled(element_id), spelled(thread_id))
    await layer.delete_feedback(spelled(str(rating.id)))
    thread = await stored_thread(layer, thread_id)
    assert (thread["elements"], thread["steps"][0]["feedback"]) == ([], None)
    await layer.delete_thread(spelled(thread_id))
    await layer.update_step(a_step(thread_id, id=step_id))
    assert await layer.get_thread(thread_id) is None
    assert layer._engine.counts.dropped["deleted_thread"] == 1


_HOSTILE = st.one_of(
    st.text(max_size=40),
    st.from_regex(r"\{?[0-9a-fA-F-]{30,38}\}?", fullmatch=True),
    st.uuids().flatmap(
        lambda u: st.sampled_from([u, str(u), u.hex, u.urn, str(u).upper(), f"{{{u}}}", f"{u} "])
    ),
    st.none() | st.integers() | st.binary(max_size=20) | st.lists(st.integers(), max_size=2),
)


def _examples(strategy: st.SearchStrategy[Any], count: int) -> list[Any]:
    """Of a property whose every example would need a database of its own: many, gone through on one."""
    found: list[Any] = []

    @settings(max_examples=count, database=None)
    @given(strategy)
    def gather(example: Any) -> None:
        found.append(example)

    gather()
    return found


def _calls(layer: ForebayDataLayer, one: Any, two: Any, three: Any) -> list[Callable[[], Awaitable[Any]]]:
    """What is done with ids that came from outside. Chainlit's own types see to it that some of them are text."""
    first, second, third = map(_text, (one, two, three))
    rating = Feedback(value=1, forId=first, threadId=second, id=third)
    element = Text(id=first, thread_id=second, content="x", for_id=third)
    return [
        lambda: layer.create_step(a_step(one or new_id(), id=two, parentId=three)),
        lambda: layer.upsert_feedback(rating),
        lambda: layer.create_element(element),
        lambda: layer.get_thread(one),
        lambda: layer.get_thread_author(two),
        lambda: layer.get_element(one, two),
        lambda: layer.get_step(three),
        lambda: layer.get_favorite_steps(one),
        lambda: layer.delete_step(two),
        lambda: layer.delete_element(three, one),
        lambda: layer.delete_feedback(one),
        lambda: layer.delete_thread(three),
    ]


def _text(value: Any) -> str:
    return str(value).encode(errors="replace").decode() or "-"


async def test_no_id_that_a_person_may_send_is_a_dead_letter_or_harms_another(
    layer: ForebayDataLayer,
) -> None:
    theirs = new_id()
    await layer.create_step(a_step(theirs))
    for ids in _examples(st.tuples(_HOSTILE, _HOSTILE, _HOSTILE), 150):
        for call in _calls(layer, *cast("tuple[Any, Any, Any]", ids)):
            with contextlib.suppress(RowError):
                await call()
    await layer.flush()
    assert dead_letters(layer) == 0
    assert not layer._engine.counts.paused
    assert len((await stored_thread(layer, theirs))["steps"]) == 1
