"""The order in which a thread's steps are shown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, TypeVar

from forebay.model import cleaning
from forebay.model.schema import SENT_AT

_Document = TypeVar("_Document", bound=Mapping[str, Any])


def in_order(steps: Sequence[_Document]) -> list[_Document]:
    """Steps by their `createdAt`, which is UTC; what has none comes last.

    Of those of one moment a parent comes before what is below it, and else what was sent before.
    """
    ordered = sorted(steps, key=_place)
    if len({step["createdAt"] for step in steps}) == len(steps):
        return ordered
    moments = (list(moment) for _, moment in groupby(ordered, key=_created))
    return [step for moment in moments for step in _parents_first(moment)]


def _created(step: Mapping[str, Any]) -> str:
    created = step["createdAt"]
    return cleaning.utc(created) if created else "\uffff"


def _place(step: Mapping[str, Any]) -> tuple[str, int, str]:
    return _created(step), step.get(SENT_AT) or 0, step["id"]


def _parents_first(steps: Sequence[_Document]) -> Iterator[_Document]:
    waiting = {step["id"]: step for step in steps}
    for step in steps:
        above: list[_Document] = []
        found = waiting.pop(step["id"], None)
        while found is not None:
            above.append(found)
            found = waiting.pop(found["parentId"], None)
        yield from reversed(above)
