"""The load test itself, small: Locust's people at the real server, and the audit of what they saw."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from loadtests import load


def test_locusts_people_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAYER", "none forebay")  # as `make load` says it
    monkeypatch.setenv("USERS", "5")
    done = CliRunner().invoke(
        load.main, ["--duration", "12", "--think", "0.5", "--output", str(tmp_path), "--json"]
    )
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout.splitlines()[-1])
    none, forebay = report["runs"]
    assert none["audit"] is None
    assert forebay["audit"]["passed"]
    counts = forebay["audit"]["counts"]
    assert counts["answer"]["expected"] == forebay["turns"] >= 5
    assert counts["tool output"]["expected"] == 2 * forebay["turns"]
    assert {name for name, row in forebay["rows"].items() if row["failures"]} == set()
    assert {"connect", "first_token", "turn"} <= forebay["rows"].keys()
    made = {path.name for path in (tmp_path / "forebay-5").iterdir()}
    assert {"locust.html", "locust_stats.csv", "metrics.txt", "seen.json", "app.log", "summary.json"} <= made
    assert "forebay_rows_written_total" in (tmp_path / "forebay-5" / "metrics.txt").read_text()
    assert "| 5 | forebay, journal |" in load.markdown(report)
