"""An application on forebay, as its author writes it: mypy and basedpyright check it, strictly, and nothing runs it.

What is wrong on purpose says which rule finds it; a checker that does not find it any more says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from pathlib import Path
from typing import Any, assert_type

from chainlit.data.base import BaseDataLayer
from chainlit.data.storage_clients.base import BaseStorageClient
from chainlit.element import Element, ElementDict
from chainlit.step import StepDict
from chainlit.types import Feedback, PaginatedResponse, Pagination, ThreadDict, ThreadFilter
from chainlit.user import PersistedUser, User
from prometheus_client import CollectorRegistry
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

import forebay
from forebay import (
    DatabaseError,
    ForebayDataLayer,
    ForebayError,
    LocalStorageClient,
    QueueFull,
    RowError,
    Settings,
    TransientError,
    lifespan,
)


class Storage(BaseStorageClient):
    """A storage client of the application's own."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    async def upload_file(
        self,
        object_key: str,
        data: bytes | str,
        mime: str = "application/octet-stream",
        overwrite: bool = True,
        content_disposition: str | None = None,
    ) -> dict[str, Any]:
        self.objects[object_key] = data.encode() if isinstance(data, str) else data
        return {"object_key": object_key, "url": await self.get_read_url(object_key)}

    async def delete_file(self, object_key: str) -> bool:
        return self.objects.pop(object_key, None) is not None

    async def get_read_url(self, object_key: str) -> str:
        return f"https://chat.example.org/{object_key}"

    async def close(self) -> None:
        self.objects.clear()


class Layer(ForebayDataLayer):
    """With methods of its own, that call those which they stand in for."""

    async def create_step(self, step_dict: StepDict) -> None:
        await super().create_step(step_dict)

    async def update_thread(
        self,
        thread_id: str,
        name: str | None = None,
        user_id: str | None = None,
        metadata: Mapping[Any, Any] | None = None,
        tags: list[str] | None = None,
    ) -> None:
        await super().update_thread(thread_id, name, user_id, metadata, tags)

    async def upsert_feedback(self, feedback: Feedback) -> str:
        return await super().upsert_feedback(feedback)

    async def get_thread(self, thread_id: str) -> ThreadDict | None:
        return await super().get_thread(thread_id)


class Lookups(ForebayDataLayer, for_own_calls=("execute_sql",)):
    """What forebay itself does not call."""

    async def execute_sql(self, query: str, parameters: Mapping[str, Any]) -> list[dict[str, Any]] | int:
        return await super().execute_sql(query, parameters)


def made() -> ForebayDataLayer:
    settings = Settings(
        durability="commit", journal_dir=Path("/var/lib/forebay"), linger=0.01, pool_size=20, storage="none"
    )
    assert_type(settings.linger, float)
    assert_type(settings.storage_dir, Path)
    assert_type(settings.read_url, str | None)
    return Layer(
        "postgresql://host/database",
        {"timeout": 5},
        ssl_require=True,
        storage_provider=Storage(),
        user_thread_limit=None,
        settings=settings,
        registry=CollectorRegistry(),
    )


def found() -> BaseDataLayer:
    folder = LocalStorageClient(Path("files"), expires=60, base_url="https://chat.example.org")
    assert_type(folder.folder, Path)
    return ForebayDataLayer.from_env(storage_provider=folder)


async def used(layer: ForebayDataLayer, step: StepDict, element: Element, user: User) -> None:
    await layer.start()
    assert_type(layer.settings, Settings)
    assert_type(layer.engine, AsyncEngine)
    assert_type(layer.registry, CollectorRegistry)
    assert_type(layer.storage_provider, BaseStorageClient | None)
    assert_type(layer.metrics_url, str | None)

    writing = asyncio.create_task(layer.create_step(step))  # as Chainlit does it
    await writing
    await layer.update_step(step)
    await layer.create_element(element)
    await layer.delete_element("element", thread_id="thread")
    assert_type(await layer.upsert_feedback(Feedback(forId="step", value=1)), str)
    assert_type(await layer.delete_feedback("feedback"), bool)
    assert_type(await layer.set_step_favorite(step, True), StepDict)

    assert_type(await layer.create_user(user), PersistedUser | None)
    assert_type(await layer.get_user("somebody"), PersistedUser | None)
    assert_type(await layer.get_thread("thread"), ThreadDict | None)
    assert_type(await layer.get_thread_author("thread"), str)
    assert_type(await layer.get_all_user_threads(user_id="user"), list[ThreadDict] | None)
    assert_type(await layer.get_step("step"), StepDict | None)
    assert_type(await layer.get_favorite_steps("user"), list[StepDict])
    assert_type(await layer.get_element("thread", "element"), ElementDict | None)
    page = await layer.list_threads(Pagination(first=20), ThreadFilter(userId="user"))
    assert_type(page, PaginatedResponse[ThreadDict])

    assert_type(await layer.execute_sql("SELECT 1", {}), list[dict[str, Any]] | int)
    async with layer.async_session() as session:
        await session.execute(text("SELECT 1"))
    threads = await layer.purge(timedelta(days=30), by="created", dry_run=True, progress=print)
    assert_type(threads, int)
    await layer.flush()
    await layer.close()


async def refused(layer: ForebayDataLayer, step: StepDict) -> str | None:
    try:
        await layer.create_step(step)
    except (QueueFull, TransientError):
        return "later"
    except RowError as error:
        return error.sqlstate
    except DatabaseError as error:
        assert_type(error.location, str | None)
        return error.location
    except ForebayError as error:
        return str(error)
    return None


def mounted() -> AbstractAsyncContextManager[None]:
    return lifespan(object())


async def wrong(layer: ForebayDataLayer) -> None:
    Settings(durability="disk")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Settings(lingr=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    ForebayDataLayer("sqlite://", settings={})  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    layer.metrics_url = "http://host"  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    await layer.purge(30)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await layer.update_thread("thread", metadata="{}")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    isinstance(forebay.Pipeline, type)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
