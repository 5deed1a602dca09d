"""A row that is made by its shape is the row that is made value by value."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.model import rows, schema


class _Name(StrEnum):
    OUTPUT = "output"


_TEXTS = st.one_of(
    st.text(max_size=5), st.sampled_from(["", "\0", "\ud83d", "\ude00", "a\0b", "Grüße", "[]"])
)
_VALUES = st.one_of(
    _TEXTS,
    st.none() | st.booleans() | st.integers() | st.floats() | st.binary(max_size=3),
    st.lists(_TEXTS, max_size=2) | st.dictionaries(_TEXTS, _TEXTS, max_size=2),
    st.sampled_from([datetime(2026, 1, 2, tzinfo=UTC), _Name.OUTPUT]),
)
_STEP_KEYS = [column.name for column in schema.steps.columns]
_dicts = st.dictionaries(st.sampled_from([*_STEP_KEYS, "feedback", "unheardOf", _Name.OUTPUT]), _VALUES)


@given(first=_dicts, then=st.lists(_VALUES, min_size=30, max_size=30))
def test_both_ways_come_to_the_same(first: dict[str, Any], then: list[Any]) -> None:
    """Twice, since the first of a shape is the one that it is learnt from; then with other values."""
    for values in (first, first, {**first, **dict(zip(first, then, strict=False))}):
        assert rows.clean("steps", values) == rows._clean_each("steps", values)


@pytest.mark.parametrize("odd", ["a\0b", "\ud83d", "", "{}"])
def test_a_shape_is_not_trusted_with_every_value(odd: str) -> None:
    plain = {"id": "s", "threadId": "t", "parentId": "p", "output": "o", "metadata": {}}
    rows.clean("steps", plain)
    for name in ("id", "parentId", "output"):
        values = {**plain, name: odd}
        assert rows.clean("steps", values) == rows._clean_each("steps", values)


def test_shapes_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "_MOST_SHAPES", 10)
    for number in range(50):
        rows.clean("steps", {"id": "s", "output": "o", f"key{number}": 1})
    assert len(rows._shapes["steps"]) <= 10


def test_what_is_made_shares_nothing_with_what_it_was_made_from() -> None:
    metadata = {"a": [1]}
    row, _, _ = rows.clean("steps", {"id": "s", "output": "o", "metadata": metadata, "tags": ["x"]})
    metadata["a"].append(2)
    assert row["metadata"] == b'{"a":[1]}'
