"""Subclasses as they are written for Chainlit's SQLAlchemy layer do on forebay what they do there."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
import sqlalchemy as sa
from chainlit.data.utils import queue_until_user_message
from chainlit.element import Text
from chainlit.step import StepDict
from chainlit.types import Feedback, Pagination, ThreadDict, ThreadFilter
from chainlit.user import PersistedUser, User
from typing_extensions import override

from forebay import ForebayDataLayer, OverrideError, RowError
from tests.integration.conftest import MakeLayer
from tests.integration.contract import (
    a_step,
    a_thread,
    a_user,
    at,
    new_id,
    rows,
    stored_elements,
    stored_step,
    stored_thread,
)
from tests.support.patience import patience
from tests.support.storage import MemoryStorage


class _Redacting(ForebayDataLayer):
    """What is stored goes through `create_step`."""

    @override
    @queue_until_user_message()  # type: ignore[untyped-decorator]
    async def create_step(self, step_dict: StepDict) -> None:
        step_dict["output"] = step_dict["output"].replace("secret", "•••")
        await super().create_step(step_dict)


class _RedactingMore(_Redacting):
    """A subclass of a subclass, with an `update_step` of its own too."""

    @override
    async def update_step(self, step_dict: StepDict) -> None:
        step_dict["name"] = "bot"
        await super().update_step(step_dict)


class _Shaping(ForebayDataLayer):
    """Every thread that is read goes through `get_all_user_threads`."""

    calls = 0

    @override
    async def get_all_user_threads(
        self, user_id: str | None = None, thread_id: str | None = None
    ) -> list[ThreadDict] | None:
        self.calls += 1
        threads = await super().get_all_user_threads(user_id, thread_id)
        for thread in threads or ():
            thread["name"] = f"<{thread['name']}>"
        return threads


class _Reading(ForebayDataLayer):
    """A `get_thread` by way of `get_all_user_threads`, as Chainlit's own is."""

    @override
    async def get_thread(self, thread_id: str) -> ThreadDict | None:
        threads = await self.get_all_user_threads(thread_id=thread_id)
        return threads[0] if threads else None


class _ReadingAndShaping(_Shaping, _Reading):
    """Both."""


class _Naming(ForebayDataLayer):
    """Contents lie under a folder of the application's own."""

    @override
    async def _get_user_id_by_thread(self, thread_id: str) -> str | None:
        return f"tenant-{await super()._get_user_id_by_thread(thread_id)}"


class _Tagging(ForebayDataLayer):
    """Each thread gets the application's tag, whoever writes into it first; SQLite has no lists."""

    @override
    async def update_thread(self, thread_id: str, *arguments: Any, **named: Any) -> None:
        named["tags"] = json.dumps(["ours"])
        named["metadata"] = json.dumps({**(named.get("metadata") or {}), "tenant": 7})
        await super().update_thread(thread_id, *arguments, **named)


class _Knowing(ForebayDataLayer):
    """Whoever logs in is what `get_user` says."""

    @override
    async def get_user(self, identifier: str) -> PersistedUser | None:
        user = await super().get_user(identifier)
        if user is not None:
            user.metadata["role"] = "guest"
        return user


@pytest.mark.parametrize("made", [_Redacting, _RedactingMore])
async def test_an_update_goes_through_create_step(
    make_layer_of: Any, made: type[ForebayDataLayer], migrated_url: str
) -> None:
    layer = make_layer_of(made, migrated_url)
    thread_id, step_id = await a_thread(layer), new_id()
    await layer.create_step(a_step(thread_id, id=step_id, output="a secret"))
    await layer.update_step(a_step(thread_id, id=step_id, output="another secret"))
    assert (await stored_step(layer, step_id))["output"] == "another •••"
    await layer.set_step_favorite(a_step(thread_id, id=step_id, output="my secret"), True)
    assert (await stored_step(layer, step_id))["output"] == "my •••"


@pytest.mark.parametrize("made", [_Shaping, _ReadingAndShaping])
async def test_threads_are_read_through_get_all_user_threads(
    make_layer_of: Any, made: type[_Shaping], migrated_url: str
) -> None:
    layer = make_layer_of(made, migrated_url)
    user = await a_user(layer)
    threads = [await a_thread(layer, user_id=user.id, name=f"thread {n}") for n in range(3)]
    for n, thread_id in enumerate(threads):
        step_id = new_id()
        await layer.create_step(a_step(thread_id, id=step_id, output=f"Said {n}", createdAt=at(n)))
        await layer.upsert_feedback(Feedback(forId=step_id, threadId=thread_id, value=int(n > 0)))  # type: ignore[arg-type]
    assert (await stored_thread(layer, threads[0]))["name"] == "<thread 0>"

    async def listed(first: int, cursor: str | None = None, **filters: Any) -> tuple[list[str | None], bool]:
        page = await layer.list_threads(
            Pagination(first=first, cursor=cursor), ThreadFilter(userId=user.id, **filters)
        )
        return [thread["name"] for thread in page.data], page.pageInfo.hasNextPage

    assert await listed(2) == (["<thread 2>", "<thread 1>"], True)
    assert await listed(2, threads[1]) == (["<thread 0>"], False)
    assert await listed(2, new_id()) == ([], False)
    assert await listed(9, search="sAiD 1") == (["<thread 1>"], False)
    assert await listed(9, feedback=0) == (["<thread 0>"], False)
    assert layer.calls >= 6


