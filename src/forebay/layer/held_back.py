"""What a session has written before its first message, in its order, within bounds."""

from __future__ import annotations

import weakref
from collections.abc import Awaitable, Callable

from forebay.errors import ForebayError, QueueFull
from forebay.model.changes import Upsert, fold
from forebay.primitives.awaitables import failed

Enter = Callable[[], Awaitable[None]]

_SHARE_OF_A_SESSION = 4  # of the room, one session gets so many times less


class Room:
    """How many bytes all sessions together may hold back; one session, a share of them."""

    def __init__(self, max_bytes: int) -> None:
        self.taken = 0
        self._most = max_bytes

    def take(self, size: int, has: int) -> None:
        """For a session that `has` some. Raises QueueFull; a session's first write goes in, however large."""
        if has and (has + size > self._most // _SHARE_OF_A_SESSION or self.taken + size > self._most):
            raise QueueFull("more is written before a chat's first message than may be held back")
        self.taken += size

    def give(self, account: _Account) -> None:
        """Give back what a session has taken."""
        self.taken -= account.size
        account.size = 0


class _Account:
    """What one session has taken of the room, in bytes."""

    __slots__ = ("size",)

    def __init__(self) -> None:
        self.size = 0


class HeldBack:
    """One session's writes. It ends with its session, and nothing of it is stored then."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._account = _Account()
        self._writes: list[Upsert | Enter] = []
        self._run: dict[tuple[str, str], int] = {}  # where a row's change is, since the last that is no row
        weakref.finalize(self, room.give, self._account).atexit = False

    def add(self, write: Upsert | Enter, size: int) -> None:
        """Hold a row back, or what takes its place when it is called. Raises QueueFull."""
        self._room.take(size, self._account.size)
        self._account.size += size
        if isinstance(write, Upsert):
            self._fold(write)
        else:
            self._run.clear()
            self._writes.append(write)

    def _fold(self, change: Upsert) -> None:
        row = (change.table, change.key)
        place = self._run.get(row)
        if place is None:
            self._run[row] = len(self._writes)
            self._writes.append(change)
            return
        older = self._writes[place]
        assert isinstance(older, Upsert)
        merged = self._writes[place] = fold(older, change)
        saved = older.size + change.size - merged.size
        self._room.taken -= saved
        self._account.size -= saved

    def let_in(self, submit: Callable[[Upsert], Awaitable[None]]) -> list[Awaitable[None]]:
        """Give all of it its place, in order; what is to be waited for."""
        self._room.give(self._account)
        writes, self._writes = self._writes, []
        self._run.clear()
        return [_entered(write, submit) for write in writes]


def _entered(write: Upsert | Enter, submit: Callable[[Upsert], Awaitable[None]]) -> Awaitable[None]:
    try:
        return submit(write) if isinstance(write, Upsert) else write()
    except ForebayError as error:
        return failed(error)
