"""When who writes began: a thread that was deleted before that may be made anew, and by whom its owner is named.

A chat in Discord, Slack or Teams has the id of its conversation, and each message there begins a session: one that
begins after its thread was deleted makes a new one. What an older session still writes stays out.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

from chainlit.context import context_var
from chainlit.session import HTTPSession, WebsocketSession

from forebay.model import changes
from forebay.model.changes import Upsert
from forebay.model.schema import WRITTEN_AT

_CONVERSATIONS = frozenset({"discord", "slack", "teams"})


class Beginnings:
    """The sessions without a websocket, each with the moment of its first write and the threads that it wrote to."""

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[HTTPSession, tuple[int, set[str]]] = WeakKeyDictionary()

    def note(self, change: Upsert) -> None:
        """Have the change say when its session began, once for each thread."""
        session = _session()
        if not isinstance(session, HTTPSession) or change.thread_id is None:
            return
        moment, threads = self._known.setdefault(session, (change.row[WRITTEN_AT], set()))
        if change.thread_id not in threads:
            threads.add(change.thread_id)
            changes.begun(change, moment)


def is_in_a_chat() -> bool:
    """Whether a chat's session calls, which may name an owner only where there is none."""
    session = _session()
    return isinstance(session, WebsocketSession) or (
        isinstance(session, HTTPSession) and session.client_type in _CONVERSATIONS
    )


def _session() -> object:
    context = context_var.get(None)
    return context.session if context is not None else None
