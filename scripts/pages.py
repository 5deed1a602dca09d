"""Fills what is generated in the pages: `python -m scripts.pages`.

A page says where: between `<!-- generated: NAME -->` and `<!-- end of NAME -->` stands what the function of that
name in `GENERATORS` returns. A name may have an argument behind it, which the function gets.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from scripts import figures, history, reference

ROOT = Path(__file__).parents[1]
_BLOCK = re.compile(r"(<!-- generated: (\w+)(?: (\S+))? -->\n).*?(<!-- end of \2 -->)", re.DOTALL)

GENERATORS: dict[str, Callable[[str], str]] = {
    "api": lambda _: reference.api(),
    "bench": figures.bench,
    "costs": lambda _: figures.costs(),
    "cli": lambda _: reference.cli(),
    "elements": lambda _: figures.elements(),
    "errors": lambda _: reference.errors(),
    "growth": figures.growth,
    "history": lambda _: history.markdown(),
    "layout": lambda _: reference.layout(),
    "load": lambda _: figures.load(),
    "metrics": lambda _: reference.metrics(),
    "people": lambda _: figures.people(),
    "ratios": figures.ratios,
    "settings": lambda _: reference.settings(),
    "tables": lambda _: reference.tables(),
}


def pages() -> Iterator[Path]:
    """Every page of the documentation, and the files beside it that GitHub shows."""
    yield from sorted(ROOT.glob("*.md"))
    for folder in ("docs", "deploy", "examples"):
        yield from sorted((ROOT / folder).rglob("*.md"))


def filled(text: str) -> str:
    """A page's text with all that is generated in it anew."""

    def fill(found: re.Match[str]) -> str:
        begin, name, argument, end = found.groups()
        return f"{begin}\n{GENERATORS[name](argument or '')}\n\n{end}"

    return _BLOCK.sub(fill, text)


def main() -> None:
    """Write those pages that are not up to date, and name them."""
    for page in pages():
        text = page.read_text()
        if (anew := filled(text)) != text:
            page.write_text(anew)
            sys.stdout.write(f"{page.relative_to(ROOT)}\n")


if __name__ == "__main__":
    main()
