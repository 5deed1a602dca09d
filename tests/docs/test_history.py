"""The history of the benchmark: a row a release, from its report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scripts import history

from forebay.bench.report import NoReport


def _report(folder: Path, version: str, **changed: Any) -> Path:
    """As measured, but of this release."""
    report = json.loads(history.LATEST.read_text())
    report["about"]["forebay"] = version
    path = folder / f"measured {version}.json"
    path.write_text(json.dumps(report | changed))
    return path


def _releases_of(text: str) -> list[str]:
    return [line.split(" | ")[0].removeprefix("| ") for line in text.splitlines()[2:]]


def test_a_release_gets_its_row_and_the_newest_is_first(tmp_path: Path) -> None:
    for version in ("0.9.0", "0.10.0", "0.2.0"):
        path = history.add(_report(tmp_path, version), tmp_path / "releases")
        assert path.name == f"{version}.json"
    latest = _report(tmp_path, "0.11.0")
    found = history.markdown(latest, tmp_path / "releases")
    assert _releases_of(found) == ["0.11.0, unreleased", "0.10.0", "0.9.0", "0.2.0"]
    history.add(latest, tmp_path / "releases")
    assert _releases_of(history.markdown(latest, tmp_path / "releases"))[0] == "0.11.0"


def test_a_row_is_what_was_measured(tmp_path: Path) -> None:
    writes = {
        "forebay, journal": [
            {"writes_per_second": value, "cpu_us_per_write": 30.0} for value in (1.0, 3000.0, 9000.0)
        ],
        "SQLAlchemyDataLayer": [{"writes_per_second": 100.0}],
        "ChainlitDataLayer": [{"writes_per_second": 400.0}],
    }
    reads = {"forebay": {"get_thread, 50 steps": [{"p50_ms": 0.5}]}}
    latest = _report(tmp_path, "1.0.0", writes=writes, reads=reads)
    row = history.markdown(latest, tmp_path / "none").splitlines()[2]
    assert row.startswith("| 1.0.0, unreleased | 3,000 | 30.0 × | 7.5 × | 30.0 µs | 0.50 ms | Chainlit ")  # noqa: RUF001 - that is the sign


def test_a_report_that_makes_no_row_is_refused(tmp_path: Path) -> None:
    releases = tmp_path / "releases"
    with pytest.raises(NoReport, match="another scale"):
        history.add(_report(tmp_path, "1.0.0", scale={"name": "quick"}), releases)
    with pytest.raises(NoReport, match="lacks a figure"):
        history.add(_report(tmp_path, "1.0.0", reads={}), releases)
    with pytest.raises(NoReport, match="no result"):
        history.add(tmp_path / "nothing.json", releases)
    assert not releases.exists()
    history.add(_report(tmp_path, "1.0.0"), releases)
    with pytest.raises(NoReport, match="already"):
        history.add(_report(tmp_path, "1.0.0"), releases)
