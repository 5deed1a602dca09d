"""Puts the tables of the saved results into the README, between the comments that name them."""

from __future__ import annotations

import json
import re
from pathlib import Path

from forebay.bench import tables
from forebay.bench.report import Report
from loadtests import load, people

ROOT = Path(__file__).parents[1]
_README = ROOT / "README.md"
_BENCH = re.compile(
    r"(<!-- forebay bench --load (\S+) --markdown -->\n).*?(<!-- end of the tables -->)", re.DOTALL
)

_OTHERS = re.compile(r"(<!-- loadtests.(people|load) -->\n).*?(<!-- end of the people -->)", re.DOTALL)


def filled(readme: str) -> str:
    """The README's text with the tables of the results that it names."""

    def fill(found: re.Match[str]) -> str:
        begin, path, end = found.groups()
        return f"{begin}\n{tables.markdown(Report.load(ROOT / path))}\n\n{end}"

    def fill_people(found: re.Match[str]) -> str:
        begin, name, end = found.groups()
        measured = {"people": people, "load": load}[name]
        return f"{begin}\n{measured.markdown(json.loads(measured.RESULTS.read_text()))}\n\n{end}"

    return _OTHERS.sub(fill_people, _BENCH.sub(fill, readme))


if __name__ == "__main__":
    _README.write_text(filled(_README.read_text()))
