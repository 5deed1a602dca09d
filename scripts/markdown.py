"""Writing Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, right: int = 0) -> str:
    """A table; its last `right` columns hold numbers."""
    rules = ["---"] * (len(header) - right) + ["---:"] * right
    return "\n".join(_line(cells) for cells in (header, rules, *rows))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def code(text: str) -> str:
    """Text in a code span; nothing for nothing."""
    return f"`{text}`" if text else ""


def paragraph(text: str) -> str:
    """The first paragraph of a docstring, in one line."""
    return " ".join(text.strip().split("\n\n")[0].split())
