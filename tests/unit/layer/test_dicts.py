"""The database's documents become Chainlit's dicts."""

from __future__ import annotations

from typing import Any

import pytest
from chainlit.element import ElementDict
from chainlit.step import StepDict

from forebay.layer import dicts
from forebay.model import schema


def _row(table: str, **values: Any) -> dict[str, Any]:
    names = [c.name for c in schema.TABLES[table].columns if c.name not in schema.NOTES]
    return {**dict.fromkeys(names), **values}


def _step(**values: Any) -> dict[str, Any]:
    return dict(dicts.step(_row("steps", **{"feedback": None, **values})))


def test_an_empty_step_has_chainlits_keys_and_types() -> None:
    step = _step(streaming=0)
    assert set(step) <= set(StepDict.__annotations__)
    assert (step["metadata"], step["input"], step["output"], step["streaming"]) == ({}, "", "", False)
    assert (step["generation"], step["tags"], step["isError"], step["feedback"]) == (None, None, None, None)


@pytest.mark.parametrize(
    ("show", "shown"), [(None, ""), ("false", ""), ("true", "said"), ("json", "said"), ("", "said")]
)
def test_the_input_is_given_back_where_it_is_to_be_shown(show: str | None, shown: str) -> None:
    assert _step(showInput=show, input="said")["input"] == shown


def test_sqlites_truth_becomes_a_bool() -> None:
    step = _step(streaming=1, isError=0, waitForAnswer=1, defaultOpen=0, autoCollapse=None)
    assert [step[key] for key in ("streaming", "isError", "waitForAnswer", "defaultOpen")] == [
        True,
        False,
        True,
        False,
    ]
    assert step["streaming"] is True
    assert step["autoCollapse"] is None


def test_keys_without_a_column_are_given_back_and_hide_none() -> None:
    step = _step(name="n", forebayExtra={"icon": "globe", "name": ["not", "text"]})
    assert (step["icon"], step["name"]) == ("globe", "n")
    assert schema.EXTRA not in step


@pytest.mark.parametrize("stored", ["text", 3, [1], True])
def test_what_another_program_has_stored_there_hides_nothing(stored: object) -> None:
    assert _step(name="n", forebayExtra=stored)["name"] == "n"


def test_an_older_releases_indent_is_given_back_only_where_it_is_set() -> None:
    assert _step(indent=2)["indent"] == 2
    assert "indent" not in _step()


def test_feedback_has_chainlits_keys() -> None:
    feedback = _row("feedbacks", id="f", forId="s", value=0, comment="c", threadId="t")
    assert _step(feedback=feedback)["feedback"] == {"id": "f", "forId": "s", "value": 0, "comment": "c"}


def test_an_empty_element_has_chainlits_keys_and_types() -> None:
    element = dicts.element(_row("elements", autoPlay=1))
    assert set(element) <= set(ElementDict.__annotations__)
    assert (element["props"], element["autoPlay"], element["playerConfig"]) == ({}, True, None)


def test_a_thread_without_steps_has_empty_lists() -> None:
    row = {key: None for key in _row("threads") if key != "updatedAt"}
    thread = dicts.thread({**row, "id": "t", "activity": "2026"})
    assert (thread["steps"], thread["elements"], thread["metadata"]) == ([], [], {})
    assert "activity" not in thread


def test_a_user_of_another_layer_may_lack_a_time_and_metadata() -> None:
    user = dicts.user({"id": "u", "identifier": "ann", "createdAt": None, "metadata": None})
    assert (user.id, user.identifier, user.createdAt, user.metadata) == ("u", "ann", "", {})
