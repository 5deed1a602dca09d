"""Reading what was saved of Literal AI: its API's threads, or those that its SDK's `to_dict` gives, as JSON.

An array, an object a line, or one object. A step without `createdAt` has `startTime`; a message's input and output are
objects; feedback is a score of a person's; attachments are in their steps.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from forebay.errors import SettingsError
from forebay.transfer.chats import Chat

_OF_METADATA = ("showInput", "language", "waitForAnswer")
_OF_ELEMENT = ("type", "display", "language", "page", "size", "props", "autoPlay", "playerConfig")


class LiteralFile:
    """See `chats.Chats`. Raises SettingsError for a file that is no JSON."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.whose = f"literal {hashlib.sha256(path.read_bytes()).hexdigest()}"
        self.left_out: Counter[str] = Counter()

    async def close(self) -> None:
        """There is nothing to let go of."""

    async def people(self) -> AsyncIterator[Mapping[str, Any]]:
        """Who takes part in a thread."""
        seen: set[str] = set()
        for thread in self._threads():
            person = thread.get("participant") or {}
            if person.get("id") and person.get("identifier") and person["id"] not in seen:
                seen.add(person["id"])
                yield person

    async def chats(self) -> AsyncIterator[Chat]:
        """Its threads."""
        self.left_out.clear()
        for thread in self._threads():
            if thread.get("id") and isinstance(thread.get("steps"), list | None):
                yield self._chat(thread)
            else:
                self.left_out["objects that are no threads"] += 1

    def _chat(self, thread: Mapping[str, Any]) -> Chat:
        person = thread.get("participant") or {}
        given = [one for one in thread.get("steps") or () if isinstance(one, Mapping)]
        steps = sorted(map(self._step, given), key=lambda step: str(step["createdAt"]))
        return {
            "id": thread["id"],
            "createdAt": thread.get("createdAt") or next((one["createdAt"] for one in steps), None),
            "name": thread.get("name"),
            "tags": thread.get("tags"),
            "metadata": thread.get("metadata"),
            "userId": person.get("id"),
            "userIdentifier": person.get("identifier"),
            "steps": steps,
            "elements": [_element(step, one) for step in given for one in step.get("attachments") or ()],
        }

    def _step(self, step: Mapping[str, Any]) -> dict[str, Any]:
        metadata = dict(step.get("metadata") or {})
        output, error = _text(step.get("output")), step.get("error")
        if error and output:
            metadata["error"] = error
        return {
            **{name: step.get(name) for name in ("id", "parentId", "name", "tags", "generation")},
            **{name: metadata.get(name) for name in _OF_METADATA},
            "type": step.get("type") or "undefined",
            "createdAt": step.get("createdAt") or step.get("startTime"),
            "start": step.get("startTime"),
            "end": step.get("endTime"),
            "input": _text(step.get("input")),
            "output": output or (str(error) if error else ""),
            "isError": bool(error),
            "metadata": metadata,
            "feedback": self._feedback(step),
        }

    def _feedback(self, step: Mapping[str, Any]) -> dict[str, Any] | None:
        found = None
        for score in step.get("scores") or ():
            if score.get("type") == "HUMAN" and score.get("name") == "user-feedback" and found is None:
                found = {name: score.get(name) for name in ("id", "value", "comment")}
            else:
                self.left_out["scores that are no person's feedback"] += 1
        return found

    def _threads(self) -> Iterator[Mapping[str, Any]]:
        for found in _objects(self._path.read_bytes()):
            yield found if isinstance(found, Mapping) else {}


def _objects(content: bytes) -> list[Any]:
    try:
        found = orjson.loads(content)
    except orjson.JSONDecodeError:
        try:
            return [orjson.loads(line) for line in content.splitlines() if line.strip()]
        except orjson.JSONDecodeError:
            raise SettingsError("it is neither JSON nor lines of it") from None
    if isinstance(found, Mapping) and "steps" not in found and isinstance(found.get("data"), list):
        found = found["data"]  # a page of the API's
    return found if isinstance(found, list) else [found]


def _text(value: Any) -> str:
    """What was said; of what is more than that, its JSON."""
    if isinstance(value, Mapping):
        said = value.get("content")
        return str(said) if said else orjson.dumps(value).decode() if value else ""
    return "" if value is None else str(value)


def _element(step: Mapping[str, Any], attachment: Mapping[str, Any]) -> dict[str, Any]:
    metadata = attachment.get("metadata") or {}
    return {
        **{name: metadata.get(name) for name in _OF_ELEMENT},
        **{name: attachment.get(name) for name in ("id", "mime", "name", "objectKey", "url")},
        "type": metadata.get("type") or "file",
        "display": metadata.get("display") or "side",
        "forId": step.get("id"),
    }
