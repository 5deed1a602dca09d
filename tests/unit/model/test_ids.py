"""What PostgreSQL takes for a UUID, and how it is written then."""

from __future__ import annotations

import uuid
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.errors import InvalidId
from forebay.model import changes
from forebay.model.ids import Ids, as_uuid

_KEY = "3b7b59a8-007a-4cb6-be21-7b675fd42c1d"


@given(st.uuids(), st.sampled_from([str, str.upper, "{{{}}}".format, "urn:uuid:{}".format]))
def test_a_uuid_in_any_spelling_is_its_canonical_text(key: uuid.UUID, spelled: Any) -> None:
    assert as_uuid(spelled(str(key))) == as_uuid(key) == as_uuid(key.hex) == str(key)


@pytest.mark.parametrize(
    "value",
    ["", None, 7, [], {}, b"", "x" * 36, "\uff13" * 32, f"{_KEY}0", f"{_KEY} ", f"{_KEY}\n", f"{{{_KEY}", f"{_KEY}}}",
     f"{_KEY}-", "3b-7b59a8007a4cb6be217b675fd42c1d", f"{{urn:uuid:{_KEY}}}", "3b7b59a8--007a-4cb6-be21-7b675fd42c1d"],
    ids=ascii,
)  # fmt: skip
def test_what_is_none_is_none(value: Any) -> None:
    assert as_uuid(value) is None


@given(st.text(alphabet="0123456789abcdefABCDEF-{}", min_size=30, max_size=40))
def test_what_is_taken_is_a_uuid(text: str) -> None:
    found = as_uuid(text)
    assert found is None or found == str(uuid.UUID(found)) == str(uuid.UUID(text))


def test_a_change_enters_in_the_databases_spelling_and_can_be_journaled() -> None:
    values = {"id": _KEY.upper(), "threadId": f"{{{_KEY}}}", "parentId": "nothing", "output": "said"}
    change = Ids(uuids=True).enter(changes.step(values))
    assert (change.key, change.thread_id) == (_KEY, _KEY)
    assert orjson.loads(changes.encode([change]))[0][3]["forebayExtra"] == {"parentId": "nothing"}
    assert "parentId" not in change.row


@pytest.mark.parametrize("name", ["id", "threadId"])
def test_a_row_that_no_table_can_hold_is_refused(name: str) -> None:
    with pytest.raises(InvalidId, match=f"steps: {name} is no UUID"):
        Ids(uuids=True).enter(changes.step({"id": _KEY, "threadId": _KEY, name: "x"}))


def test_a_thread_enters_under_its_own_id() -> None:
    change = Ids(uuids=True).enter(changes.thread(_KEY.upper(), user_id=_KEY.upper()))
    assert (change.key, change.thread_id, change.row["userId"]) == (_KEY, _KEY, _KEY)
    with pytest.raises(ValueError, match="userId"):
        Ids(uuids=True).enter(changes.thread(_KEY, user_id="nobody"))


def test_sqlite_takes_any_text_as_it_is() -> None:
    ids = Ids(uuids=False)
    change = ids.enter(changes.step({"id": "X y", "threadId": _KEY.upper(), "parentId": "p"}))
    assert (change.key, change.thread_id, change.row["parentId"]) == ("X y", _KEY.upper(), "p")
    assert (ids.spell("X y"), ids.spell(""), ids.spell(uuid.UUID(_KEY))) == ("X y", None, _KEY)
