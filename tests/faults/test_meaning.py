"""What a change means: its place, whose it is, and that deleted stays deleted, whichever way it is written."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import Context
from pathlib import Path
from typing import Any

import pytest
from chainlit.context import ChainlitContext, context_var, init_http_context
from chainlit.element import Text
from chainlit.types import Feedback, Pagination, ThreadFilter
from chainlit.user import User
from typing_extensions import override

from forebay import DeletionIncomplete, ForebayDataLayer, InvalidId, RowError
from tests.faults.ways import WAYS, Way, opened
from tests.integration.contract import (
    a_step,
    a_thread,
    a_user,
    dead_letters,
    new_id,
    rows,
    stored_elements,
    stored_step,
    stored_thread,
)
from tests.integration.test_loops import elsewhere
from tests.support.patience import patience
from tests.support.sessions import in_session
from tests.support.storage import MemoryStorage


@pytest.fixture(params=WAYS)
async def way(
    request: pytest.FixtureRequest, migrated_url: str, chainlit_context: ChainlitContext, tmp_path: Path
) -> AsyncIterator[Way]:
    async with opened(migrated_url, request.param, tmp_path / "journals") as way:
        yield way


@pytest.fixture
def layer(way: Way) -> ForebayDataLayer:
    return way.layer()


def _note(step: Any, content: str = "hello", element_id: str | None = None) -> Text:
    note = Text(id=element_id or new_id(), name="note", content=content, for_id=step["id"])
    note.thread_id = step["threadId"]
    return note


async def _ids(layer: ForebayDataLayer, table: str) -> set[str]:
    return {str(row["id"]) for row in await rows(layer, f"SELECT CAST(id AS TEXT) AS id FROM {table}")}


# ---- a change's place


async def test_what_a_chat_wrote_too_early_comes_before_what_it_writes_after(layer: ForebayDataLayer) -> None:
    """One person's two windows: each holds its own back, and the one that stays silent is not stored."""
    with in_session() as silent:
        await layer.create_step(a_step(silent.thread_id))
    with in_session() as session:
        asked, gone = a_step(session.thread_id, output="Pick"), a_step(session.thread_id)
        late = [layer.create_step(asked.copy()), layer.create_step(gone.copy())]
        note = _note(gone)
        await layer.create_element(note)
        for call in late:
            await call
        await layer.delete_element(note.id, session.thread_id)
        session.has_first_interaction = True
        queued = [*session.thread_queues.values()]
        await layer.update_step({**asked, "output": "Selected: Go"})
        await layer.delete_step(gone["id"])
        await layer.update_step({**gone, "output": "it ends after it was removed"})
        for queue in queued:  # as Chainlit flushes them, behind what the application does meanwhile
            while queue:
                method, self, arguments, named = queue.popleft()
                await method(self, *arguments, **named)
    await layer.flush()
    thread = await stored_thread(layer, session.thread_id)
    assert {step["id"]: step["output"] for step in thread["steps"]} == {asked["id"]: "Selected: Go"}
    assert thread["elements"] == []
    assert await layer.get_thread(silent.thread_id) is None


async def test_what_a_thread_of_its_own_loop_writes_has_its_place(layer: ForebayDataLayer) -> None:
    """Creates, changes and deletes from loops that end at once, in turn with the home's."""
    thread_id = await a_thread(layer)
    kept, gone = a_step(thread_id, output="1"), a_step(thread_id)
    rated = Feedback(id=new_id(), forId=kept["id"], threadId=thread_id, value=0, comment="bad")
    await layer.create_step(kept.copy())

    async def begin() -> None:
        for call in (
            layer.update_step({**kept, "output": "2"}),
            layer.create_step(gone.copy()),
            layer.upsert_feedback(rated),
            layer.update_thread(thread_id, metadata={"seen": 1}),
        ):
            asyncio.get_running_loop().create_task(call)  # nobody waits for it

    async def end() -> None:
        await layer.delete_step(gone["id"])
        asyncio.get_running_loop().create_task(layer.update_step({**kept, "output": "4"}))

    await elsewhere(begin)
    await layer.update_step({**kept, "output": "3"})
    await elsewhere(end)
    await layer.update_step({**gone, "output": "too late"})
    thread = await stored_thread(layer, thread_id)
    (step,) = thread["steps"]
    assert step["output"] == "4"
    assert step["feedback"] is not None
    assert step["feedback"]["comment"] == "bad"
    assert thread["metadata"] == {"seen": 1}
    assert layer._engine.counts.refused.total() == 0


