"""How many examples a property tries: fewer than Hypothesis would where each is slow, and more in the long profile."""

from __future__ import annotations

from hypothesis import settings

_USUAL = 100


def examples(few: int) -> int:
    """So many, and as many times more as the profile has more than usual."""
    return few * max(1, settings().max_examples // _USUAL)
