"""Reading the pages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from scripts.pages import ROOT, pages

__all__ = ["DOCS", "PAGES", "ROOT", "anchors", "links", "name_of", "prose"]

PAGES = sorted(pages())
DOCS = ROOT / "docs"
_FENCE = re.compile(r"^( *)```.*?^\1```$", re.MULTILINE | re.DOTALL)


def name_of(value: object) -> str:
    """A test's id: a page's path."""
    return str(value.relative_to(ROOT)) if isinstance(value, Path) else str(value)


def prose(page: Path) -> str:
    """A page without its fenced code and its code spans."""
    return re.sub(r"`[^`\n]*`", "", _FENCE.sub("", page.read_text()))


def links(page: Path) -> Iterator[str]:
    """What its links and pictures lead to."""
    yield from re.findall(r"\]\(([^)\s]+)\)", prose(page))


@cache
def anchors(page: Path) -> frozenset[str]:
    """What a link can lead to within a page, as GitHub names its headings."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", page.read_text()), re.MULTILINE)
    found: set[str] = set()
    for heading in headings:
        anchor = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        found.add(anchor if anchor not in found else f"{anchor}-1")
    return frozenset(found)
