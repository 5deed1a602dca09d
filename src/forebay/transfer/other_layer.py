"""Reading any data layer of Chainlit's through its own methods, a person at a time: none of them lists people."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from forebay.transfer.chats import Chat

if TYPE_CHECKING:
    from chainlit.data.base import BaseDataLayer
    from chainlit.user import PersistedUser

_AT_ONCE = 100


class OtherLayer:
    """See `chats.Chats`. `identifiers`: whose chats; `whose`: the same for the same layer. Raises what that raises."""

    def __init__(self, layer: BaseDataLayer, identifiers: Sequence[str], whose: str) -> None:
        self._layer = layer
        self._identifiers = identifiers
        self.whose = f"layer {whose}"
        self.left_out: Counter[str] = Counter()

    async def people(self) -> AsyncIterator[Mapping[str, Any]]:
        """Those who were asked for."""
        for identifier in self._identifiers:
            user = await self._layer.get_user(identifier)
            if user is None:
                self.left_out["people who are not there"] += 1
            else:
                yield _person(user)

    async def chats(self) -> AsyncIterator[Chat]:
        """Of each, page by page."""
        for identifier in self._identifiers:
            user = await self._layer.get_user(identifier)
            if user is None:
                continue
            async for thread_id in self._ids(user.id):
                thread = await self._layer.get_thread(thread_id)
                if thread is None:
                    self.left_out["threads that are listed, and not there"] += 1
                    continue
                yield {**thread, "userId": user.id, "userIdentifier": user.identifier}

    async def _ids(self, user_id: str) -> AsyncIterator[str]:
        from chainlit.types import Pagination, ThreadFilter

        seen: set[str] = set()
        cursor = None
        while True:
            page = await self._layer.list_threads(
                Pagination(first=_AT_ONCE, cursor=cursor), ThreadFilter(userId=user_id)
            )
            new = [thread["id"] for thread in page.data if thread["id"] not in seen]
            seen.update(new)
            for thread_id in new:
                yield thread_id
            cursor = page.pageInfo.endCursor
            if not new or not page.pageInfo.hasNextPage or not cursor:
                return

    async def close(self) -> None:
        """Close the layer."""
        await self._layer.close()


def _person(user: PersistedUser) -> dict[str, Any]:
    named = {name: getattr(user, name) for name in ("id", "identifier", "metadata")}
    return {**named, "createdAt": user.createdAt or None}
