"""Whatever a file is called, its key is one that every storage and both databases take."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.attachments.keys import object_key

_ANY_TEXT = st.text(st.characters(exclude_categories=[]), max_size=3000)


@given(_ANY_TEXT, _ANY_TEXT, _ANY_TEXT)
def test_a_key_is_bounded_and_clean(user_id: str, element_id: str, name: str) -> None:
    key = object_key(user_id, element_id, name)
    assert len(key.encode()) <= 802
    assert not any(step in (".", "..") for step in key.split("/"))
    assert key.isprintable() or not any(ord(letter) < 32 for letter in key)
    assert object_key(user_id, element_id, name) == key


def test_an_ordinary_name_stays_as_it_is() -> None:
    assert object_key("u", "e", "Bericht für März.pdf") == "u/e/Bericht für März.pdf"
    assert object_key("u", "e", "") == "u/e"


def test_names_that_differ_at_their_end_have_keys_that_differ() -> None:
    one, other = (object_key("u", "e", "n" * 4000 + end) for end in ("1.pdf", "2.pdf"))
    assert one != other
    assert one.endswith(".pdf")


@pytest.mark.parametrize("name", ["../../etc/passwd", "..", "a/../b", "./x"])
def test_no_name_steps_out(name: str) -> None:
    assert ".." not in object_key("u", "e", name).split("/")
    assert object_key("u", "e", name).startswith("u/e/")
