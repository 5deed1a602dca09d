"""What the contract's tests share: ids, times, a storage client in memory, and what must hold at every end."""

from __future__ import annotations

import uuid
from typing import Any

from chainlit.data.storage_clients.base import BaseStorageClient
from chainlit.element import ElementDict
from chainlit.step import StepDict
from chainlit.types import ThreadDict
from chainlit.user import PersistedUser, User

from forebay import ForebayDataLayer


def new_id() -> str:
    return str(uuid.uuid4())


def at(second: int) -> str:
    """A time as Chainlit writes it; a greater number is later."""
    return f"2024-05-01T10:{second // 60:02}:{second % 60:02}.000000Z"


def a_step(thread_id: str, **values: Any) -> StepDict:
    """A step as a message's `to_dict` gives it, less what most tests have no use for."""
    plain: Any = {"id": new_id(), "threadId": thread_id, "name": "bot", "type": "assistant_message"}
    plain |= {"streaming": False, "createdAt": at(0), "output": ""}
    return plain | values  # type: ignore[no-any-return]


async def a_user(layer: ForebayDataLayer, identifier: str = "ada", **metadata: Any) -> PersistedUser:
    user = await layer.create_user(User(identifier=identifier, metadata=metadata))
    assert user is not None
    return user


async def a_thread(layer: ForebayDataLayer, **values: Any) -> str:
    thread_id = new_id()
    await layer.update_thread(thread_id, **values)
    return thread_id


async def stored_thread(layer: ForebayDataLayer, thread_id: str) -> ThreadDict:
    thread = await layer.get_thread(thread_id)
    assert thread is not None
    return thread


async def stored_step(layer: ForebayDataLayer, step_id: str) -> dict[str, Any]:
    step = await layer.get_step(step_id)
    assert step is not None
    return dict(step)


async def stored_elements(layer: ForebayDataLayer, thread_id: str) -> list[ElementDict]:
    return (await stored_thread(layer, thread_id))["elements"] or []


async def rows(layer: ForebayDataLayer, query: str, **parameters: Any) -> list[dict[str, Any]]:
    found = await layer.execute_sql(query, parameters)
    assert isinstance(found, list)
    return found


async def how_many(layer: ForebayDataLayer, table: str) -> int:
    (row,) = await rows(layer, f"SELECT count(*) AS n FROM {table}")
    return int(row["n"])


def dead_letters(layer: ForebayDataLayer) -> int:
    return layer._engine.counts.dead_lettered.total()


def accounted_for(layer: ForebayDataLayer) -> bool:
    """Whether every accepted change is written, folded, given up, dropped or still queued."""
    return layer._engine.counts.pending == layer._engine.inbox.pending


class MemoryStorage(BaseStorageClient):
    """Keeps content in a dict; the URL that it gives differs each time. `failing` makes every call raise."""

    def __init__(self) -> None:
        self.files: dict[str, Any] = {}
        self.mimes: dict[str, str] = {}
        self.failing = False
        self.closed = 0
        self._signed = 0

    def _answer(self) -> None:
        if self.failing:
            raise ConnectionError("the bucket with the secret content is gone")

    async def upload_file(
        self, object_key: str, data: Any, mime: str = "", overwrite: bool = True, content_disposition: Any = None
    ) -> dict[str, Any]:
        self._answer()
        self.files[object_key] = data
        self.mimes[object_key] = mime
        return {"object_key": object_key, "url": f"https://blobs.invalid/{object_key}"}

    async def delete_file(self, object_key: str) -> bool:
        self._answer()
        return self.files.pop(object_key, None) is not None

    async def get_read_url(self, object_key: str) -> str:
        self._answer()
        self._signed += 1
        return f"https://blobs.invalid/{object_key}?signature={self._signed}"

    async def close(self) -> None:
        self.closed += 1
        self._answer()
