"""Values of any type become values that both databases take."""

from __future__ import annotations

import dataclasses
import enum
import json
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from types import MappingProxyType
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import override

from forebay.model import cleaning
from forebay.model.cleaning import MAX_DEPTH, Misfit

LOST = "\ufffd"


class Colour(enum.StrEnum):
    RED = "red"


class Silent:
    @override
    def __str__(self) -> str:
        raise ValueError("I say nothing")


@dataclasses.dataclass
class Point:
    x: Any


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("", ""),
        ("plain", "plain"),
        ("héllo \U0001f600", "héllo \U0001f600"),
        ("a\x00b", f"a{LOST}b"),
        ("é\x00", f"é{LOST}"),
        ("a\ud800b", f"a{LOST}b"),
        ("\ude00\ud83d", LOST * 2),
        ("\ud83d\ude00", "\U0001f600"),  # the halves of one character, side by side
        (b"caf\xc3\xa9", "café"),
        (bytearray(b"\xff"), LOST),
        (memoryview(b"view"), "view"),
        (True, "true"),
        (7, "7"),
        (None, "None"),
        (Colour.RED, "red"),
        (datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC), "2024-05-06T07:08:09.000000Z"),
        ({"a": [1]}, '{"a":[1]}'),
        ((1, 2), "[1,2]"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (Silent(), "<Silent>"),
    ],
)
def test_any_value_becomes_text(value: Any, written: str) -> None:
    assert cleaning.text(value) == written
    assert type(cleaning.text(value)) is str


@given(st.text(st.characters()))  # surrogates and NUL among them
def test_text_can_be_encoded_and_holds_no_nul(value: str) -> None:
    cleaned = cleaning.text(value)
    assert "\x00" not in cleaned
    assert cleaned.encode().decode() == cleaned
    assert cleaning.text(cleaned) == cleaned


@pytest.mark.parametrize(
    ("moment", "written"),
    [
        (datetime(2024, 1, 2, 3, 4, 5, 6), "2024-01-02T03:04:05.000006Z"),
        (datetime(2024, 1, 2, 3, tzinfo=timezone(timedelta(hours=5))), "2024-01-01T22:00:00.000000Z"),
    ],
)
def test_times_are_utc(moment: datetime, written: str) -> None:
    assert cleaning.timestamp(moment) == written


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ({"nan": float("nan"), "inf": [float("-inf")]}, {"nan": None, "inf": [None]}),
        ({"huge": 2**64, "small": -(2**63) - 1}, {"huge": str(2**64), "small": str(-(2**63) - 1)}),
        ({"big": 2**63 - 1}, {"big": 2**63 - 1}),
        ({"set": {2, 1}}, {"set": [1, 2]}),
        ({"frozen": frozenset({"b", "a"})}, {"frozen": ["a", "b"]}),
        ({"mixed": {1, "a"}}, {"mixed": [1, "a"]}),
        ({1: "int", None: "none", (1, 2): "tuple"}, {"1": "int", "None": "none", "[1,2]": "tuple"}),
        ({"bytes": b"abc"}, {"bytes": "abc"}),
        ({"date": date(2024, 1, 2)}, {"date": "2024-01-02"}),
        ({"time": datetime(2024, 1, 2, tzinfo=UTC)}, {"time": "2024-01-02T00:00:00.000000Z"}),
        ({"decimal": Decimal("1.5")}, {"decimal": "1.5"}),
        ({"nul": "a\x00b", "escaped": "\\u0000"}, {"nul": f"a{LOST}b", "escaped": "\\u0000"}),
        ({"\x00": 1}, {LOST: 1}),
        ({"half": "\ud800"}, {"half": LOST}),
        ({"object": Silent()}, {"object": "<Silent>"}),
        ({"point": Point(1)}, {"point": {"x": 1}}),
        ({"point": Point("\ud800"), "set": {1}}, {"point": "Point(x='\\ud800')", "set": [1]}),
        (MappingProxyType({"proxy": MappingProxyType({})}), {"proxy": {}}),
        (["list", None, True], ["list", None, True]),
    ],
)
def test_json_keeps_what_it_can(value: Any, kept: Any) -> None:
    assert json.loads(cleaning.json(value)) == kept


