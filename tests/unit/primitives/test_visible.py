"""Text that others wrote, made safe to look at."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.primitives.visible import visible, visible_lines


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Grüße, 世界 👋 [/x]", "Grüße, 世界 👋 [/x]"),
        ("\x1b]0;OWNED\x07\x1b[2J", "\\x1b]0;OWNED\\x07\\x1b[2J"),
        ("one\ntwo\r\tthree", "one\\ntwo\\r\\tthree"),
        ("\u202egpj.exe", "\\u202egpj.exe"),
        ("\u2066a\u2069\u200b\ufeff", "\\u2066a\\u2069\\u200b\\ufeff"),
        ("\x9b31m\x7f", "\\x9b31m\\x7f"),
        ("\ud800 \u2028\u2029 \U000e0041", "\\ud800 \\u2028\\u2029 \\U000e0041"),
    ],
)
def test_what_can_not_be_seen_is_escaped(text: str, shown: str) -> None:
    assert visible(text) == shown


@given(st.text(st.characters(exclude_categories=())))
def test_nothing_unseen_is_left(text: str) -> None:
    shown = visible(text)
    assert all(unicodedata.category(char)[0] not in "C" for char in shown)
    assert len(shown.splitlines()) <= 1
    assert visible(shown) == shown


def test_the_programs_own_line_breaks_stay() -> None:
    assert visible_lines("one\ntw\x1bo") == "one\ntw\\x1bo"
