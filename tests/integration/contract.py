"""What the contract's tests share: ids, times, rows to write and to read, and the books."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiosqlite
import asyncpg
from chainlit.element import ElementDict
from chainlit.step import StepDict
from chainlit.types import ThreadDict
from chainlit.user import PersistedUser, User

from forebay import ForebayDataLayer
from forebay.database.urls import parse_url
from tests.support.patience import patience

UNREACHABLE = "postgresql://nobody@127.0.0.1:1/nowhere"


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
    """Whether every accepted change is written, folded, given up, dropped, parked, or still waits."""
    engine = layer._engine
    return engine.counts.pending == engine.inbox.pending + engine.lanes.changes + engine.letterbox.changes


# ---- a database that is busy


@asynccontextmanager
async def locked(url: str) -> AsyncIterator[None]:
    """While it lasts, nobody can write threads; on PostgreSQL, nobody can read them either."""
    where = parse_url(url)[0]
    if where.get_backend_name() == "sqlite":
        async with aiosqlite.connect(str(where.database)) as file:
            await file.execute("BEGIN IMMEDIATE")
            yield
            await file.rollback()
        return
    other = await asyncpg.connect(url)
    try:
        async with other.transaction():
            await other.execute("LOCK TABLE threads IN ACCESS EXCLUSIVE MODE")
            yield
    finally:
        await other.close()


async def sessions_wait(url: str, kind: str, count: int) -> None:
    """Return when at least so many of PostgreSQL's sessions in this database wait for that kind of event."""
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = $1"
    )
    other = await asyncpg.connect(url)
    try:
        async with patience():
            while await other.fetchval(query, kind) < count:  # noqa: ASYNC110 - it has nothing to wait on
                await asyncio.sleep(0.01)
    finally:
        await other.close()


async def until(condition: Callable[[], bool]) -> None:
    """Return when it holds, which the writer's task brings about."""
    async with patience():
        while not condition():  # noqa: ASYNC110 - a counter has nothing to wait on
            await asyncio.sleep(0.001)