async def test_elements_and_feedback_keep_the_order_in_which_they_were_sent(layer: ForebayDataLayer) -> None:
    step = a_step(await a_thread(layer))
    notes = [_note(step, str(number)) for number in range(8)]
    await asyncio.gather(
        layer.create_step(step),
        *(layer.create_element(note) for note in notes),
        *(layer.upsert_feedback(Feedback(forId=step["id"], threadId="", value=n % 2)) for n in range(4)),  # type: ignore[arg-type]
    )
    await layer.create_element(_note(step, "again", notes[0].id))
    assert [each["id"] for each in await stored_elements(layer, step["threadId"])] == [n.id for n in notes]
    assert (await stored_step(layer, step["id"]))["feedback"]["value"] == 1


# ---- whose it is


async def test_who_begins_while_the_database_does_not_know_them_owns_it(way: Way) -> None:
    layer, other = way.layer(), way.layer()
    with in_session(spoken=True, user=User(identifier="ada")) as session:
        await layer.create_step(a_step(session.thread_id))
        await layer.update_thread(session.thread_id, name="hello", user_id=None)
    await layer.flush()
    bob = await a_user(other, "bob")
    with in_session(spoken=True, thread_id=session.thread_id, user=bob):
        await other.update_thread(session.thread_id, name="mine", user_id=bob.id)
    await other.flush()
    assert await layer.get_thread_author(session.thread_id) == "ada"
    ada = await layer.get_user("ada")
    assert ada is not None
    page = await layer.list_threads(Pagination(first=5), ThreadFilter(userId=ada.id))
    assert [thread["id"] for thread in page.data] == [session.thread_id]


async def test_a_stranger_changes_nothing_of_anothers_chat(way: Way) -> None:
    """By another process, which knows all ids, within a chat of their own and as requests come."""
    layer, other = way.layer(), way.layer()
    ada, eve = await a_user(layer, "ada"), await a_user(layer, "eve")
    step = a_step(await a_thread(layer, user_id=ada.id), output="hers", input="secret")
    await layer.create_step(step.copy())
    note = _note(step, "hers")
    await layer.create_element(note)
    rating = Feedback(id=new_id(), forId=step["id"], threadId=step["threadId"], value=1, comment="hers")
    await layer.upsert_feedback(rating)
    await layer.flush()
    before = await stored_thread(layer, step["threadId"])
    its_own = await a_thread(other, user_id=eve.id)
    everywhere = (its_own, its_own.upper(), step["threadId"], "")
    notes = {
        thread_id: _note({**step, "threadId": thread_id}, "his", note.id)
        for thread_id in (*everywhere, "no id")
    }

    async def attack(*threads: str) -> None:
        for thread_id in threads:
            await other.update_step({**step, "threadId": thread_id, "output": "his"})
            await other.create_step(a_step(thread_id, id=step["id"], parentId=step["id"]))
            await other.create_element(notes[thread_id])
            await other.delete_element(note.id, thread_id)
            await other.upsert_feedback(
                Feedback(id=rating.id, forId=step["id"], threadId=thread_id, value=0, comment="his")
            )
            await other.upsert_feedback(Feedback(forId=step["id"], threadId=thread_id, value=0))

    async def attack_within_a_chat(thread_id: str) -> None:
        with in_session(spoken=True, thread_id=thread_id, user=eve):
            await attack(*everywhere)
            await other.delete_step(step["id"])
            await other.delete_feedback(rating.id or "")
            await other.update_thread(step["threadId"], user_id=eve.id)

    await attack_within_a_chat(its_own)
    # A chat is begun under whatever id its client names.
    if way.url.startswith("sqlite"):
        await attack_within_a_chat(step["threadId"].upper())
    else:
        with in_session(spoken=True, thread_id="no id", user=eve):
            for thread_id in ("no id", ""):
                with pytest.raises(InvalidId):
                    await attack(thread_id)
            await other.delete_step(step["id"])
            await other.delete_element(note.id, "")
            await other.delete_feedback(rating.id or "")
    # A request has no chat at hand; what it does in her thread the application does.
    await asyncio.create_task(attack(*everywhere[:2]), context=Context())
    await other.flush()
    after = await stored_thread(layer, step["threadId"])
    for each in (*(before["elements"] or ()), *(after["elements"] or ())):
        each.pop("url")  # a new one each time
    assert after == before
    assert (await stored_thread(other, its_own))["steps"] == []
    assert dead_letters(other) == 0


# ---- deleted stays deleted


