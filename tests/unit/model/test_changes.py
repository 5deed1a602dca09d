"""Chainlit's dicts become changes: frozen, cleaned, and foldable."""

from __future__ import annotations

import enum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.errors import RowError
from forebay.model import changes, cleaning
from forebay.model.changes import OVERHEAD_BYTES, Change, Delete, Upsert
from forebay.model.schema import EXTRA, SENT_AT, WRITTEN_AT

NOW = "2024-01-01T00:00:00.000000Z"
WRITTEN = {WRITTEN_AT: 1}


@pytest.fixture(autouse=True)
def _fixed_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cleaning, "now", lambda: NOW)
    monkeypatch.setattr(changes, "next_moment", lambda: 1)


def step(**values: Any) -> Upsert:
    return changes.step({"id": "s", "threadId": "t", **values})


class Key(enum.StrEnum):
    OUTPUT = "output"
    UNKNOWN = "unknown"


def test_a_step_keeps_what_is_given_and_nothing_else() -> None:
    made = step(output="", input=None, streaming=False, metadata={}, tags=[])
    assert made == Upsert(
        "steps",
        "s",
        {"id": "s", "threadId": "t", "output": "", "streaming": False, "metadata": b"{}", "tags": []}
        | WRITTEN,
        "t",
        OVERHEAD_BYTES + len("s") + len("t") + len("{}"),
    )


def test_a_change_is_frozen_when_it_is_made() -> None:
    given: dict[str, Any] = {
        "id": "s",
        "threadId": "t",
        "metadata": {"a": [1]},
        "tags": ["x"],
        "new": {"b": 1},
    }
    made = changes.step(given)
    given["metadata"]["a"].append(2)
    given["tags"].append("y")
    given["new"]["b"] = 2
    given["output"] = "late"
    assert made.row == {
        "id": "s",
        "threadId": "t",
        "metadata": b'{"a":[1]}',
        "tags": ["x"],
        EXTRA: {"new": b'{"b":1}'},
        **WRITTEN,
    }


@pytest.mark.parametrize(
    ("values", "extra"),
    [
        ({"invented": {"by": "a release"}}, {"invented": b'{"by":"a release"}'}),
        ({"indent": "deep"}, {"indent": b'"deep"'}),
        ({"metadata": 5, "streaming": "perhaps"}, {"metadata": b"5", "streaming": b'"perhaps"'}),
        ({"\x00": 1, 5: 2}, {"\ufffd": b"1", "5": b"2"}),
        ({EXTRA: {"a": 1}}, {EXTRA: b'{"a":1}'}),
        ({Key.UNKNOWN: 1}, {"unknown": b"1"}),
    ],
)
def test_what_no_column_is_for_is_kept_beside(values: dict[Any, Any], extra: dict[str, bytes]) -> None:
    row = step(output="x").row | changes.step({"id": "s", **values}).row
    assert row == {"id": "s", "threadId": "t", "output": "x", EXTRA: extra, **WRITTEN}
    assert {type(name) for name in row[EXTRA]} == {str}


def test_a_key_of_a_kind_of_str_finds_its_column() -> None:
    row = changes.step({"id": "s", Key.OUTPUT: "x"}).row
    assert row == {"id": "s", "output": "x", **WRITTEN}
    assert {type(name) for name in row} == {str}


@pytest.mark.parametrize(("given", "kept"), [(True, "true"), (False, "false"), ("JSON", "json")])
def test_show_input_is_lower_case_text(given: Any, kept: str) -> None:
    assert step(showInput=given).row["showInput"] == kept


def test_a_steps_feedback_is_not_the_steps() -> None:
    assert "feedback" not in step(feedback={"value": 1}).row
    assert EXTRA not in step(feedback={"value": 1}).row


@pytest.mark.parametrize("make", [changes.step, changes.element, changes.feedback])
@pytest.mark.parametrize("given", [{}, {"id": None}, {"id": ""}])
def test_a_row_without_an_id_is_refused(make: Any, given: dict[str, Any]) -> None:
    with pytest.raises(RowError):
        make({"forId": "f", "threadId": "t", "value": 1, **given})


@pytest.mark.parametrize(
    ("name", "value"), [("forId", None), ("threadId", ""), ("value", None), ("value", ""), ("value", "none")]
)
def test_a_feedback_without_what_it_needs_is_refused(name: str, value: Any) -> None:
    with pytest.raises(RowError, match=name):
        changes.feedback({"id": "f", "forId": "s", "threadId": "t", "value": 1, name: value})


def test_a_feedback_says_when_it_was_given() -> None:
    made = changes.feedback({"id": "f", "forId": "s", "threadId": "t", "value": 1, "comment": None})
    assert made.row == {"id": "f", "forId": "s", "threadId": "t", "value": 1, **WRITTEN}
    assert made.thread_id == "t"


def test_a_thread_takes_its_name_from_this_calls_metadata() -> None:
    assert changes.thread("t", metadata={"name": "hello"}).row["name"] == "hello"
    assert changes.thread("t", "given", metadata={"name": "hello"}).row["name"] == "given"
    assert changes.thread("t", "", metadata={"name": "hello"}).row["name"] == ""
    assert "name" not in changes.thread("t", metadata={"name": None}).row


def test_a_threads_name_is_cut() -> None:
    assert changes.thread("t", "é" * 300).row["name"] == "é" * 255


