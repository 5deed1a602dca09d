"""The Chainlit session that a call comes from, and what it may do."""

from __future__ import annotations

from chainlit.context import context_var
from chainlit.session import WebsocketSession
from chainlit.user import PersistedUser

from forebay.model import cleaning
from forebay.model.changes import Claimant


def chat_at_hand() -> WebsocketSession | None:
    """The chat that a person has open, whose message or click this is about; None for the application's own calls."""
    context = context_var.get(None)
    session = context.session if context is not None else None
    return session if isinstance(session, WebsocketSession) else None


def claimant_of(thread_id: str) -> Claimant | None:
    """Who has begun this chat without the database knowing, since it could not be asked when they came.

    Chainlit goes on with a user without an id then, for as long as the chat is open, and names no owner.
    """
    session = chat_at_hand()
    if session is None or session.thread_id != thread_id:
        return None
    user = session.user
    if user is None or isinstance(user, PersistedUser):
        return None
    metadata = cleaning.json(user.metadata or {}).decode()
    return Claimant(cleaning.text(user.identifier), metadata)
