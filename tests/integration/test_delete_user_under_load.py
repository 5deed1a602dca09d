"""A person is deleted while they chat, and others do: with uploads on their way, and a journal that keeps it all."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from chainlit.element import Text
from chainlit.types import Feedback
from chainlit.user import PersistedUser, User
from typing_extensions import override

from forebay import ForebayDataLayer, Settings
from forebay.layer import deletion
from tests.integration.conftest import MakeLayer
from tests.integration.contract import a_step, accounted_for, dead_letters, rows
from tests.support.patience import FOR_EVER, patience
from tests.support.sessions import in_session
from tests.support.storage import MemoryStorage

_ADA, _BOB = "wisteria", "bob"


class _SlowStorage(MemoryStorage):
    """Uploads wait until they may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.may_go_on = asyncio.Event()

    @override
    async def upload_file(self, *arguments: Any, **named: Any) -> dict[str, Any]:
        await self.may_go_on.wait()
        return await super().upload_file(*arguments, **named)


class _Person:
    """Begins one chat after the other, and says something in each, until they are told to stop."""

    def __init__(self, layer: ForebayDataLayer, user: PersistedUser) -> None:
        self.layer = layer
        self.user = user
        self.threads: set[str] = set()
        self.uploads: list[asyncio.Task[None]] = []
        self.stopped = False

    async def chat(self) -> None:
        while not self.stopped:
            with in_session(spoken=True, user=self.user) as session:
                thread_id = session.thread_id
                await asyncio.gather(*(self._say(thread_id, number) for number in range(3)))
                await self.layer.update_thread(thread_id, name=self.user.identifier, user_id=self.user.id)
                await self._say(thread_id, 3)
            self.threads.add(thread_id)

    async def _say(self, thread_id: str, number: int) -> None:
        name = self.user.identifier
        step = a_step(thread_id, name=name, output=f"{number} " * 500)
        await self.layer.create_step(step)
        if number == 1:
            element = Text(thread_id=thread_id, for_id=step["id"], name=name, content=name)
            self.uploads.append(asyncio.create_task(self.layer.create_element(element)))
        feedback = Feedback(forId=step["id"], value=1, threadId=thread_id, comment=name)
        await self.layer.upsert_feedback(feedback)

    async def goes_on(self, chats: int) -> None:
        wanted = len(self.threads) + chats
        while len(self.threads) < wanted:  # noqa: ASYNC110 - it has nothing to wait on
            await asyncio.sleep(0.01)


async def _log_in(layer: ForebayDataLayer, name: str) -> PersistedUser:
    user = await layer.create_user(User(identifier=name))
    assert user is not None
    return user


async def _threads(layer: ForebayDataLayer) -> set[str]:
    return {str(row["id"]) for row in await rows(layer, "SELECT id FROM threads")}


async def _assert_nowhere(layer: ForebayDataLayer, storage: MemoryStorage, folder: Path) -> None:
    for table in ("threads", "steps", "elements", "feedbacks", "users", "forebay_garbage", "forebay_deleted"):
        assert not [row for row in await rows(layer, f"SELECT * FROM {table}") if _ADA in str(row)], table
    assert _ADA.encode() not in storage.files.values()
    assert not [path for path in folder.rglob("*") if path.is_file() and _ADA.encode() in path.read_bytes()]


async def test_under_load(
    make_layer: MakeLayer, migrated_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deletion, "_LOOK", 0.05)
    storage, folder = _SlowStorage(), tmp_path / "kept"
    shared: dict[str, Any] = {"storage_provider": storage}
    app = make_layer(migrated_url, settings=Settings(journal_dir=folder, journal_keep=0.5), **shared)
    job = make_layer(
        migrated_url, settings=Settings(journal_dir=folder, durability="commit", journal_keep=0), **shared
    )
    people = [_Person(app, await _log_in(app, name)) for name in (_ADA, _BOB)]
    chatting = [asyncio.create_task(person.chat()) for person in people]
    async with patience():
        await people[0].goes_on(5)
        deleting = asyncio.create_task(job.delete_user(_ADA, patience=FOR_EVER))
        await people[0].goes_on(5)
        storage.may_go_on.set()
        await people[1].goes_on(5)
        people[0].stopped = True
        await chatting[0]
        found = await deleting
        people[1].stopped = True
        await chatting[1]
        await asyncio.gather(*people[0].uploads, *people[1].uploads)
        await app.flush()
    assert found.rows["threads"]
    assert await _threads(app) == people[1].threads
    assert [row["identifier"] for row in await rows(app, "SELECT identifier FROM users")] == [_BOB]
    assert len(await rows(app, "SELECT id FROM steps")) == 4 * len(people[1].threads)
    assert len(await rows(app, "SELECT id FROM elements")) == len(people[1].threads)
    assert dead_letters(app) == 0
    assert accounted_for(app)
    async with patience():  # the last that they wrote has to leave the journal too
        await job.delete_user(_ADA, patience=FOR_EVER)
    await _assert_nowhere(app, storage, folder)
    again = await _log_in(app, _ADA)
    assert again.id != people[0].user.id
