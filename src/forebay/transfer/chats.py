"""A chat as data layers of Chainlit give it -> rows of forebay's tables, as old as they are there."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from typing import Any, Protocol

import orjson

from forebay.model import cleaning
from forebay.model.schema import SENT_AT, WRITTEN_AT
from forebay.transfer.clocks import microseconds, utc

Chat = dict[str, Any]  # as Chainlit's ThreadDict

_THREAD = ("name", "userId", "userIdentifier")
_TIMES = ("createdAt", "start", "end")


class Chats(Protocol):
    """A source that gives whole chats. `whose` tells it from every other; `left_out`: what it can't give, by why."""

    whose: str
    left_out: Counter[str]

    def people(self) -> AsyncIterator[Mapping[str, Any]]:
        """Those that it knows by themselves: `id`, `identifier`, and what else a user has."""

    def chats(self) -> AsyncIterator[Chat]:
        """All of them, each once, with its `steps` and `elements`."""

    async def close(self) -> None:
        """Let go of it."""


@dataclass
class Rows:
    """How chats of one pass are read: the zone of times that say none, and when it began (microseconds since 1970).

    A row's moment is when it was made, and a copy more makes it a microsecond newer: see `official_rows.Copy`.
    """

    zone: tzinfo
    began_at: int
    left_out: Counter[str] = field(default_factory=Counter)

    def user(self, person: Mapping[str, Any]) -> dict[str, Any]:
        """A person."""
        created = person.get("createdAt")
        return {
            "id": str(person["id"]),
            "identifier": str(person["identifier"]),
            "metadata": _object(person.get("metadata")),
            "createdAt": self._time(created, self.zone) if created else None,
        }

    def of(self, chat: Chat, copies: int) -> Iterator[tuple[str, dict[str, Any]]]:
        """A chat's rows, by table. `copies`: how often it was copied before."""
        created = self._time(chat.get("createdAt"), self.zone)
        times = [created, *filter(None, map(self._created, chat.get("steps") or ()))]
        begun = min(map(self._moment, times))  # what is said of a thread's time may be when it was changed
        yield (
            "threads",
            {
                **{name: chat.get(name) for name in _THREAD},
                "id": chat["id"],
                "createdAt": created,
                "tags": chat.get("tags") or None,
                "metadata": _object(chat.get("metadata")),
                WRITTEN_AT: begun + copies,
            },
        )
        moments: dict[Any, int] = {}
        for place, step in enumerate(chat.get("steps") or ()):
            if not step.get("id") or step["id"] in moments:
                self.left_out["steps without an id, or a second time"] += 1
                continue
            written = self._created(step)
            sent_at = moments[step["id"]] = begun if written is None else self._moment(written)
            yield from self._step(chat["id"], step, sent_at, place, copies)
        for place, element in enumerate(chat.get("elements") or ()):
            if not element.get("id"):
                self.left_out["elements without an id"] += 1
                continue
            sent_at = moments.get(element.get("forId"), begun)
            row = {name: value for name, value in element.items() if value is not None}
            marks = {SENT_AT: sent_at + place, WRITTEN_AT: sent_at + copies}
            yield "elements", {**row, "threadId": chat["id"], **marks}

    def _created(self, step: Mapping[str, Any]) -> str | None:
        found = step.get("createdAt") or step.get("start")
        return self._time(found, UTC) if found else None

    def _step(
        self, thread_id: str, step: Mapping[str, Any], sent_at: int, place: int, copies: int
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        row = {name: value for name, value in step.items() if value is not None and name != "feedback"}
        row.update({name: self._time(row[name], UTC) for name in _TIMES if row.get(name)})
        row["createdAt"] = self._created(step) or cleaning.timestamp(_of(sent_at))
        shown = str(row.pop("showInput", None)).lower()
        if shown != "none":
            row["showInput"] = shown
        marks = {SENT_AT: sent_at + place, WRITTEN_AT: sent_at + copies}
        yield "steps", {**row, "threadId": thread_id, **marks}
        feedback = step.get("feedback")
        if not isinstance(feedback, Mapping) or feedback.get("value") is None:
            return
        if feedback["value"] != int(feedback["value"]):
            self.left_out["feedbacks whose value is not whole"] += 1
            return
        yield (
            "feedbacks",
            {
                "id": feedback.get("id") or f"feedback of {step['id']}",
                "forId": step["id"],
                "threadId": thread_id,
                "value": int(feedback["value"]),
                "comment": feedback.get("comment") or "",  # which may have been taken back
                WRITTEN_AT: sent_at + copies,
            },
        )

    def _time(self, written: Any, zone: tzinfo) -> str:
        """In UTC; one that can't be read, or is missing, is that of the pass."""
        try:
            found = written if isinstance(written, datetime) else datetime.fromisoformat(str(written))
        except ValueError:
            return cleaning.timestamp(_of(self.began_at))
        if zone is not UTC and (found.tzinfo is None or str(written).endswith("Z")):  # whatever it says
            found = utc(found.replace(tzinfo=None), zone)
        return cleaning.timestamp(found)

    def _moment(self, written: str) -> int:
        return max(1, min(microseconds(datetime.fromisoformat(written)), self.began_at))


def _of(moment: int) -> datetime:
    return datetime.fromtimestamp(moment / 1_000_000, UTC)


def fingerprint(chat: Chat) -> str:
    """What tells whether a chat has changed. A URL that is signed anew each time has not."""
    elements = [
        {name: value for name, value in one.items() if name != "url" or not one.get("objectKey")}
        for one in chat.get("elements") or ()
    ]
    known = orjson.dumps({**chat, "elements": elements}, default=str, option=_OPTIONS)
    return hashlib.sha256(known).hexdigest()


_OPTIONS = orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS


def _object(value: Any) -> Mapping[str, Any]:
    try:
        found = orjson.loads(value) if isinstance(value, str) else value
    except orjson.JSONDecodeError:
        found = None
    return found if isinstance(found, Mapping) else {}
