"""A data layer on a migrated database of either kind, and what the tests build with it."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from chainlit.types import ThreadDict
from chainlit.user import PersistedUser, User

from forebay import ForebayDataLayer
from tests.support.storage import MemoryStorage


def new_id() -> str:
    return str(uuid.uuid4())


@dataclass
class Chat:
    """A layer, and shorthands for what every test does with it."""

    layer: ForebayDataLayer
    storage: MemoryStorage
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    async def user(self, identifier: str = "ann") -> PersistedUser:
        user = await self.layer.create_user(User(identifier=identifier))
        assert user is not None
        return user

    async def step(self, thread_id: str, **values: Any) -> str:
        """Write a step, a minute later than the one before; its id."""
        created = f"2026-01-01T00:{next(self._numbers):02d}:00.000000Z"
        step = {"id": new_id(), "threadId": thread_id, "name": "n", "type": "run", "createdAt": created, **values}
        await self.layer.create_step(step)  # type: ignore[arg-type]
        return str(step["id"])

    async def thread(self, thread_id: str) -> ThreadDict:
        """The thread, which must be there."""
        thread = await self.layer.get_thread(thread_id)
        assert thread is not None
        return thread

    async def read_step(self, step_id: str) -> dict[str, Any]:
        """The step, which must be there."""
        step = await self.layer.get_step(step_id)
        assert step is not None
        return dict(step)

    def assert_balanced(self) -> None:
        """Every accepted change is accounted for."""
        engine = self.layer._engine
        assert engine.counts.pending == engine.inbox.pending


@pytest.fixture
async def chat(migrated_url: str, chainlit_context: None) -> AsyncIterator[Chat]:
    """A chat on either database, with a storage client."""
    storage = MemoryStorage()
    layer = ForebayDataLayer(migrated_url, storage_provider=storage)
    chat = Chat(layer, storage)
    yield chat
    chat.assert_balanced()
    await layer.close()
