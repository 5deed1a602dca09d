"""How many examples a property tries: fewer than Hypothesis would where each is slow, and more in the long profile."""

from __future__ import annotations

from hypothesis import settings

_USUAL = 100


def examples(few: int, long: int | None = None) -> int:
    """So many; in a profile that has more than usual `long`, by default as many times more as that has."""
    times = settings().max_examples // _USUAL
    if times <= 1:
        return few
    return long if long is not None else few * times