async def test_what_was_deleted_by_one_process_stays_so_for_another(way: Way) -> None:
    layer, other = way.layer(), way.layer()
    step, gone = a_step(await a_thread(layer)), a_step(new_id())
    note, rating = _note(step), Feedback(id=new_id(), forId=step["id"], threadId=step["threadId"], value=1)
    for each in (step, gone):
        await layer.create_step(each.copy())
    child = a_step(step["threadId"], parentId=step["id"])
    await layer.create_step(child.copy())
    await layer.create_element(note)
    await layer.upsert_feedback(rating)
    await layer.flush()
    await other.delete_element(note.id, step["threadId"])
    await other.delete_feedback(rating.id or "")
    await other.delete_step(step["id"])
    await other.delete_thread(gone["threadId"])
    for each in (step, child, gone):  # ends that come after
        await layer.update_step({**each, "output": "late"})
    await layer.update_thread(gone["threadId"], metadata={"seen": 1})
    await layer.flush()
    assert await _ids(layer, "steps") == set()
    assert await _ids(layer, "elements") == set()
    assert await _ids(layer, "feedbacks") == set()
    assert await _ids(layer, "threads") == {step["threadId"]}
    assert way.storage.files == {}
    await layer.create_step({**step, "output": "made anew"})
    assert (await stored_step(layer, step["id"]))["output"] == "made anew"


class _Stalled(MemoryStorage):
    """Takes nothing until it goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.reached, self.goes_on = asyncio.Event(), asyncio.Event()

    @override
    async def upload_file(self, *arguments: Any, **named: Any) -> dict[str, Any]:
        self.reached.set()
        await self.goes_on.wait()
        return await super().upload_file(*arguments, **named)


async def test_an_element_that_one_process_deletes_while_another_uploads_it_stays_out(way: Way) -> None:
    way.storage = storage = _Stalled()
    layer, other = way.layer(), way.layer()
    step = a_step(await a_thread(layer))
    await layer.create_step(step)
    note = _note(step)
    uploading = asyncio.create_task(layer.create_element(note))
    async with patience():
        await storage.reached.wait()
    await other.delete_element(note.id, step["threadId"])
    storage.goes_on.set()
    await uploading
    await layer.flush()
    assert await _ids(layer, "elements") == set()
    (key,) = storage.files
    assert await rows(layer, "SELECT object_key FROM forebay_garbage") == [{"object_key": key}]


async def test_a_conversation_that_begins_after_its_delete_is_stored(way: Way) -> None:
    """Each message of a Slack conversation is a session of its own, in whichever process."""
    layer, other = way.layer(), way.layer()
    thread_id = new_id()

    async def says(layer: ForebayDataLayer, output: str, context: ChainlitContext) -> None:
        context_var.set(context)
        await layer.create_step(a_step(thread_id, output=output))
        await layer.update_thread(thread_id, name=output)

    def message() -> ChainlitContext:
        return init_http_context(thread_id=thread_id, client_type="slack")

    before = message()
    await says(layer, "before", before)
    await layer.flush()
    await other.delete_thread(thread_id)
    await says(layer, "still at it", before)
    await layer.flush()
    assert await other.get_thread(thread_id) is None
    await says(layer, "after", message())
    await layer.flush()
    await says(other, "as well", message())
    await layer.flush()
    await other.flush()
    thread = await stored_thread(other, thread_id)
    assert {step["output"] for step in thread["steps"]} == {"after", "as well"}


async def test_who_is_deleted_stays_so_whatever_an_open_window_writes(
    way: Way, layer: ForebayDataLayer
) -> None:
    """By another process. What this one's journal still has of them goes with time."""
    other = way.layer()
    ada = await a_user(layer, "ada")
    with in_session(spoken=True, user=ada) as session:
        before = session.thread_id
        await layer.update_thread(before, name="hers", user_id=ada.id)
        await layer.create_step(a_step(before))
        await layer.flush()
        with contextlib.suppress(DeletionIncomplete):
            await other.delete_user("ada", patience=0)
        await layer.create_step(a_step(before))
        session.thread_id = after = new_id()
        await layer.create_step(a_step(after))
        await layer.update_thread(after, name="hers", user_id=ada.id)
        await layer.create_step(a_step(after))
        await layer.flush()
    assert await _ids(layer, "threads") == await _ids(layer, "steps") == await _ids(layer, "users") == set()
    assert dead_letters(layer) == 0
    again = await a_user(layer, "ada")
    assert again.id != ada.id
    thread_id = await a_thread(layer, user_id=again.id)
    await layer.flush()
    assert await _ids(other, "threads") == {thread_id}


