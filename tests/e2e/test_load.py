"""The load tests themselves, small: people at the real server, and the audit of what they saw."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner
from loadtests import load, people


def test_people_chat_and_nothing_is_lost() -> None:
    options = [
        "--people",
        "3",
        "--turns",
        "2",
        "--rounds",
        "1",
        "--layer",
        "none",
        "--layer",
        "forebay",
        "--json",
    ]
    done = CliRunner().invoke(people.main, options)
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["runs"]["forebay"][0]["faults"] == {}
    assert report["medians"]["none"]["turns_per_second"] > 0
    assert "| forebay, journal |" in people.markdown(report)


def test_locusts_people_do_too(tmp_path: Path) -> None:
    options = ["--users", "5", "--duration", "12", "--out", str(tmp_path), "--json"]
    done = CliRunner().invoke(load.main, options)
    assert done.exit_code == 0, done.output
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["faults"] == {}
    assert summary["turns_audited"] >= 5
    assert summary["rows"]["turn"]["failed"] == 0
    made = {path.name for path in (tmp_path / "forebay-5").iterdir()}
    assert {
        "locust.html",
        "locust_stats.csv",
        "metrics.txt",
        "seen.jsonl",
        "server.log",
        "summary.json",
    } <= made
    assert "forebay_rows_written_total" in (tmp_path / "forebay-5" / "metrics.txt").read_text()
