"""What Chainlit's page shows after what people do on it, in one window or in two."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from chainlit.element import Text
from chainlit.step import StepDict
from chainlit.types import Feedback
from chainlit.user import PersistedUser
from chainlit.user_session import user_sessions

from forebay import ForebayDataLayer, Settings
from tests.integration.conftest import MakeLayer
from tests.integration.contract import (
    a_step,
    a_thread,
    a_user,
    accounted_for,
    at,
    new_id,
    rows,
    stored_elements,
    stored_step,
    stored_thread,
)
from tests.support.sessions import in_session

# ---- stars


@pytest.fixture
async def ada(layer: ForebayDataLayer) -> PersistedUser:
    return await a_user(layer, "ada")


async def _favorites(layer: ForebayDataLayer, user: PersistedUser) -> list[str]:
    return [step["id"] for step in await layer.get_favorite_steps(user.id)]


async def _starred(layer: ForebayDataLayer, user: PersistedUser) -> StepDict:
    step = a_step(await a_thread(layer, user_id=user.id), output="hello")
    await layer.create_step(step)
    await layer.set_step_favorite(step.copy(), True)
    assert await _favorites(layer, user) == [step["id"]]
    return step


async def test_a_star_is_taken_away_in_a_chat_that_has_not_begun(
    layer: ForebayDataLayer, ada: PersistedUser
) -> None:
    step = await _starred(layer, ada)
    with in_session(user=ada):
        (found,) = await layer.get_favorite_steps(ada.id)
        await layer.update_step({**step, "output": "edited elsewhere"})  # dropped: it is another chat's
        shown = await layer.set_step_favorite(found, False)
        assert shown["output"] == "hello"
        assert await layer.get_favorite_steps(ada.id) == []
    assert (await stored_step(layer, step["id"]))["metadata"] == {"favorite": False}


async def test_a_star_in_a_chat_that_has_not_begun_waits_with_its_message(
    layer: ForebayDataLayer, ada: PersistedUser
) -> None:
    with in_session(user=ada) as session:
        step = a_step(session.thread_id)
        await layer.create_step(step)
        await layer.set_step_favorite(step, True)
    await layer.flush()
    assert await layer.get_thread(session.thread_id) is None


@pytest.mark.parametrize("flushed", [False, True], ids=["folded", "apart"])
@pytest.mark.parametrize("metadata", [{}, {"client": "old"}])
async def test_who_edits_a_message_without_knowing_of_its_star_leaves_it(
    layer: ForebayDataLayer, ada: PersistedUser, flushed: bool, metadata: dict[str, str]
) -> None:
    step = a_step(await a_thread(layer, user_id=ada.id), metadata={"gone": 1})
    await layer.create_step(step)
    await layer.set_step_favorite({**step}, True)
    if flushed:
        await layer.flush()
    await layer.update_step({**step, "output": "edited", "metadata": metadata})
    assert (await stored_step(layer, step["id"]))["metadata"] == {**metadata, "favorite": True}
    assert await _favorites(layer, ada) == [step["id"]]
    await layer.update_step({**step, "metadata": {"favorite": False}})
    assert await _favorites(layer, ada) == []


# ---- a window is closed


async def _close_window(layer: ForebayDataLayer, session: Any) -> None:
    """As Chainlit does it."""
    await layer.update_thread(thread_id=session.thread_id, metadata=session.to_persistable())


async def _resume(layer: ForebayDataLayer, session: Any) -> None:
    """As Chainlit does it."""
    metadata = (await stored_thread(layer, session.thread_id))["metadata"] or {}
    user_sessions[session.id] = metadata.copy()


async def test_a_variable_called_name_does_not_undo_a_rename(layer: ForebayDataLayer) -> None:
    with in_session(spoken=True) as session:
        await layer.update_thread(session.thread_id, name="First words")
        user_sessions[session.id] = {"name": "Ada"}
    await layer.update_thread(session.thread_id, name="Renamed")
    for _ in range(2):
        with in_session(spoken=True, thread_id=session.thread_id) as again:
            user_sessions[again.id] = {"name": "Ada"}
            await _close_window(layer, again)
    thread = await stored_thread(layer, session.thread_id)
    assert (thread["name"], (thread["metadata"] or {})["name"]) == ("Renamed", "Ada")


async def test_an_application_may_still_name_a_thread_by_its_metadata(layer: ForebayDataLayer) -> None:
    with in_session(spoken=True) as session:
        await layer.update_thread(session.thread_id, name="First words")
        await layer.update_thread(session.thread_id, metadata={"name": "A title"})
    assert (await stored_thread(layer, session.thread_id))["name"] == "A title"


async def test_a_window_whose_connection_broke_does_not_share_a_thread_again(layer: ForebayDataLayer) -> None:
    """It has resumed its thread once more, which was shared at that moment."""
    thread_id = await a_thread(layer, metadata={"kept": 1})
    with in_session(spoken=True, thread_id=thread_id) as session:
        await _resume(layer, session)
        await layer.update_thread(thread_id, metadata={"is_shared": True})
        before = session.socket_id
        session.restore(new_id())
        await _resume(layer, session)
        await layer.update_thread(thread_id, metadata={"is_shared": False})
        await layer.get_thread(thread_id)
        await _close_window(layer, session)
        assert ((await stored_thread(layer, thread_id))["metadata"] or {})["is_shared"] is False
        session.restore(before)


async def test_another_window_does_not_undo_what_was_done_in_the_meantime(layer: ForebayDataLayer) -> None:
    thread_id = await a_thread(
        layer, metadata={"is_shared": True, "shared_at": at(1), "mine": [1], "kept": 1}
    )
    with in_session(spoken=True, thread_id=thread_id) as session:
        await _resume(layer, session)
        variables = user_sessions[session.id]
        variables["mine"].append(2)  # in place
        elsewhere = {"is_shared": False, "shared_at": None, "kept": 2}
        await layer.update_thread(thread_id, metadata=elsewhere)
        for _ in range(2):  # the window is closed, is opened again, and is closed
            await _close_window(layer, session)
        metadata = (await stored_thread(layer, thread_id))["metadata"] or {}
        assert (metadata["is_shared"], metadata["kept"], metadata["mine"]) == (False, 2, [1, 2])
        assert "shared_at" not in metadata
        variables["kept"] = 3
        await _close_window(layer, session)
    assert ((await stored_thread(layer, thread_id))["metadata"] or {})["kept"] == 3


# ---- feedback, logins, order, times


async def test_a_thumb_that_is_changed_takes_the_comment_along(layer: ForebayDataLayer) -> None:
    step = a_step(await a_thread(layer))
    await layer.create_step(step)
    feedback = Feedback(forId=step["id"], threadId=step["threadId"], value=0, comment="wrong")
    feedback_id = await layer.upsert_feedback(feedback)
    changed = Feedback(id=feedback_id, forId=step["id"], threadId=step["threadId"], value=1)
    assert await layer.upsert_feedback(changed) == feedback_id
    shown = (await stored_step(layer, step["id"]))["feedback"]
    assert (shown["value"], shown["comment"]) == (1, None)


async def test_threads_open_under_a_login_name_that_has_changed(
    layer: ForebayDataLayer, ada: PersistedUser
) -> None:
    thread_id = await a_thread(layer, user_id=ada.id)
    await layer.execute_sql("UPDATE users SET identifier = 'ada@new' WHERE id = :id", {"id": ada.id})
    assert await layer.get_thread_author(thread_id) == "ada@new"
    assert (await stored_thread(layer, thread_id))["userIdentifier"] == "ada@new"


async def test_of_one_moment_a_parent_is_shown_before_its_child(layer: ForebayDataLayer) -> None:
    thread_id, parent, child = await a_thread(layer), new_id(), new_id()
    await layer.create_step(a_step(thread_id, id=child, parentId=parent))
    await layer.create_step(a_step(thread_id, id=parent))
    assert [step["id"] for step in (await stored_thread(layer, thread_id))["steps"]] == [parent, child]


@pytest.mark.parametrize("flushed", [False, True], ids=["folded", "apart"])
async def test_steps_of_one_moment_are_shown_as_they_were_sent_whichever_is_changed_last(
    layer: ForebayDataLayer, ada: PersistedUser, flushed: bool
) -> None:
    thread_id = await a_thread(layer, user_id=ada.id)
    steps = [a_step(thread_id) for _ in range(6)]
    for step in steps:
        await layer.create_step(step)
    if flushed:
        await layer.flush()
    for step in steps[3::-1]:
        await layer.update_step({**step, "output": "done"})
    wanted = [step["id"] for step in steps]
    assert [step["id"] for step in (await stored_thread(layer, thread_id))["steps"]] == wanted
    (thread,) = await layer.get_all_user_threads(ada.id) or []
    assert [step["id"] for step in thread["steps"]] == wanted
    assert all("forebaySentAt" not in step for step in thread["steps"])


async def test_times_with_an_offset_are_kept_in_utc(layer: ForebayDataLayer) -> None:
    step = a_step(
        new_id(), createdAt="2026-01-01T10:30:00+02:00", start="2026-01-01T10:30:00+02:00", end="noon"
    )
    await layer.create_step(step)
    stored = await stored_step(layer, step["id"])
    assert stored["createdAt"] == stored["start"] == "2026-01-01T08:30:00.000000Z"
    assert stored["end"] == "noon"


# ---- whose thread it is


async def test_a_chat_writes_into_its_own_thread_only(
    make_layer: MakeLayer, migrated_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    layer = make_layer(migrated_url)
    hers = a_step(await a_thread(layer), output="hers")
    await layer.create_step(hers)
    note = Text(name="note", content="hers", for_id=hers["id"])
    note.thread_id = hers["threadId"]
    await layer.create_element(note)
    with in_session(spoken=True) as session:
        await layer.update_step({**hers, "output": "his"})
        await layer.create_step(a_step(hers["threadId"], output="his"))
        his = Text(name="note", content="his", for_id=hers["id"], id=note.id)
        his.thread_id = hers["threadId"]
        await layer.create_element(his)
        await layer.delete_element(note.id, hers["threadId"])
        # In SQLite another spelling is another thread.
        his_own = session.thread_id.upper() if migrated_url.startswith("postgresql") else session.thread_id
        await layer.create_step(a_step(his_own, output="his own"))
    thread = await stored_thread(layer, hers["threadId"])
    assert [step["output"] for step in thread["steps"]] == ["hers"]
    (element,) = await stored_elements(layer, hers["threadId"])
    assert element["id"] == note.id
    assert layer._engine.counts.dropped["other_thread"] == 4
    assert accounted_for(layer)
    assert "own thread only" in caplog.text
    assert "his" not in caplog.text.replace("this", "")


# ---- much of it


async def test_a_long_thread_does_not_stop_the_event_loop(make_layer: MakeLayer, migrated_url: str) -> None:
    """By what is done in the loop's own thread, which a slow machine does not change."""
    layer = make_layer(migrated_url, settings=Settings(statement_timeout=60, read_max_rows=20_000))
    thread_id = await a_thread(layer)
    await layer.flush()
    columns = 'id, "threadId", name, type, streaming, "createdAt"'
    for start in range(0, 20_000, 5_000):
        values = ", ".join(
            f"('{new_id()}', '{thread_id}', 'n', 'run', false, '{at(n % 3600)}')"
            for n in range(start, start + 5_000)
        )
        await layer.execute_sql(f"INSERT INTO steps ({columns}) VALUES {values}", {})
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        while True:
            before = time.thread_time()
            await asyncio.sleep(0)
            longest = max(longest, time.thread_time() - before)

    watching = asyncio.create_task(watch())
    before = time.process_time()
    thread = await stored_thread(layer, thread_id)
    spent = time.process_time() - before
    watching.cancel()
    assert len(thread["steps"]) == 20_000
    assert longest < spent / 3
    assert await rows(layer, "SELECT count(*) AS n FROM steps") == [{"n": 20_000}]
