"""What Chainlit expects of threads and users: each promise on both databases."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest
from chainlit.types import Feedback, Pagination, ThreadDict, ThreadFilter
from chainlit.user import User

from forebay import ForebayDataLayer, Settings
from tests.integration.chat import Chat
from tests.integration.contract import new_id


async def _names(
    chat: Chat, user_id: str, first: int = 20, cursor: str | None = None, **filters: Any
) -> list[str]:
    page = await chat.layer.list_threads(
        Pagination(first=first, cursor=cursor),
        ThreadFilter(userId=user_id, **filters),
    )
    return [str(thread["name"]) for thread in page.data]


async def _named_thread(chat: Chat, user_id: str, name: str, **step: object) -> str:
    thread_id = new_id()
    await chat.layer.update_thread(thread_id, name=name, user_id=user_id)
    await chat.step(thread_id, **step)
    return thread_id


# ---- users


async def test_a_user_is_created_once_and_keeps_id_and_time(chat: Chat) -> None:
    first = await chat.layer.create_user(User(identifier="ann", metadata={"a": 1}))
    second = await chat.layer.create_user(User(identifier="ann", metadata={"b": {"c": [2]}}))
    assert first is not None
    assert second is not None
    assert (second.id, second.createdAt) == (first.id, first.createdAt)
    assert second.metadata == {"b": {"c": [2]}}, "metadata is replaced, not merged"
    assert await chat.layer.get_user("ann") == second


async def test_an_unknown_user_is_none(chat: Chat) -> None:
    assert await chat.layer.get_user("nobody") is None


async def test_times_are_utc(chat: Chat) -> None:
    user = await chat.user()
    for text in (user.createdAt, await chat.layer.get_current_timestamp()):
        assert text.endswith("Z")
        age = datetime.now(UTC) - datetime.fromisoformat(text)
        assert abs(age.total_seconds()) < 60


# ---- update_thread


async def test_no_argument_creates_the_thread(chat: Chat) -> None:
    thread_id = new_id()
    await chat.layer.update_thread(thread_id)
    thread = await chat.thread(thread_id)
    assert (thread["name"], thread["metadata"], thread["steps"], thread["elements"]) == (None, {}, [], [])


async def test_none_leaves_a_field_alone(chat: Chat) -> None:
    user, thread_id = await chat.user(), new_id()
    await chat.layer.update_thread(thread_id, name="N", user_id=user.id, metadata={"a": 1}, tags=["t"])
    created = (await chat.thread(thread_id))["createdAt"]
    await chat.layer.update_thread(thread_id)
    await chat.layer.flush()
    await chat.layer.update_thread(thread_id, name=None, metadata=None, tags=None)
    thread = await chat.thread(thread_id)
    assert (thread["name"], thread["userId"], thread["userIdentifier"]) == ("N", user.id, "ann")
    assert (thread["metadata"], thread["tags"], thread["createdAt"]) == ({"a": 1}, ["t"], created)


async def test_metadata_merges_shallowly_and_none_deletes_its_key(chat: Chat) -> None:
    thread_id = new_id()
    await chat.layer.update_thread(thread_id, metadata={"a": {"x": 1}, "b": 2, "c": 3})
    await chat.layer.flush()
    await chat.layer.update_thread(thread_id, metadata={"a": {"y": None}, "b": None, "d": 0.1 + 0.2})
    assert (await chat.thread(thread_id))["metadata"] == {"a": {"y": None}, "c": 3, "d": 0.1 + 0.2}


async def test_a_key_that_is_set_again_after_its_deletion_stays(chat: Chat) -> None:
    thread_id = new_id()
    await chat.layer.update_thread(thread_id, metadata={"a": 1})
    await chat.layer.flush()
    await chat.layer.update_thread(thread_id, metadata={"a": None})
    await chat.layer.update_thread(thread_id, metadata={"a": 2})
    assert (await chat.thread(thread_id))["metadata"] == {"a": 2}


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"name": "given", "metadata": {"name": "in metadata"}}, "given"),
        ({"metadata": {"name": "in metadata"}}, "in metadata"),
        ({"name": "x" * 300}, "x" * 255),
        ({"metadata": {"name": "y" * 300}}, "y" * 255),
        ({"name": ""}, ""),
    ],
)
async def test_where_the_name_comes_from(chat: Chat, arguments: dict[str, object], name: str) -> None:
    thread_id = new_id()
    await chat.layer.update_thread(thread_id, **arguments)  # type: ignore[arg-type]
    assert (await chat.thread(thread_id))["name"] == name


async def test_a_rename_survives_the_next_disconnect(chat: Chat) -> None:
    thread_id = new_id()
    await chat.layer.update_thread(thread_id, name="First words", metadata={"name": "First words"})
    await chat.layer.update_thread(thread_id, name="A better name")
    await chat.layer.update_thread(thread_id, metadata={"chat_profile": None, "client_type": "webapp"})
    assert (await chat.thread(thread_id))["name"] == "A better name"


async def test_the_first_messages_step_comes_before_its_thread(chat: Chat) -> None:
    user, thread_id = await chat.user(), new_id()
    writes = [
        asyncio.create_task(chat.step(thread_id, type="user_message")),
        asyncio.create_task(chat.layer.update_thread(thread_id, name="Hello", user_id=user.id)),
    ]
    await asyncio.gather(*writes)
    thread = await chat.thread(thread_id)
    assert (thread["name"], thread["userIdentifier"], len(thread["steps"])) == ("Hello", "ann", 1)


# ---- reading


async def test_an_unknown_thread_is_none_and_nobodys(chat: Chat) -> None:
    for thread_id in (new_id(), "not-a-uuid", ""):
        assert await chat.layer.get_thread(thread_id) is None
        assert await chat.layer.get_thread_author(thread_id) == ""


async def test_the_author_is_the_owners_identifier(chat: Chat) -> None:
    user, mine, nobodys = await chat.user(), new_id(), new_id()
    await chat.layer.update_thread(mine, user_id=user.id)
    await chat.layer.update_thread(nobodys)
    assert await chat.layer.get_thread_author(mine) == "ann"
    assert await chat.layer.get_thread_author(nobodys) == ""


async def test_steps_are_in_the_order_of_their_times(chat: Chat) -> None:
    thread_id = new_id()
    late = await chat.step(thread_id, createdAt="2026-03-01T00:00:00.000000Z")
    early = await chat.step(thread_id, createdAt="2026-02-01T00:00:00.000000Z")
    assert [step["id"] for step in (await chat.thread(thread_id))["steps"]] == [early, late]


async def test_steps_of_one_time_are_in_the_order_of_insertion_and_those_without_one_last(chat: Chat) -> None:
    thread_id, moment = new_id(), "2026-02-01T00:00:00.000000Z"
    timeless = await chat.step(thread_id)
    await chat.layer.execute_sql('UPDATE steps SET "createdAt" = NULL', {})
    later = await chat.step(thread_id, createdAt="2026-03-01T00:00:00.000000Z")
    together = [await chat.step(thread_id, createdAt=moment) for _ in range(10)]
    shown = [step["id"] for step in (await chat.thread(thread_id))["steps"]]
    assert shown == [*together, later, timeless]


async def test_the_list_needs_a_user(chat: Chat) -> None:
    with pytest.raises(ValueError, match="userId is required"):
        await chat.layer.list_threads(Pagination(first=1), ThreadFilter())


async def test_the_list_is_of_the_user_alone_newest_activity_first(chat: Chat) -> None:
    ann, bob = await chat.user("ann"), await chat.user("bob")
    threads = {name: await _named_thread(chat, ann.id, name) for name in ("one", "two", "three")}
    await _named_thread(chat, bob.id, "bob's")
    assert await _names(chat, ann.id) == ["three", "two", "one"]
    await chat.step(threads["one"])
    await chat.layer.update_thread(threads["two"], name="two, renamed")
    assert await _names(chat, ann.id) == ["one", "three", "two, renamed"], "a rename is no activity"


async def test_the_list_has_neither_steps_nor_elements_unless_asked(chat: Chat, emptied_url: str) -> None:
    user = await chat.user()
    thread_id = await _named_thread(chat, user.id, "one", output="said")
    (thread,) = (await chat.layer.list_threads(Pagination(first=5), ThreadFilter(userId=user.id))).data
    assert (thread["steps"], thread["elements"]) == ([], [])
    assert set(thread) == set(ThreadDict.__annotations__)

    with_steps = ForebayDataLayer(emptied_url, settings=Settings(list_include_steps=True))
    (thread,) = (await with_steps.list_threads(Pagination(first=5), ThreadFilter(userId=user.id))).data
    assert [step["output"] for step in thread["steps"]] == ["said"]
    whole = await with_steps.get_thread(thread_id)
    assert whole is not None
    assert {**thread, "createdAt": whole["createdAt"]} == whole  # Chainlit's page sorts the list by it
    await with_steps.close()


@pytest.mark.parametrize("same_time", [False, True])
async def test_pages_have_every_thread_once(chat: Chat, same_time: bool) -> None:
    user = await chat.user()
    moment = {"createdAt": "2026-05-01T00:00:00.000000Z"} if same_time else {}
    names = {f"thread {number}" for number in range(7)}
    for name in names:
        await _named_thread(chat, user.id, name, **moment)
    seen, cursor, more = [], None, True
    while more:
        page = await chat.layer.list_threads(Pagination(first=2, cursor=cursor), ThreadFilter(userId=user.id))
        assert page.pageInfo.startCursor == page.data[0]["id"]
        seen += [thread["name"] for thread in page.data]
        cursor, more = page.pageInfo.endCursor, page.pageInfo.hasNextPage
    assert sorted(map(str, seen)) == sorted(names)
    assert len(seen) == 7


async def test_a_page_goes_on_where_its_cursor_stood(chat: Chat) -> None:
    user = await chat.user()
    threads = [await _named_thread(chat, user.id, str(number)) for number in range(4)]
    page = await chat.layer.list_threads(Pagination(first=2), ThreadFilter(userId=user.id))
    cursor = page.pageInfo.endCursor
    assert cursor == threads[2]
    await chat.step(threads[2])  # the cursor's thread moves up
    assert await _names(chat, user.id, cursor=cursor) == ["1", "0"]
    await chat.layer.delete_thread(threads[2])  # and goes
    assert await _names(chat, user.id, cursor=cursor) == ["1", "0"]


async def test_a_bare_thread_id_is_a_cursor_and_an_unknown_one_gives_nothing(
    chat: Chat, emptied_url: str
) -> None:
    ann, bob = await chat.user("ann"), await chat.user("bob")
    threads = [await _named_thread(chat, ann.id, str(number)) for number in range(3)]
    assert await _names(chat, ann.id, cursor=threads[1]) == ["0"]
    for cursor in (new_id(), "nonsense"):
        page = await chat.layer.list_threads(Pagination(first=5, cursor=cursor), ThreadFilter(userId=ann.id))
        info = page.pageInfo
        assert (page.data, info.startCursor, info.endCursor, info.hasNextPage) == ([], None, None, False)
    assert await _names(chat, bob.id, cursor=threads[1]) == [], "another user's thread is no cursor"


async def test_the_limit_caps_a_page(emptied_url: str, chat: Chat) -> None:
    user = await chat.user()
    for number in range(3):
        await _named_thread(chat, user.id, str(number))
    await chat.layer.flush()
    layer = ForebayDataLayer(emptied_url, user_thread_limit=2)
    page = await layer.list_threads(Pagination(first=50), ThreadFilter(userId=user.id))
    assert [thread["name"] for thread in page.data] == ["2", "1"]
    assert page.pageInfo.hasNextPage
    threads = await layer.get_all_user_threads(user_id=user.id)
    assert threads is not None
    assert [(thread["name"], len(thread["steps"])) for thread in threads] == [("2", 1), ("1", 1)]
    await layer.close()


@pytest.mark.parametrize(
    ("needle", "found"),
    [
        ("ALPHA", ["name"]),
        ("beta", ["output"]),
        ("gamma", ["input"]),
        ("ÉTÉ", ["accents"]),
        ("100%", ["percent"]),
        ("a_b", ["underscore"]),
        ("c\\d", ["backslash"]),
        ("e!f", ["exclamation"]),
        ("%", ["percent"]),
        ("nowhere", []),
    ],
)
async def test_search_is_literal_and_ignores_case(chat: Chat, needle: str, found: list[str]) -> None:
    user = await chat.user()
    texts = {
        "output": {"output": "It is BETA."},
        "input": {"input": "Gamma rays", "showInput": "json"},
        "accents": {"output": "un bel été"},
        "percent": {"output": "100% of it"},
        "underscore": {"output": "a_b"},
        "decoy": {"output": "axb 1000 cd"},
        "backslash": {"output": "c\\d"},
        "exclamation": {"output": "e!f"},
    }
    for name, values in texts.items():
        await _named_thread(chat, user.id, name, **values)
    await _named_thread(chat, user.id, "alpha")
    expected = ["alpha"] if found == ["name"] else found
    assert await _names(chat, user.id, search=needle) == expected


@pytest.mark.parametrize(("value", "found"), [(0, ["down"]), (1, ["changed", "up"]), (None, None)])
async def test_the_feedback_filter_knows_down_and_up(
    chat: Chat, value: int | None, found: list[str] | None
) -> None:
    user = await chat.user()
    for name, values in {"up": [1], "down": [0], "none": [], "changed": [0, 1]}.items():
        thread_id = await _named_thread(chat, user.id, name)
        step_id = await chat.step(thread_id)
        for rating in values:
            await chat.layer.upsert_feedback(Feedback(forId=step_id, threadId=thread_id, value=rating))  # type: ignore[arg-type]
    expected = found if found is not None else ["changed", "none", "down", "up"]
    assert await _names(chat, user.id, feedback=value) == expected


async def test_threads_of_another_writer_are_listed_by_their_steps(chat: Chat) -> None:
    user = await chat.user()
    await _named_thread(chat, user.id, "middle")  # at minute 0
    for name, day in (("newest", "2026-06-01"), ("oldest", "2025-06-01")):
        thread_id = new_id()
        await chat.layer.update_thread(thread_id, name=name, user_id=user.id)
        await chat.layer.execute_sql(
            'INSERT INTO steps (id, "threadId", name, type, streaming, "createdAt")'
            " VALUES (:id, :thread_id, 'n', 'run', false, :day)",
            {"id": new_id(), "thread_id": thread_id, "day": f"{day}T00:00:00Z"},
        )
    assert await _names(chat, user.id) == ["newest", "middle", "oldest"]
    first = await chat.layer.list_threads(Pagination(first=1), ThreadFilter(userId=user.id))
    assert await _names(chat, user.id, cursor=first.pageInfo.endCursor) == ["middle", "oldest"]


# ---- deleting


async def test_a_deleted_thread_takes_everything_with_it_and_stays_gone(chat: Chat) -> None:
    user = await chat.user()
    thread_id = await _named_thread(chat, user.id, "doomed")
    kept = await _named_thread(chat, user.id, "kept")
    step_id = await chat.step(thread_id)
    await chat.layer.upsert_feedback(Feedback(forId=step_id, threadId=thread_id, value=1))
    await chat.layer.delete_thread(thread_id)
    assert await chat.layer.get_thread(thread_id) is None

    await chat.step(thread_id)
    await chat.layer.update_thread(thread_id, metadata={"late": True})
    assert await chat.layer.get_thread(thread_id) is None
    for table in ("steps", "feedbacks", "elements"):
        left = await chat.layer.execute_sql(
            f'SELECT count(*) AS n FROM {table} WHERE "threadId" = :id', {"id": thread_id}
        )
        assert left == [{"n": 0}]
    assert chat.layer._engine.counts.dropped["deleted_thread"] == 2
    assert await _names(chat, user.id) == ["kept"]
    assert await chat.layer.get_thread(kept) is not None


async def test_deleting_what_is_not_there_is_fine(chat: Chat) -> None:
    for key in (new_id(), "not-a-uuid"):
        await chat.layer.delete_thread(key)
        await chat.layer.delete_step(key)
        await chat.layer.delete_element(key)
        assert await chat.layer.delete_feedback(key) is True
