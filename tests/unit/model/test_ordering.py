"""The order of a thread's steps."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from forebay.model.ordering import in_order
from forebay.model.schema import SENT_AT


def _step(
    key: str, created: str | None = "2026-01-01Z", parent: str | None = None, at: int | None = 0
) -> Any:
    return {"id": key, "createdAt": created, "parentId": parent, SENT_AT: at}


def _ids(*steps: Any) -> str:
    return "".join(step["id"] for step in in_order(steps))


def test_by_time_and_what_has_none_last() -> None:
    assert _ids(_step("c", None), _step("b", "2026-01-02Z"), _step("a", "2026-01-03Z")) == "bac"


def test_of_one_time_a_parent_comes_first_and_else_what_was_sent_first() -> None:
    assert _ids(_step("a", at=3), _step("b", at=2), _step("c", at=None)) == "cba"
    assert _ids(_step("a", parent="b", at=1), _step("b", parent="c", at=2), _step("c", at=3)) == "cba"
    assert _ids(_step("a", parent="z"), _step("b", parent="a")) == "ab"


def test_who_is_its_own_ancestor_is_shown_all_the_same() -> None:
    assert sorted(_ids(_step("a", parent="b"), _step("b", parent="a"), _step("c", parent="c"))) == [
        "a",
        "b",
        "c",
    ]


def test_times_with_an_offset_count_as_what_they_are_in_utc() -> None:
    early, late = _step("e", "2026-01-01T10:30:00+02:00"), _step("l", "2026-01-01T09:00:00.000000Z")
    assert _ids(late, early) == "el"


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9), st.integers(0, 3)), max_size=10))
def test_nothing_is_lost_and_no_parent_comes_after_its_child(drawn: list[tuple[int, int, int]]) -> None:
    steps = [
        _step(str(number), f"2026-01-0{moment + 1}Z", str(parent) if parent < number else None, at)
        for number, (moment, parent, at) in enumerate(drawn)
    ]
    shown = in_order(steps)
    assert sorted(step["id"] for step in shown) == [step["id"] for step in steps]
    assert [step["createdAt"] for step in shown] == sorted(step["createdAt"] for step in steps)
    place = {step["id"]: number for number, step in enumerate(shown)}
    for step in shown:
        parent = place.get(step["parentId"], -1)
        if parent >= 0 and shown[parent]["createdAt"] == step["createdAt"]:
            assert parent < place[step["id"]]
