"""The alerts, and what Prometheus is configured with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.deploy import files

_PROMETHEUS = files.DEPLOY / "prometheus"
_TESTS = _PROMETHEUS / "tests" / "rules_test.yml"
_ALERTS = {rule["alert"]: rule for rule in files.alerts()}


def _promtool(*words: object) -> None:
    done = files.run("promtool", *map(str, words), package="prometheus")
    assert done.returncode == 0, done.stdout + done.stderr


def _used_metrics() -> Iterator[Any]:
    texts = [files.DASHBOARD.read_text(), *(rule["expr"] for rule in files.alerts())]
    for name in sorted(files.metrics_in("\n".join(texts))):
        yield pytest.param(name)


def test_the_rules_are_valid() -> None:
    _promtool("check", "rules", files.RULES)


def test_the_configuration_is_valid() -> None:
    _promtool("check", "config", _PROMETHEUS / "prometheus.yml")


def test_the_alerts_fire_when_they_should() -> None:
    _promtool("test", "rules", _TESTS)


@pytest.mark.parametrize("alert", sorted(_ALERTS))
def test_an_alert_is_seen_to_fire_and_to_be_silent(alert: str) -> None:
    checks = [
        check
        for test in files.document(_TESTS)["tests"]
        for check in test["alert_rule_test"]
        if check["alertname"] == alert
    ]
    assert {bool(check.get("exp_alerts")) for check in checks} == {True, False}


@pytest.mark.parametrize("name", _used_metrics())
def test_a_metric_that_is_asked_for_exists(name: str) -> None:
    assert name in files.defined_metrics()


@pytest.mark.parametrize("rule", _ALERTS.values(), ids=_ALERTS)
def test_an_alert_says_what_it_is(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert set(rule["annotations"]) == {"summary", "description", "runbook"}


def test_the_alerts_and_the_dashboard_go_by_the_job_that_is_scraped() -> None:
    jobs = {job["job_name"] for job in files.document(_PROMETHEUS / "prometheus.yml")["scrape_configs"]}
    assert jobs == {"forebay"}
    assert 'job="forebay"' in _ALERTS["ForebayTargetDown"]["expr"]


def test_there_is_an_alert_for_every_way_to_lose_a_write() -> None:
    used = files.metrics_in(json.dumps(list(_ALERTS.values())))
    writes = {name for name in files.defined_metrics() if "searches" not in name}
    lost = {name for name in writes if "dropped" in name or "refused" in name or "dead" in name}
    assert lost
    # How many letters lie there says what is left to do; what was refused is counted as it happens.
    assert lost - {"forebay_dead_letters", "forebay_dead_letters_bytes"} <= used
