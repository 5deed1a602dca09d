"""The database's JSON documents -> Chainlit's ThreadDict, StepDict, ElementDict and PersistedUser."""

from __future__ import annotations

from typing import Any, cast

from chainlit.element import ElementDict
from chainlit.step import StepDict
from chainlit.types import FeedbackDict, ThreadDict
from chainlit.user import PersistedUser

from forebay.model import schema
from forebay.model.schema import EXTRA, Kind

Document = dict[str, Any]


def _bools(name: str) -> frozenset[str]:
    columns = schema.TABLES[name].columns
    return frozenset(c.name for c in columns if c.info.get("kind") is Kind.BOOL)


_STEP_BOOLS = _bools("steps")
_ELEMENT_BOOLS = _bools("elements")


def user(document: Document) -> PersistedUser:
    """A stored user."""
    return PersistedUser(
        id=document["id"],
        identifier=document["identifier"],
        createdAt=document["createdAt"] or "",
        metadata=_object(document["metadata"]),
    )


def thread(document: Document) -> ThreadDict:
    """A thread; without steps and elements where the statement left them out."""
    steps = [step(inner) for inner in document.pop("steps", ())]
    elements = [element(inner) for inner in document.pop("elements", ())]
    metadata = _object(document.pop("metadata"))
    for name in ("activity", "followed"):  # only pages have them
        document.pop(name, None)
    return cast("ThreadDict", {**document, "metadata": metadata, "steps": steps, "elements": elements})


def step(document: Document) -> StepDict:
    """A step, with the keys given back that no column was for."""
    _open_extra(document)
    _to_bools(document, _STEP_BOOLS)
    document["metadata"] = _object(document["metadata"])
    if document["showInput"] in (None, "false"):
        document["input"] = ""
    document["input"] = document["input"] or ""
    document["output"] = document["output"] or ""
    if document["indent"] is None:  # a column of older releases that StepDict does not have
        del document["indent"]
    document["feedback"] = _feedback(document["feedback"])
    return cast("StepDict", document)


def _feedback(document: Document | None) -> FeedbackDict | None:
    if document is None:
        return None
    comment = document["comment"] or None  # it is emptied where a newer feedback has none
    return FeedbackDict(forId=document["forId"], id=document["id"], value=document["value"], comment=comment)


def element(document: Document) -> ElementDict:
    """An element, with the stored URL."""
    _open_extra(document)
    _to_bools(document, _ELEMENT_BOOLS)
    document["props"] = _object(document["props"])
    return cast("ElementDict", document)


def _object(value: object) -> dict[str, Any]:
    """An object; other JSON, which somebody else has stored, counts as an empty one."""
    return value if isinstance(value, dict) else {}


def _open_extra(document: Document) -> None:
    # A column's own name is there when its value did not fit; the column's readers expect its type.
    extra = _object(document.pop(EXTRA))
    for key in extra:
        document.setdefault(key, extra[key])


def _to_bools(document: Document, names: frozenset[str]) -> None:
    """SQLite's truth is 1."""
    for name in names:
        value = document[name]
        if value is not None and value is not True and value is not False:
            document[name] = bool(value)
