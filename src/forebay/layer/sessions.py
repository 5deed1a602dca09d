"""The Chainlit session that a call comes from, and what it may do."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

from chainlit.context import context_var
from chainlit.session import WebsocketSession
from chainlit.user import PersistedUser, User

from forebay.model import cleaning
from forebay.model.changes import Claimant

Spell = Callable[[object], str | None]  # an id as its database spells it; None where no row can have it


def chat_at_hand() -> WebsocketSession | None:
    """The chat that a person has open, whose message or click this is about; None for the application's own calls."""
    context = context_var.get(None)
    session = context.session if context is not None else None
    return session if isinstance(session, WebsocketSession) else None


def claimant_of(thread_id: str, spell: Spell) -> Claimant | None:
    """Who has begun this chat without the database knowing, since it could not be asked when they came.

    Chainlit goes on with a user without an id then, for as long as the chat is open, and names no owner.
    """
    session = chat_at_hand()
    if session is None or is_elsewhere(session, thread_id, spell):
        return None
    user = session.user
    if user is None or isinstance(user, PersistedUser):
        return None
    return claim_of(user)


def user_at_hand(user_id: str) -> PersistedUser | None:
    """The person whose call this is, if that is who has this id."""
    context = context_var.get(None)
    user = getattr(context.session, "user", None) if context is not None else None
    return user if isinstance(user, PersistedUser) and user.id == user_id else None


def who_calls() -> str:
    """The name of the person whose call this is; empty where nobody is logged in."""
    context = context_var.get(None)
    user = context.session.user if context is not None else None
    return user.identifier if user is not None else ""


def claim_of(user: User) -> Claimant:
    """What makes a user's row again, where there is none."""
    metadata = cleaning.json(user.metadata or {}).decode()
    return Claimant(cleaning.text(user.identifier), metadata)


def is_elsewhere(session: WebsocketSession | None, thread_id: str | None, spell: Spell) -> bool:
    """Whether a chat writes into a thread that is not its own. Ids that it names come from its client."""
    if session is None or thread_id is None or thread_id == session.thread_id:
        return False
    return spell(thread_id) != spell(session.thread_id)


class Variables:
    """What chats were given of their threads' metadata: a chat writes back only what it has changed of it since.

    Chainlit fills a resumed chat's variables with its thread's metadata, and stores all of them when the window is
    closed. That would undo what was done to the thread elsewhere in the meantime, as to share it no longer.
    """

    def __init__(self, spell: Spell) -> None:
        self._spell = spell
        self._given: WeakKeyDictionary[WebsocketSession, dict[str, bytes]] = WeakKeyDictionary()
        self._sockets: WeakKeyDictionary[WebsocketSession, str] = (
            WeakKeyDictionary()
        )  # by which they were given

    def give(self, thread_id: str, metadata: Mapping[str, Any]) -> None:
        """A thread is read: by the chat at hand, if it resumes it. It does so first, whenever its socket connects."""
        session = chat_at_hand()
        if session is None or is_elsewhere(session, thread_id, self._spell):
            return
        if session.thread_id_to_resume and self._sockets.get(session) != session.socket_id:
            self._sockets[session] = session.socket_id
            self._given[session] = _digests(metadata)
        else:
            self._given.setdefault(session, _digests(metadata))

    def changed(self, thread_id: str, metadata: Mapping[str, Any]) -> Mapping[str, Any]:
        """Of a chat's variables those that are to be stored; all of what is something else."""
        session = chat_at_hand()
        if session is None or is_elsewhere(session, thread_id, self._spell):
            return metadata
        digests = _digests(metadata)
        given = self._given.get(session, {})
        self._given[session] = {**given, **digests}
        return {key: value for key, value in metadata.items() if given.get(key) != digests[key]}


def variables_of(metadata: object) -> Mapping[str, Any] | None:
    """A thread's metadata, where they are a session's variables and not what an application says of the thread."""
    if context_var.get(None) is None or not isinstance(metadata, Mapping):
        return None
    return metadata if metadata.keys() >= _OF_EACH_SESSION else None


_OF_EACH_SESSION = {"chat_profile", "chat_settings", "client_type"}


def _digests(metadata: Mapping[str, Any]) -> dict[str, bytes]:
    """Values may be large, and may be changed in place."""
    return {
        key: hashlib.blake2b(cleaning.json(value), digest_size=16).digest() for key, value in metadata.items()
    }