def test_json_ends_a_cycle() -> None:
    value: dict[str, Any] = {"name": "x"}
    value["self"] = value
    assert json.loads(cleaning.json(value)) == {"name": "x", "self": "…"}


@pytest.mark.parametrize("wrap", [lambda inner: [inner], lambda inner: {"k": inner}])
def test_json_ends_what_is_too_deep(wrap: Any) -> None:
    value: Any = "deepest"
    for _ in range(2_000):
        value = wrap(value)
    written = cleaning.json(value).decode()
    assert written.count("[") + written.count("{") == MAX_DEPTH
    assert "…" in written
    assert "deepest" not in written


def test_json_writes_a_shared_object_twice() -> None:
    shared = {1}
    assert json.loads(cleaning.json({"a": shared, "b": [shared, 2**70]})) == {
        "a": [1],
        "b": [[1], str(2**70)],
    }


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.binary()
    | st.datetimes(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters()) | st.integers(), inner),
    max_leaves=8,
)


@given(anything)
def test_json_is_always_valid_and_free_of_nul(value: Any) -> None:
    written = cleaning.json(value)
    again = json.loads(written.decode(), parse_constant=pytest.fail)
    assert "\x00" not in json.dumps(again, ensure_ascii=False)
    assert json.loads(cleaning.json(again)) == again


@pytest.mark.parametrize(
    ("clean", "value", "kept"),
    [
        (cleaning.boolean, True, True),
        (cleaning.boolean, 0, False),
        (cleaning.boolean, " False ", False),
        (cleaning.boolean, "1", True),
        (cleaning.integer, "7", 7),
        (cleaning.integer, 3.0, 3),
        (cleaning.integer, True, 1),
        (cleaning.integer, -(2**31), -(2**31)),
        (cleaning.strings, "one", ["one"]),
        (cleaning.strings, b"one", ["one"]),
        (cleaning.strings, ["a", None, 1, "\x00"], ["a", "1", LOST]),
        (cleaning.strings, {"b", "a"}, ["a", "b"]),
        (cleaning.strings, (tag for tag in "ab"), ["a", "b"]),
        (cleaning.strings, [], []),
        (cleaning.document, {}, b"{}"),
        (cleaning.document, {"a": {1}}, b'{"a":[1]}'),
        (cleaning.document, '{"a": 1}', b'{"a":1}'),
        (cleaning.document, b"[1]", b"[1]"),
        (cleaning.document, (1, 2), b"[1,2]"),
        (cleaning.identifier, "", None),
        (cleaning.identifier, UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    ],
)
def test_a_value_that_fits_its_column_is_kept(clean: Any, value: Any, kept: Any) -> None:
    cleaned = clean(value)
    assert cleaned == kept
    assert type(cleaned) is type(kept)


@pytest.mark.parametrize(
    ("clean", "value"),
    [
        (cleaning.boolean, "perhaps"),
        (cleaning.boolean, 2),
        (cleaning.boolean, 1.0),
        (cleaning.boolean, []),
        (cleaning.integer, "x"),
        (cleaning.integer, 1.5),
        (cleaning.integer, 2**31),
        (cleaning.integer, float("nan")),
        (cleaning.integer, float("inf")),
        (cleaning.integer, "9" * 5000),
        (cleaning.integer, None),
        (cleaning.strings, 5),
        (cleaning.strings, {"a": 1}),
        (cleaning.document, "not json"),
        (cleaning.document, '"text"'),
        (cleaning.document, 5),
    ],
)
def test_a_value_that_fits_its_column_in_no_form_is_told(clean: Any, value: Any) -> None:
    with pytest.raises(Misfit):
        clean(value)


@pytest.mark.parametrize("number", [10**5000, -(10**5000)], ids=["positive", "negative"])
def test_a_number_of_very_many_digits_loses_no_row(number: int) -> None:
    assert cleaning.text(number) == hex(number)
    assert json.loads(cleaning.json({"a": [number]})) == {"a": [hex(number)]}
    with pytest.raises(cleaning.Misfit):
        cleaning.integer(number)
