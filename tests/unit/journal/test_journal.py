"""What goes into the journal comes out as it was."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.model import changes
from forebay.model.changes import Change, Delete, decode, encode

_TEXT = st.text(max_size=20)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=8,
)
_OBJECT = st.dictionaries(_TEXT, _JSON, max_size=3)


@given(
    values=st.fixed_dictionaries(
        {"id": st.text(min_size=1, max_size=5)},
        optional={
            "threadId": _TEXT,
            "output": _TEXT,
            "streaming": st.booleans(),
            "metadata": _OBJECT,
            "generation": _OBJECT,
            "tags": st.lists(_TEXT, max_size=3),
            "showInput": st.booleans() | _TEXT,
            "unknown": _JSON,
        },
    )
)
def test_a_step_comes_out_as_it_went_in(values: dict[str, Any]) -> None:
    change = changes.step(values)
    assert decode(encode([change, change])) == [change, change]


@given(metadata=_OBJECT, tags=st.none() | st.lists(_TEXT, max_size=3), name=st.none() | _TEXT)
def test_a_thread_comes_out_as_it_went_in(
    metadata: dict[str, Any], tags: list[str] | None, name: str | None
) -> None:
    change = changes.thread("t", name, "u", metadata, tags)
    assert decode(encode([change, change])) == [change, change]


@pytest.mark.parametrize(
    "change",
    [
        Delete("threads", "t", "t"),
        Delete("steps", "s"),
        changes.element(
            {"id": "e", "threadId": "t", "props": {"a": [1]}, "playerConfig": {"b": None}, "page": 3}
        ),
        changes.feedback({"id": "f", "forId": "s", "threadId": "t", "value": 0, "comment": "line\nfeed"}),
    ],
)
def test_every_other_change_does_too(change: Change) -> None:
    assert decode(encode([change, change])) == [change, change]