def test_none_in_a_threads_metadata_removes_its_key() -> None:
    made = changes.thread("t", metadata={"kept": {"a": None}, "gone": None, "": None})
    assert made.row["metadata"] == {"kept": b'{"a":null}'}
    assert made.removed == {"gone", ""}


@pytest.mark.parametrize("keys", [("\x00", "\ud800"), ("\ud800", "\x00")])
def test_of_two_keys_that_become_one_the_value_stays(keys: tuple[str, str]) -> None:
    made = changes.thread("t", metadata={keys[0]: 1, keys[1]: None})
    assert made.row["metadata"] == {"\ufffd": b"1"}
    assert made.removed == frozenset()


def test_a_thread_that_is_only_touched_gets_a_row() -> None:
    assert changes.thread("t").row == {"id": "t", "createdAt": NOW, **WRITTEN}


@pytest.mark.parametrize(
    ("newest", "stub"),
    [(None, {"id": "t", "createdAt": NOW}), ("2023", {"id": "t", "createdAt": NOW, "updatedAt": "2023"})],
)
def test_a_stub_moves_its_thread_up(newest: str | None, stub: dict[str, str]) -> None:
    assert changes.thread_stub("t", newest, NOW) == stub


def test_the_size_is_that_of_the_text_that_is_held() -> None:
    small, large = step(output="x"), step(output="x" * 5001)
    assert large.size - small.size == 5000
    assert step(new={"a": "x" * 100}).size > step(new={"a": ""}).size + 99


# ---- as lines of the journal

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters()), inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from(
    ["output", "metadata", "tags", "generation", "modes", "props", "indent", "streaming", "new", "\n"]
)
values = st.dictionaries(names, anything, max_size=5)
any_change = st.one_of(
    values.map(lambda given: step(**given)),
    values.map(lambda given: changes.element({"id": "e\n", **given})),
    values.map(lambda given: changes.thread("t", "name", "u", given, ["tag", "\n"])),
    st.builds(
        lambda value: changes.feedback({"id": "f", "forId": "s", "threadId": "t", "value": value}), st.just(1)
    ),
    st.builds(Delete, st.just("steps"), st.just("s"), st.sampled_from([None, "t"])),
)


@given(any_change)
def test_a_line_gives_the_change_back(change: Change) -> None:
    line = changes.encode([change])
    assert line.find(b"\n") == len(line) - 1
    assert changes.decode(line) == [change]


# ---- fold: that it stores what the two store is tested on the databases; here, what it is made of


def test_the_newer_value_stays_and_a_missing_one_does_not_count() -> None:
    older, newer = step(output="old", input="kept"), step(output="new", tags=["x"])
    both = step(output="new", input="kept", tags=["x"])
    assert changes.fold(older, newer).row == both.row | {SENT_AT: older.row[WRITTEN_AT]}


def test_extra_keys_are_folded_one_by_one() -> None:
    folded = changes.fold(step(a=1, b=1), step(b=2, c=2))
    assert folded.row[EXTRA] == {"a": b"1", "b": b"2", "c": b"2"}


def test_a_threads_first_creation_stays() -> None:
    older = Upsert("threads", "t", {"id": "t", "createdAt": "2020", "updatedAt": "2022"}, "t", 0)
    newer = Upsert("threads", "t", {"id": "t", "createdAt": "2023", "updatedAt": "2021"}, "t", 0)
    assert changes.fold(older, newer).row == {"id": "t", "createdAt": "2020", "updatedAt": "2022"}


@pytest.mark.parametrize(
    ("first", "second", "set_keys", "removed"),
    [
        ({"a": 1}, {"a": None}, {}, {"a"}),
        ({"a": None}, {"a": 1}, {"a": b"1"}, set()),
        ({"a": 1, "b": None}, {"b": 2, "c": None}, {"a": b"1", "b": b"2"}, {"c"}),
        ({"a": None}, {"b": None}, {}, {"a", "b"}),
        ({"a": 1}, {}, {"a": b"1"}, set()),
    ],
)
def test_removed_keys_fold(
    first: dict[str, Any], second: dict[str, Any], set_keys: dict[str, bytes], removed: set[str]
) -> None:
    folded = changes.fold(changes.thread("t", metadata=first), changes.thread("t", metadata=second))
    assert folded.row.get("metadata", {}) == set_keys
    assert folded.removed == removed


@pytest.mark.parametrize(("first", "second", "thread"), [("t", None, "t"), (None, "t", "t"), ("a", "b", "b")])
def test_a_fold_is_of_the_thread_that_was_named_last(
    first: str | None, second: str | None, thread: str
) -> None:
    folded = changes.fold(
        changes.step({"id": "s", "threadId": first}), changes.step({"id": "s", "threadId": second})
    )
    assert folded.thread_id == thread


def test_a_fold_does_not_change_its_parts() -> None:
    older = changes.thread("t", metadata={"a": 1})
    newer = changes.thread("t", metadata={"a": None, "b": 2})
    rows = [{**change.row, "metadata": {**change.row["metadata"]}} for change in (older, newer)]
    changes.fold(older, newer)
    assert [older.row, newer.row] == rows


def test_a_fold_has_the_size_of_what_it_holds() -> None:
    folded = changes.fold(step(output="x" * 100), step(output="y" * 10, new=1))
    assert folded.size == step(output="y" * 10, new=1).size
