"""Every bound in bytes, filled: what is refused is the newest, typed and counted, and nobody else is harmed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Literal

import pytest
from chainlit.element import CustomElement, ElementDisplay
from chainlit.types import Feedback
from chainlit.user import User

from forebay import ChangeTooLarge, ForebayDataLayer, QueueFull, Settings
from forebay.model.changes import LONGEST_COMMENT
from tests.integration.conftest import MakeLayer
from tests.integration.contract import a_step, a_thread, accounted_for, new_id, stored_step, stored_thread

_MOST = 64 * 1024


@pytest.fixture
def small(make_layer: MakeLayer, emptied_url: str) -> ForebayDataLayer:
    return make_layer(emptied_url, settings=Settings(change_max_bytes=_MOST))


def _element(thread_id: str, **props: Any) -> CustomElement:
    display: ElementDisplay = "inline"
    return CustomElement(
        id=new_id(), thread_id=thread_id, name="e", props=props, for_id=new_id(), display=display
    )


_Write = Callable[[ForebayDataLayer, str, str], Awaitable[Any]]
_WRITES: dict[str, _Write] = {
    "a step": lambda layer, thread, text: layer.create_step(a_step(thread, output=text)),
    "its update": lambda layer, thread, text: layer.update_step(a_step(thread, input=text)),
    "its metadata": lambda layer, thread, text: layer.create_step(a_step(thread, metadata={"k": text})),
    "what no column is for": lambda layer, thread, text: layer.create_step(
        {**a_step(thread), "unknown": text}  # type: ignore[typeddict-unknown-key]
    ),
    "a thread's metadata": lambda layer, thread, text: layer.update_thread(thread, metadata={"k": text}),
    "a key": lambda layer, thread, text: layer.update_thread(thread, metadata={text: None}),
    "a tag": lambda layer, thread, text: layer.update_thread(thread, tags=[text]),
    "an element": lambda layer, thread, text: layer.create_element(_element(thread, text=text)),
    "a user": lambda layer, thread, text: layer.create_user(User(identifier="ada", metadata={"k": text})),
}


@pytest.mark.parametrize("what", _WRITES)
@pytest.mark.parametrize("text", ["x" * _MOST, "ж" * (_MOST // 2), "😀" * (_MOST // 4)], ids=len)
async def test_a_change_above_its_limit_is_refused_alone(
    small: ForebayDataLayer, what: str, text: str
) -> None:
    thread_id, neighbour = await a_thread(small), new_id()
    waiting = small.create_step(a_step(thread_id, id=neighbour, output="kept"))
    with pytest.raises(ChangeTooLarge, match=f"FOREBAY_CHANGE_MAX_BYTES={_MOST}") as refused:
        await _WRITES[what](small, thread_id, text)
    await waiting
    assert text[:10] not in str(refused.value)
    await small.flush()
    assert small._engine.counts.refused == {"ChangeTooLarge": 1}
    assert (await stored_step(small, neighbour))["output"] == "kept"
    assert len((await stored_thread(small, thread_id))["steps"]) == 1
    assert accounted_for(small)


@pytest.mark.parametrize("what", _WRITES)
async def test_a_change_below_its_limit_is_taken(small: ForebayDataLayer, what: str) -> None:
    thread_id = await a_thread(small)
    await _WRITES[what](small, thread_id, "ж" * (_MOST // 2 - 1024))
    await small.flush()
    assert not small._engine.counts.refused
    assert accounted_for(small)


async def test_a_comment_has_a_limit_of_its_own(small: ForebayDataLayer) -> None:
    """It comes with each read of its step."""
    thread_id = await a_thread(small)
    step = a_step(thread_id)
    await small.create_step(step)
    rated = Feedback(forId=step["id"], threadId=thread_id, value=1, comment="ж" * LONGEST_COMMENT)
    await small.upsert_feedback(rated)
    with pytest.raises(ChangeTooLarge, match=f"a comment takes {LONGEST_COMMENT} letters"):
        await small.upsert_feedback(replace(rated, comment=f"{rated.comment}ж"))
    await small.flush()
    assert small._engine.counts.refused == {"ChangeTooLarge": 1}
    shown = (await stored_step(small, step["id"]))["feedback"]
    assert shown is not None
    assert shown["comment"] == rated.comment
    assert accounted_for(small)


@pytest.mark.parametrize("durability", ["journal", "memory", "commit"])
async def test_what_one_chat_has_on_its_way_leaves_room_to_others(
    make_layer: MakeLayer, emptied_url: str, durability: Literal["journal", "memory", "commit"]
) -> None:
    """Twenty messages of a quarter of a chat's share each, all at once."""
    settings = Settings(durability=durability, queue_max_bytes=16 * _MOST, queue_timeout=0)
    layer = make_layer(emptied_url, settings=settings)
    greedy, neighbour = await a_thread(layer), await a_thread(layer)
    long = "x" * (_MOST - 2048)
    sent = [a_step(greedy, output=long) for _ in range(20)]
    outcomes = asyncio.gather(*map(layer.create_step, sent), return_exceptions=True)
    others = [layer.create_step(a_step(neighbour, output=long)) for _ in range(4)]
    await asyncio.gather(*others)
    refused = [type(one) for one in await outcomes]
    assert refused == [type(None)] * 4 + [QueueFull] * 16
    assert layer._engine.counts.refused == {"person_full": 16}
    assert len((await stored_thread(layer, neighbour))["steps"]) == 4
    await layer.flush()
    await layer.create_step(sent[-1])  # there is room again
    assert len((await stored_thread(layer, greedy))["steps"]) == 5
    assert accounted_for(layer)
