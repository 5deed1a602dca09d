"""Who has logged in: what the database said of them last answers for it while it can't be asked."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

from chainlit.user import PersistedUser, User

from forebay.errors import TransientError
from forebay.model.changes import next_moment

_MOST = 10_000

_T = TypeVar("_T")


class People:
    """The users of one layer, `find` and `save` being the database's.

    A person who was seen before goes on while the database is away, with what a login has said in the meantime, which
    is stored when the database is back. Nobody else is made up: an id of forebay's own could be another's.
    """

    def __init__(
        self,
        find: Callable[[str], Awaitable[PersistedUser | None]],
        save: Callable[[User, int | None], Awaitable[PersistedUser | None]],
    ) -> None:
        self._find = find
        self._save = save
        self._seen: OrderedDict[str, PersistedUser] = OrderedDict()
        self._unsaved: OrderedDict[str, tuple[User, int]] = OrderedDict()  # with the moment of the login
        self._identifiers: OrderedDict[str, str] = OrderedDict()  # by id

    async def find(self, identifier: str) -> PersistedUser | None:
        """A user by login name. Raises a DatabaseError when the database can't tell, and never has."""
        unsaved = self._unsaved.get(identifier)
        if unsaved is not None and (saved := await self.save(*unsaved)) is not None:
            return saved
        try:
            user = await self._find(identifier)
        except TransientError:
            known = self._seen.get(identifier)
            if known is None:
                raise
            return _copy(known)  # Chainlit writes into what it is given
        if user is None:
            self._seen.pop(identifier, None)
            return None
        return self._saw(user)

    async def save(self, user: User, moment: int | None = None) -> PersistedUser | None:
        """Store a user, or replace the metadata of the one who is there. Raises a DatabaseError, as `find`.

        None for a login at a `moment` after which the person was deleted; without one, for none.
        """
        try:
            stored = await self._save(user, moment)
        except TransientError:
            known = self._seen.get(user.identifier)
            if known is None:
                raise
            _keep(self._unsaved, user.identifier, (user, moment or next_moment()))
            return self._saw(replace(known, metadata=user.metadata or {}))
        self._unsaved.pop(user.identifier, None)
        return self._saw(stored) if stored is not None else None

    def forget(self, identifier: str) -> None:
        """They are deleted."""
        self._unsaved.pop(identifier, None)
        known = self._seen.pop(identifier, None)
        if known is not None:
            self._identifiers.pop(known.id, None)

    def known(self, user_id: str) -> PersistedUser | None:
        """The user with this id, if it was seen here."""
        return self._seen.get(self._identifiers.get(user_id, ""))

    def _saw(self, user: PersistedUser) -> PersistedUser:
        _keep(self._seen, user.identifier, _copy(user))
        _keep(self._identifiers, user.id, user.identifier)
        return user


def _copy(user: PersistedUser) -> PersistedUser:
    return replace(user, metadata=dict(user.metadata or {}))


def _keep(kept: OrderedDict[str, _T], key: str, value: _T) -> None:
    kept[key] = value
    kept.move_to_end(key)
    if len(kept) > _MOST:
        kept.popitem(last=False)
