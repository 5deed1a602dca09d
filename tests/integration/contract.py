"""What the contract's tests share: ids, times, rows to write and to read, and the books."""

from __future__ import annotations

import uuid
from typing import Any

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
