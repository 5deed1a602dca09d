"""Whose threads are: the owner's id is part of the names of elements' contents."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable

from forebay.errors import DatabaseError

_MOST = 10_000  # threads whose owners are remembered while their elements are stored


class Owners:
    """Who owns which thread, as `ask` says it once, or each time with `always`. Raises no error of the database's.

    It only names contents, so an owner that another process changes does no harm.
    """

    def __init__(self, ask: Callable[[str], Awaitable[str | None]], *, always: bool) -> None:
        self._ask = ask
        self._always = always
        self._known: OrderedDict[str, str] = OrderedDict()

    async def of(self, thread_id: str | None) -> str | None:
        """The owner's id; None also while the database can't tell, which must not cost an element its content."""
        if thread_id is None:
            return None
        if thread_id in self._known and not self._always:
            return self._known[thread_id]
        try:
            owner = await self._ask(thread_id)
        except DatabaseError:
            return None
        if owner is not None:
            self._known[thread_id] = owner
            if len(self._known) > _MOST:
                self._known.popitem(last=False)
        return owner

    def forget(self, thread_id: str) -> None:
        """A thread may have another owner now."""
        self._known.pop(thread_id, None)