# An application's own rule that keeps rows; SQLite does not look at foreign keys.
_KEPT = {
    "postgresql": (
        "CREATE TABLE kept_{table} (row uuid REFERENCES {table} (id))",
        "INSERT INTO kept_{table} VALUES ('{id}')",
    ),
    "sqlite": (
        "CREATE TRIGGER kept_{table} BEFORE DELETE ON {table} WHEN OLD.id = '{id}'"
        " BEGIN SELECT RAISE(ABORT, 'kept'); END",
    ),
}


@pytest.mark.parametrize("table", ["threads", "steps", "elements", "feedbacks"])
async def test_a_refused_delete_leaves_everything_as_it_was(
    way: Way, layer: ForebayDataLayer, table: str
) -> None:
    step = a_step(await a_thread(layer), output="before")
    await layer.create_step(step.copy())
    note, rating = _note(step), Feedback(id=new_id(), forId=step["id"], threadId=step["threadId"], value=1)
    await layer.create_element(note)
    await layer.upsert_feedback(rating)
    await layer.flush()
    ids = {"threads": step["threadId"], "steps": step["id"], "elements": note.id, "feedbacks": rating.id}
    for statement in _KEPT[way.url.partition(":")[0]]:
        await layer.execute_sql(statement.format(table=table, id=ids[table]), {})
    slow = _Slow.on(way.storage)
    on_its_way = _note(step, "on its way")
    uploading = asyncio.create_task(layer.create_element(on_its_way))
    async with patience():
        await slow.begun.wait()
    delete = {
        "threads": lambda: layer.delete_thread(step["threadId"]),
        "steps": lambda: layer.delete_step(step["id"]),
        "elements": lambda: layer.delete_element(note.id, step["threadId"]),
        "feedbacks": lambda: layer.delete_feedback(rating.id or ""),
    }
    with pytest.raises(RowError):
        await delete[table]()
    slow.go.set()
    await uploading
    await layer.update_step({**step, "output": "after"})
    await layer.update_thread(step["threadId"], name="after")
    thread = await stored_thread(layer, step["threadId"])
    assert (thread["name"], [each["output"] for each in thread["steps"]]) == ("after", ["after"])
    assert thread["steps"][0]["feedback"] is not None
    elements = {each["id"]: each["objectKey"] for each in thread["elements"] or ()}
    assert elements.keys() == {note.id, on_its_way.id}
    assert way.storage.files.keys() == set(elements.values())
    assert layer._engine.counts.dropped.total() == 0


class _Slow:
    """Uploads that wait."""

    def __init__(self) -> None:
        self.begun, self.go = asyncio.Event(), asyncio.Event()

    @classmethod
    def on(cls, storage: MemoryStorage) -> _Slow:
        slow, upload = cls(), storage.upload_file

        async def wait(*arguments: Any, **named: Any) -> dict[str, Any]:
            slow.begun.set()
            await slow.go.wait()
            return await upload(*arguments, **named)

        storage.upload_file = wait  # type: ignore[method-assign]
        return slow


async def test_an_upload_of_what_is_deleted_leaves_neither_row_nor_content(
    way: Way, layer: ForebayDataLayer
) -> None:
    step = a_step(await a_thread(layer))
    await layer.create_step(step.copy())
    slow, note = _Slow.on(way.storage), _note(step)
    uploading = asyncio.create_task(layer.create_element(note))
    async with patience():
        await slow.begun.wait()
    deleting = asyncio.create_task(layer.delete_step(step["id"]))
    await asyncio.sleep(0)
    slow.go.set()
    await asyncio.gather(uploading, deleting)
    await layer.close()
    assert way.storage.files == {}
    assert list(way.folder.glob("**/*.upload")) == []


# ---- ids


SPELLINGS = (str.upper, "{{{}}}".format, "urn:uuid:{}".format, lambda key: key.replace("-", ""))


