"""Rows of Chainlit's official layer -> rows of forebay's tables, as old as they are there."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from forebay.database.official import Found
from forebay.database.queries import Row
from forebay.model import cleaning
from forebay.model.schema import EXTRA, SENT_AT, WRITTEN_AT
from forebay.transfer.clocks import Zones, microseconds, utc

# What a copy of an element's columns holds as well.
_ELEMENT_COLUMNS = frozenset({"type", "size", "language", "display", "page"})


@dataclass(frozen=True)
class Copy:
    """How one pass reads: its clocks, which feedbacks are people's, and when it began (microseconds since 1970).

    A row's moment is when it was made, since a step's change is noted nowhere, and a copy more makes it a microsecond
    newer: a row that was changed there wins over its copy, and what forebay has written wins over both. Nothing that
    is copied is newer than the pass, whatever a source's clock says.
    """

    zones: Zones
    feedback_names: frozenset[str]
    began_at: int

    def user(self, row: Row) -> dict[str, Any]:
        """A person."""
        return {
            "id": row["id"],
            "identifier": row["identifier"],
            "metadata": _object(row["metadata"]),
            "createdAt": cleaning.timestamp(utc(row["createdAt"], self.zones.application)),
        }

    def rows(self, found: Found, copies: int, left_out: Counter[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        """A thread and all that is in it, by table. `copies`: how often it was copied before."""
        yield "threads", self._thread(found.thread, copies)
        for row in found.rows["Step"]:
            yield "steps", self._step(row, copies)
        for place, row in enumerate(
            sorted(found.rows["Element"], key=lambda one: (one["createdAt"], one["id"]))
        ):
            yield "elements", self._element(row, copies, place)
        for row in found.rows["Feedback"]:
            if row["name"] not in self.feedback_names:
                left_out["feedbacks of another name"] += 1
            elif row["value"] != int(row["value"]):
                left_out["feedbacks whose value is not whole"] += 1
            else:
                yield "feedbacks", self._feedback(row, copies)

    def _thread(self, row: Row, copies: int) -> dict[str, Any]:
        return {
            "id": row["id"],
            "createdAt": cleaning.timestamp(utc(row["createdAt"], self.zones.database)),
            "name": row["name"],
            "userId": row["userId"],
            "userIdentifier": row["identifier"],
            "tags": row["tags"] or None,
            "metadata": _object(row["metadata"]),
            WRITTEN_AT: self._by_database(row, copies),
        }

    def _step(self, row: Row, copies: int) -> dict[str, Any]:
        shown = (row["showInput"] or "none").lower()
        return {
            "id": row["id"],
            "threadId": row["threadId"],
            "parentId": row["parentId"],
            "name": row["name"] or "",
            "type": row["type"],
            "input": row["input"],
            "output": row["output"],
            "metadata": _object(row["metadata"]),
            "showInput": None if shown == "none" else shown,
            "isError": row["isError"],
            "createdAt": _written(row["startTime"]),
            "start": _written(row["startTime"]),
            "end": _written(row["endTime"]),
            WRITTEN_AT: self._by_database(row, copies),
        }

    def _element(self, row: Row, copies: int, place: int) -> dict[str, Any]:
        metadata = _object(row["metadata"])
        others = {key: value for key, value in metadata.items() if key not in _ELEMENT_COLUMNS}
        return {
            "id": row["id"],
            "threadId": row["thread"],
            "forId": row["stepId"],
            "type": metadata.get("type") or "file",
            **{name: row[name] for name in ("url", "chainlitKey", "name", "display", "objectKey", "size")},
            **{name: row[name] for name in ("page", "language", "mime")},
            "props": _document(row["props"]),
            **({EXTRA: others} if others else {}),
            SENT_AT: self._by_database(row, 0) + place,
            WRITTEN_AT: self._by_database(row, copies),
        }

    def _feedback(self, row: Row, copies: int) -> dict[str, Any]:
        return {
            "id": row["id"],
            "forId": row["stepId"],
            "threadId": row["thread"],
            "value": int(row["value"]),
            "comment": row["comment"] or "",  # which may have been taken back
            WRITTEN_AT: self._by_database(row, copies),
        }

    def _by_database(self, row: Row, copies: int) -> int:
        return self._moment(utc(row["createdAt"], self.zones.database), copies)

    def _moment(self, moment: datetime, copies: int) -> int:
        return min(microseconds(moment), self.began_at) + copies

    def deleted_at(self, moment: datetime) -> int:
        """When a thread was deleted."""
        return self._moment(utc(moment, self.zones.application), 0)


def _written(moment: datetime | None) -> str | None:
    return cleaning.timestamp(moment.replace(tzinfo=UTC)) if moment is not None else None


def _document(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


def _object(value: Any) -> Mapping[str, Any]:
    found = _document(value)
    return found if isinstance(found, Mapping) else {}
