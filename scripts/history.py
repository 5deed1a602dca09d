"""The benchmark of each release, a file a release: `python -m scripts.history REPORT` adds one.

REPORT is what `forebay bench --full` has saved, or printed with `--json`; without one it is the saved result that the
pages show. The release is the one that was measured.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from packaging.version import Version

from forebay.bench.plan import CHAINLIT, FOREBAY, FOREBAY_READS, SQLALCHEMY
from forebay.bench.report import NoReport, Report
from scripts.markdown import table

_RESULTS = Path(__file__).parents[1] / "loadtests" / "results"
LATEST = _RESULTS / "bench.json"
RELEASES = _RESULTS / "releases"
_OPEN_A_CHAT = "get_thread, 50 steps"
_HEADER = (
    "release",
    "durable writes/s",
    f"against `{SQLALCHEMY}`",
    f"against `{CHAINLIT}`",
    "CPU a write",
    "a thread of 50 steps",
    "measured with",
)


def add(report: Path = LATEST, releases: Path = RELEASES) -> Path:
    """Keep a report as its release's; where.

    Raises NoReport for one without a row's figures, and for a release that has its row.
    """
    found = Report.load(report)
    version = str(found.about.get("forebay", ""))
    if found.scale.get("name") != "full":
        raise NoReport(
            f"{report} is of another scale than the rows of the history; take `forebay bench --full`"
        )
    _row(version, found)
    path = releases / f"{version}.json"
    if path.exists():
        raise NoReport(f"{version} has its row already, from {path}")
    found.save(path)
    return path


def markdown(latest: Path = LATEST, releases: Path = RELEASES) -> str:
    """The table: what is not released yet, then each release, the newest first."""
    return table(_HEADER, [_row(name, report) for name, report in _reports(latest, releases)])


def _reports(latest: Path, releases: Path) -> Iterator[tuple[str, Report]]:
    saved = {path.stem: Report.load(path) for path in releases.glob("*.json")}
    current = Report.load(latest)
    version = current.about["forebay"]
    if version not in saved:
        yield f"{version}, unreleased", current
    yield from ((name, saved[name]) for name in sorted(saved, key=Version, reverse=True))


def _row(name: str, report: Report) -> tuple[str, ...]:
    mine, opened = report.write(FOREBAY, "writes_per_second"), report.read(FOREBAY_READS, _OPEN_A_CHAT)
    cpu = report.write(FOREBAY, "cpu_us_per_write")
    peers = [report.write(peer, "writes_per_second") for peer in (SQLALCHEMY, CHAINLIT)]
    if not (name and mine and opened and cpu and all(peers)):
        raise NoReport(
            f"the report of {name or 'no release'} lacks a figure; take `forebay bench --full`, whole"
        )
    ratios = (f"{mine / peer:.1f} ×" for peer in peers if peer)  # noqa: RUF001 - that is the sign
    return (name, f"{mine:,.0f}", *ratios, f"{cpu:.1f} µs", f"{opened:.2f} ms", _surroundings(report.about))


def _surroundings(about: dict[str, str]) -> str:
    named = (("Chainlit", "chainlit"), ("PostgreSQL", "postgresql"), ("Python", "python"))
    return ", ".join(
        [*(f"{name} {about.get(key, '?')}" for name, key in named), f"{about.get('cores', '?')} cores"]
    )


def main() -> None:
    """Add a row, and fill the pages."""
    from scripts import pages

    try:
        path = add(*map(Path, sys.argv[1:2]))
    except NoReport as refused:
        sys.exit(str(refused))
    sys.stdout.write(f"{path}\n")
    pages.main()


if __name__ == "__main__":
    main()