async def test_a_row_is_the_same_under_each_spelling(way: Way, layer: ForebayDataLayer) -> None:
    """On SQLite they are two."""
    if way.url.startswith("sqlite"):
        return
    ada = await a_user(layer, "ada")
    for spelled in SPELLINGS:
        step = a_step(new_id(), output="hers")
        thread_id, step_id = step["threadId"], step["id"]
        await layer.update_thread(thread_id, name="hers", user_id=ada.id)
        await layer.create_step(step.copy())
        assert await layer.get_thread_author(spelled(thread_id)) == "ada"  # it is queued
        rated = await layer.upsert_feedback(
            Feedback(forId=spelled(step_id), threadId=spelled(thread_id), value=1)
        )
        note = _note({"id": spelled(step_id), "threadId": spelled(thread_id)})
        await layer.create_element(note)
        await layer.update_step(
            {**step, "id": spelled(step_id), "threadId": spelled(thread_id), "output": "2"}
        )
        (seen,) = (await stored_thread(layer, spelled(thread_id)))["steps"]
        assert (seen["id"], seen["output"], seen["feedback"] is not None) == (step_id, "2", True)
        assert await layer.get_element(spelled(thread_id), spelled(note.id)) is not None
        page = await layer.list_threads(Pagination(first=1), ThreadFilter(userId=spelled(ada.id)))
        assert [thread["id"] for thread in page.data] == [thread_id]
        await layer.delete_feedback(spelled(rated))
        await layer.delete_element(spelled(note.id), spelled(thread_id))
        await layer.delete_step(spelled(step_id))
        await layer.update_step({**step, "output": "late"})
        thread = await stored_thread(layer, thread_id)
        assert (thread["steps"], thread["elements"]) == ([], [])
        await layer.delete_thread(spelled(thread_id))
        await layer.create_step(step.copy())
        assert await layer.get_thread(thread_id) is None
    assert way.storage.files == {}
    assert dead_letters(layer) == 0


async def test_no_id_harms_anybody_else(way: Way, layer: ForebayDataLayer) -> None:
    """On SQLite each is an id as good as any."""
    if way.url.startswith("sqlite"):
        return
    other = a_step(new_id())
    await layer.create_step(other)
    for number in range(110):
        with pytest.raises(InvalidId):
            await layer.upsert_feedback(Feedback(forId=f"x{number}", threadId=other["threadId"], value=1))
    for act in (
        lambda: layer.create_step(a_step("x")),
        lambda: layer.update_step(a_step(other["threadId"], id="é" * 10)),
        lambda: layer.update_thread("x", name="x"),
        lambda: layer.create_element(_note({"id": other["id"], "threadId": "x"})),
    ):
        with pytest.raises(InvalidId):
            await act()
    harmless: tuple[Callable[[], Awaitable[Any]], ...] = (
        lambda: layer.delete_thread("x"),
        lambda: layer.delete_step("\x00"),
        lambda: layer.delete_feedback("' OR 1=1"),
        lambda: layer.delete_element("x", other["threadId"]),
        lambda: layer.delete_element(new_id(), "x"),
        lambda: layer.get_thread("x"),
        lambda: layer.get_thread_author("x"),
        lambda: layer.get_element("x", "y"),
        lambda: layer.list_threads(Pagination(first=5, cursor="x"), ThreadFilter(userId="x")),
        lambda: layer.get_favorite_steps("x"),
    )
    for each in harmless:
        await each()
    child = a_step(other["threadId"], parentId="x")
    await layer.create_step(child)
    thread = await stored_thread(layer, other["threadId"])
    assert {step["id"] for step in thread["steps"]} == {other["id"], child["id"]}
    assert dead_letters(layer) == 0
    assert list(way.folder.glob("dead-letters*")) == []


# ---- values that another program has stored


async def test_json_that_is_no_object_counts_as_an_empty_one_in_every_table(
    way: Way, layer: ForebayDataLayer
) -> None:
    user = await a_user(layer)
    step = a_step(await a_thread(layer, user_id=user.id))
    await layer.create_step(step.copy())
    await layer.create_element(_note(step))
    await layer.flush()
    for value in ("null", '"text"', "[1]", "3"):
        for table, column in (
            *(("threads", "metadata"), ("users", "metadata")),
            *(("steps", "metadata"), ("steps", "generation"), ("steps", "modes")),
            *(("elements", "props"), ("elements", "playerConfig")),
        ):
            cast = "" if way.url.startswith("sqlite") else "::jsonb"
            await layer.execute_sql(f"""UPDATE {table} SET "{column}" = '{value}'{cast}""", {})
        seen = await stored_thread(layer, step["threadId"])
        assert (seen["metadata"], seen["steps"][0]["metadata"]) == ({}, {})
        assert (seen["elements"] or [{}])[0]["props"] == {}
        found = await layer.get_user(user.identifier)
        assert found is not None
        assert found.metadata == {}
        await layer.set_step_favorite({**step}, True)
        await layer.update_step({**step, "output": value})
        await layer.update_thread(step["threadId"], metadata={"a": 1})
        seen = await stored_thread(layer, step["threadId"])
        assert (seen["metadata"], seen["steps"][0]["metadata"]) == ({"a": 1}, {"favorite": True})
        assert [each["id"] for each in await layer.get_favorite_steps(user.id)] == [step["id"]]
        assert seen["steps"][0]["output"] == value
    assert dead_letters(layer) == 0
