"""The dashboard: Grafana itself is not at hand, so its JSON is looked at, and its queries are parsed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from tests.deploy import files

_DASHBOARD: dict[str, Any] = json.loads(files.DASHBOARD.read_text())
_PANELS = [panel for panel in _DASHBOARD["panels"] if panel["type"] != "row"]
# What Grafana fills in before it asks Prometheus.
_FILLED_IN = {"$__rate_interval": "1m", "$__range": "1h", "$job": ".*", "$instance": ".*"}


def _expressions() -> list[str]:
    found = [target["expr"] for panel in _PANELS for target in panel["targets"]]
    found += [annotation["expr"] for annotation in _DASHBOARD["annotations"]["list"]]
    for variable, value in _FILLED_IN.items():
        found = [expression.replace(variable, value) for expression in found]
    return found


def test_every_expression_parses(tmp_path: Path) -> None:
    rules = [{"record": f"panel:{n}", "expr": text} for n, text in enumerate(_expressions())]
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = files.run("promtool", "check", "rules", path, package="prometheus")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(rules)} rules found" in done.stdout


def test_no_variable_is_left_over() -> None:
    assert [text for text in _expressions() if "$" in text] == []
    names = {variable["name"] for variable in _DASHBOARD["templating"]["list"]}
    assert names == {"datasource", "job", "instance"}


def test_the_data_source_is_chosen_by_a_variable_everywhere() -> None:
    text = files.DASHBOARD.read_text()
    assert text.count('"uid": ') == text.count('"uid": "${datasource}"') + 1  # the dashboard's own
    for panel in _PANELS:
        assert panel["datasource"]["uid"] == "${datasource}"


def test_the_panels_have_room() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in _DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24, panel["title"]
        taken |= cells
    ids = [panel["id"] for panel in _DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)


def test_every_panel_has_a_title_a_unit_and_a_query() -> None:
    for panel in _PANELS:
        assert panel["title"], panel["id"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]) > 0


def test_every_metric_that_a_data_layer_has_is_shown() -> None:
    shown = {
        name.removesuffix("_bucket").removesuffix("_count")
        for name in files.metrics_in(files.DASHBOARD.read_text())
    }
    left_out = {"forebay_unknown_values_total", "forebay_upload_failures_total"}
    suffixes = ("_bucket", "_sum", "_count")
    defined = files.defined_metrics()
    families = {next((n.removesuffix(s) for s in suffixes if n.endswith(s)), n) for n in defined}
    assert families - left_out <= shown


def test_compose_provides_the_data_source_and_the_dashboard() -> None:
    provisioning = files.DEPLOY / "grafana" / "provisioning"
    (source,) = files.document(provisioning / "datasources" / "prometheus.yaml")["datasources"]
    (provider,) = files.document(provisioning / "dashboards" / "forebay.yaml")["providers"]
    services = files.document(files.DEPLOY / "compose.yaml")["services"]
    assert source["type"] == "prometheus"
    assert source["url"].split("/")[-1].split(":")[0] in services
    mounts = dict(mount.split(":")[:2] for mount in services["grafana"]["volumes"])
    assert mounts["./grafana/dashboards"] == provider["options"]["path"]
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{provider['options']['path']}/{files.DASHBOARD.name}"
