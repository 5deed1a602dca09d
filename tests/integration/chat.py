"""A data layer, and shorthands for what the tests of threads do with it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

from chainlit.types import ThreadDict
from chainlit.user import PersistedUser, User

from forebay import ForebayDataLayer
from tests.integration.contract import new_id


@dataclass
class Chat:
    """A layer, and shorthands for what every test does with it."""

    layer: ForebayDataLayer
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    async def user(self, identifier: str = "ann") -> PersistedUser:
        user = await self.layer.create_user(User(identifier=identifier))
        assert user is not None
        return user

    async def step(self, thread_id: str, **values: Any) -> str:
        """Write a step, a minute later than the one before; its id."""
        created = f"2026-01-01T00:{next(self._numbers):02d}:00.000000Z"
        step = {
            "id": new_id(),
            "threadId": thread_id,
            "name": "n",
            "type": "run",
            "createdAt": created,
            **values,
        }
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