async def test_a_get_thread_that_asks_for_all_of_one_ends(make_layer_of: Any, migrated_url: str) -> None:
    layer = make_layer_of(_Reading, migrated_url)
    thread_id = await a_thread(layer, name="hello")
    assert (await stored_thread(layer, thread_id))["name"] == "hello"
    assert await layer.get_thread(new_id()) is None


async def test_contents_lie_where_the_override_says(
    make_layer_of: Any, migrated_url: str, storage: MemoryStorage
) -> None:
    layer = make_layer_of(_Naming, migrated_url)
    user = await a_user(layer)
    thread_id = await a_thread(layer, user_id=user.id)
    step_id = new_id()
    await layer.create_step(a_step(thread_id, id=step_id))
    element = Text(name="note", content="hello", for_id=step_id)
    element.thread_id = thread_id
    await layer.create_element(element)
    (found,) = await stored_elements(layer, thread_id)
    assert str(found["objectKey"]).startswith(f"tenant-{user.id}/")


async def test_each_step_makes_its_thread_by_update_thread(make_layer_of: Any, migrated_url: str) -> None:
    layer = make_layer_of(_Tagging, migrated_url)
    thread_id = new_id()
    await layer.create_step(a_step(thread_id, output="first"))
    thread = await stored_thread(layer, thread_id)
    assert (thread["tags"], thread["metadata"]) == (["ours"], {"tenant": 7})


async def test_create_user_returns_what_get_user_says(make_layer_of: Any, migrated_url: str) -> None:
    layer = make_layer_of(_Knowing, migrated_url)
    user = await layer.create_user(User(identifier="ada"))
    assert user is not None
    assert user.metadata == {"role": "guest"}


async def test_metadata_that_is_no_object_is_refused(layer: ForebayDataLayer) -> None:
    with pytest.raises(RowError, match="metadata"):
        await layer.update_thread(new_id(), metadata="[1]")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name", ["execute_sql", "_get_user_identifer_by_id", "get_current_timestamp", "clean_result"]
)
def test_what_nothing_would_call_is_refused_when_the_class_is_made(name: str) -> None:
    async def unheard(*_: Any) -> None: ...

    with pytest.raises(OverrideError, match=name) as refused:
        type("Theirs", (ForebayDataLayer,), {name: unheard})
    assert "for_own_calls" in str(refused.value)
    theirs = type("Theirs", (ForebayDataLayer,), {name: unheard}, for_own_calls=(name,))
    type("More", (theirs,), {})


def test_who_overrides_nothing_has_the_short_way() -> None:
    class Theirs(ForebayDataLayer):
        @override
        async def delete_thread(self, thread_id: str) -> None:
            await super().delete_thread(thread_id)

    assert Theirs._own == ForebayDataLayer._own


async def test_a_session_sees_what_was_awaited_before_it(make_layer: MakeLayer, migrated_url: str) -> None:
    layer = make_layer(migrated_url)
    query = sa.text("SELECT output FROM steps WHERE id = :id")
    thread_id = await a_thread(layer)
    for n in range(60):
        step_id = new_id()
        await layer.create_step(a_step(thread_id, id=step_id, output=f"said {n}"))
        async with layer.async_session() as session:
            assert await session.scalar(query, {"id": step_id}) == f"said {n}"


async def test_a_session_looks_anew_in_each_transaction_and_never_waits_for_itself(
    make_layer: MakeLayer, migrated_url: str
) -> None:
    layer = make_layer(migrated_url)
    thread_id, step_id = await a_thread(layer, name="one"), new_id()
    query = sa.text("SELECT output FROM steps WHERE id = :id")
    async with patience(), layer.async_session() as session:
        assert session.get_bind() is not None  # as a property, outside any statement
        for said in ("one", "two"):
            await layer.create_step(a_step(thread_id, id=step_id, output=said))
            await session.begin()
            assert await session.scalar(query, {"id": step_id}) == said
            await session.commit()
        # It holds the thread's row; what is queued for that waits for it, and not the other way round.
        await session.execute(sa.text("UPDATE threads SET name = 'theirs' WHERE id = :id"), {"id": thread_id})
        await layer.update_thread(thread_id, metadata={"seen": True})
        await session.execute(sa.text("UPDATE threads SET name = 'theirs' WHERE id = :id"), {"id": thread_id})
        await session.commit()
    assert await rows(layer, "SELECT name FROM threads") == [{"name": "theirs"}]


@pytest.mark.parametrize("pool_size", [2, 3])
async def test_sessions_leave_the_writer_its_connection(
    make_layer: MakeLayer, migrated_postgres_url: str, monkeypatch: pytest.MonkeyPatch, pool_size: int
) -> None:
    monkeypatch.setenv("FOREBAY_POOL_SIZE", str(pool_size))
    layer = make_layer(migrated_postgres_url)
    thread_id = await a_thread(layer)

    async def write_and_look(n: int) -> None:
        step_id = new_id()
        await layer.create_step(a_step(thread_id, id=step_id, output=f"said {n}"))
        async with layer.async_session() as session:
            found = await session.scalar(sa.text("SELECT output FROM steps WHERE id = :id"), {"id": step_id})
            assert found == f"said {n}"

    async with patience():
        await asyncio.gather(*(write_and_look(n) for n in range(20)))
