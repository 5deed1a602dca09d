"""Chainlit's websocket sessions, without a socket."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from chainlit.context import ChainlitContext, context_var
from chainlit.session import WebsocketSession, ws_sessions_id, ws_sessions_sid
from chainlit.user import PersistedUser, User


async def _unheard(*_: Any) -> None:
    """Nobody is at the other end."""


@contextmanager
def in_session(
    *, spoken: bool = False, thread_id: str | None = None, user: User | PersistedUser | None = None
) -> Iterator[WebsocketSession]:
    """What is called within is of a chat, a new one by default; `spoken`: its first message has come."""
    session = WebsocketSession(
        id=str(uuid.uuid4()),
        socket_id=str(uuid.uuid4()),
        emit=_unheard,  # type: ignore[arg-type]
        emit_call=_unheard,
        user_env={},
        client_type="webapp",
        thread_id=thread_id,
        user=user,
    )
    session.has_first_interaction = spoken
    token = context_var.set(ChainlitContext(session))
    try:
        yield session
    finally:
        context_var.reset(token)
        ws_sessions_sid.pop(session.socket_id)
        ws_sessions_id.pop(session.id)
