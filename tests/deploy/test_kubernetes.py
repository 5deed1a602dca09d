"""The manifests: against Kubernetes' schemas, and for what no schema knows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes_validate import utils as schemas

from forebay.settings import Settings
from tests.deploy import files

_KUBERNETES = files.DEPLOY / "kubernetes"
_BASE = _KUBERNETES / "base"
_FILES = sorted(
    path
    for path in _KUBERNETES.rglob("*.yaml")
    if path.name != "kustomization.yaml" and path.parent.name != "with-drain"
)
_KUSTOMIZATIONS = sorted(path.parent for path in _KUBERNETES.rglob("kustomization.yaml"))
# From the first with sidecars that are on by default to the newest that there are schemas of.
_VERSIONS = [
    version
    for version in dict.fromkeys(schemas.all_versions())
    if tuple(map(int, version.split(".")[:2])) >= (1, 29)
]
_KUBECTL = "kubernetes-client"  # 1.27 or newer, as from Debian 13 on
# What PodMonitor has, of what is used here: its schema is the operator's, and comes with no package.
_POD_MONITOR = {"jobLabel", "selector", "podMetricsEndpoints"}
_ENDPOINT = {"port", "path", "interval", "scrapeTimeout"}


def _resources(paths: list[Path]) -> list[dict[str, Any]]:
    return [resource for path in paths for resource in files.documents(path)]


def _of_kind(kind: str) -> list[dict[str, Any]]:
    return [resource for resource in _resources(_FILES) if resource["kind"] == kind]


def _stateful_set(*, with_drain: bool = False) -> dict[str, Any]:
    found: dict[str, Any] = files.document(_BASE / "statefulset.yaml")
    if with_drain:
        (addition,) = files.document(_KUBERNETES / "with-drain" / "drain.yaml")
        assert (addition["op"], addition["path"]) == ("add", "/spec/template/spec/initContainers/-")
        found["spec"]["template"]["spec"]["initContainers"].append(addition["value"])
    return found


def _workloads() -> list[dict[str, Any]]:
    return [_stateful_set(with_drain=True), *_of_kind("Job")]


def _pods() -> list[dict[str, Any]]:
    return [workload["spec"]["template"]["spec"] for workload in _workloads()]


def _containers() -> list[dict[str, Any]]:
    return [
        container for pod in _pods() for container in (*pod.get("initContainers", []), *pod["containers"])
    ]


def _chat() -> dict[str, Any]:
    (chat,) = _stateful_set()["spec"]["template"]["spec"]["containers"]
    assert isinstance(chat, dict)
    return chat


def _settings() -> dict[str, str]:
    (generator,) = files.document(_BASE / "kustomization.yaml")["configMapGenerator"]
    return dict(literal.split("=", 1) for literal in generator["literals"])


def _validate(resource: dict[str, Any], version: str) -> None:
    if resource["apiVersion"].startswith("monitoring.coreos.com/"):
        return
    try:
        schemas.validate(resource, version, strict=True)
    except schemas.ValidationError as error:
        pytest.fail(f"{resource['kind']} {list(error.path)}: {error.message}")


@pytest.mark.parametrize("version", _VERSIONS)
@pytest.mark.parametrize("path", _FILES, ids=files.name_of)
def test_a_manifest_is_valid(path: Path, version: str) -> None:
    for resource in files.documents(path):
        _validate(resource, version)


@pytest.mark.parametrize("version", _VERSIONS)
def test_the_drain_is_valid(version: str) -> None:
    _validate(_stateful_set(with_drain=True), version)


def test_a_wrong_manifest_is_noticed() -> None:
    wrong = _stateful_set()
    wrong["spec"]["template"]["spec"]["terminationGrace"] = 60
    with pytest.raises(schemas.ValidationError):
        schemas.validate(wrong, _VERSIONS[-1], strict=True)


@pytest.mark.parametrize("folder", _KUSTOMIZATIONS, ids=files.name_of)
def test_kustomize_renders_it(folder: Path) -> None:
    client = json.loads(files.run("kubectl", "version", "--client", "-o", "json", package=_KUBECTL).stdout)
    if client.get("kustomizeVersion", "v0") < "v5":
        pytest.skip(f"kubectl is too old: apt-get install {_KUBECTL}")
    done = files.run("kubectl", "kustomize", folder, package=_KUBECTL)
    assert (done.returncode, done.stderr) == (0, "")
    rendered = list(yaml.safe_load_all(done.stdout))
    for resource in rendered:
        _validate(resource, _VERSIONS[-1])
        assert resource["metadata"].get("namespace") == "forebay" or resource["kind"] == "Namespace"
    images = {line.split("image: ")[1] for line in done.stdout.splitlines() if "image: " in line}
    assert images == {"registry.example.com/forebay-chat:0.1.0"}


@pytest.mark.parametrize("folder", _KUSTOMIZATIONS, ids=files.name_of)
def test_a_kustomization_names_files_that_are_there(folder: Path) -> None:
    kustomization = files.document(folder / "kustomization.yaml")
    for name in (*kustomization["resources"], *(patch["path"] for patch in kustomization.get("patches", []))):
        assert (folder / name).exists(), name
    if folder == _BASE:
        beside = {path.name for path in folder.iterdir()} - {"kustomization.yaml"}
        assert beside == set(kustomization["resources"])


def test_every_selector_finds_the_chat_servers() -> None:
    labels = _stateful_set()["spec"]["template"]["metadata"]["labels"]
    selectors = [service["spec"]["selector"] for service in _of_kind("Service")]
    for resource in (_stateful_set(), *_of_kind("PodDisruptionBudget"), *_of_kind("PodMonitor")):
        selectors.append(resource["spec"]["selector"]["matchLabels"])
    assert selectors == [labels] * len(selectors)
    for job in _of_kind("Job"):  # or people would be sent to a migration
        assert job["spec"]["template"]["metadata"]["labels"] != labels


def test_names_that_lead_elsewhere_lead_somewhere() -> None:
    services = {service["metadata"]["name"]: service for service in _of_kind("Service")}
    stateful_set = _stateful_set()
    assert services[stateful_set["spec"]["serviceName"]]["spec"]["clusterIP"] == "None"
    (ingress,) = _of_kind("Ingress")
    (rule,) = ingress["spec"]["rules"]
    backend = rule["http"]["paths"][0]["backend"]["service"]
    ports = {port["name"] for port in services[backend["name"]]["spec"]["ports"]}
    assert backend["port"]["name"] in ports
    claim = f"{stateful_set['spec']['volumeClaimTemplates'][0]['metadata']['name']}-{stateful_set['metadata']['name']}-"
    (drain,) = [job for job in _of_kind("Job") if job["metadata"]["name"] == "forebay-drain-claim"]
    (volume,) = drain["spec"]["template"]["spec"]["volumes"]
    assert volume["persistentVolumeClaim"]["claimName"].startswith(claim)


def test_every_secret_that_is_asked_for_is_in_the_example() -> None:
    known = {
        (secret["metadata"]["name"], key)
        for secret in files.documents(_KUBERNETES / "secret.example.yaml")
        for key in secret["stringData"]
    }
    asked = {
        (variable["valueFrom"]["secretKeyRef"]["name"], variable["valueFrom"]["secretKeyRef"]["key"])
        for container in _containers()
        for variable in container.get("env", [])
        if "valueFrom" in variable
    }
    assert asked == known


def test_there_is_time_to_drain() -> None:
    pod = _stateful_set()["spec"]["template"]["spec"]
    before = int(_chat()["lifecycle"]["preStop"]["exec"]["command"][1])
    close_timeout = float(_settings()["FOREBAY_CLOSE_TIMEOUT"])
    # The chat server's close, and then that of a drain beside it.
    assert pod["terminationGracePeriodSeconds"] > before + 2 * close_timeout


def test_the_drain_runs_beside_the_chat_server() -> None:
    (drain,) = _stateful_set(with_drain=True)["spec"]["template"]["spec"]["initContainers"]
    assert drain["restartPolicy"] == "Always"  # or the pod would wait for its end before it starts
    folder = _chat()["volumeMounts"][0]["mountPath"]
    assert drain["command"] == ["forebay", "drain", folder, "--watch"]
    assert drain["volumeMounts"] == _chat()["volumeMounts"]


def test_there_is_room_for_the_journal() -> None:
    (claim,) = _stateful_set()["spec"]["volumeClaimTemplates"]
    room = claim["spec"]["resources"]["requests"]["storage"]
    assert room.endswith("Gi")
    assert int(room[:-2]) * 2**30 > 2 * int(_settings()["FOREBAY_JOURNAL_MAX_BYTES"])
    assert _stateful_set()["spec"]["persistentVolumeClaimRetentionPolicy"] == {
        "whenDeleted": "Retain",
        "whenScaled": "Retain",
    }


def test_an_outage_of_the_database_neither_restarts_nor_closes_the_chat() -> None:
    chat = _chat()
    assert chat["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "metrics"}
    assert chat["readinessProbe"]["httpGet"] == {"path": "/health", "port": "http"}
    assert chat["startupProbe"]["httpGet"] == {"path": "/readyz", "port": "metrics"}


def test_the_metrics_are_where_the_probes_look() -> None:
    ports = {port["name"]: port["containerPort"] for port in _chat()["ports"]}
    assert _settings()["FOREBAY_METRICS_ADDRESS"] == f"0.0.0.0:{ports['metrics']}"
    (monitor,) = _of_kind("PodMonitor")
    assert set(monitor["spec"]) == _POD_MONITOR
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert set(endpoint) == _ENDPOINT
    assert endpoint["port"] in ports
    # The alerts go by this job.
    assert _stateful_set()["spec"]["template"]["metadata"]["labels"][monitor["spec"]["jobLabel"]] == "forebay"


def test_the_drains_metrics_are_scraped_too() -> None:
    patches = files.document(_KUBERNETES / "with-drain" / "kustomization.yaml")["patches"]
    (path,) = [patch["path"] for patch in patches if patch["target"]["kind"] == "PodMonitor"]
    (addition,) = files.document(_KUBERNETES / "with-drain" / path)
    assert (addition["op"], addition["path"]) == ("add", "/spec/podMetricsEndpoints/-")
    assert set(addition["value"]) == _ENDPOINT
    (drain,) = [
        container
        for container in _stateful_set(with_drain=True)["spec"]["template"]["spec"]["initContainers"]
        if container["name"] == "drain"
    ]
    assert addition["value"]["port"] in {port["name"] for port in drain["ports"]}


def test_the_settings_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    (external,) = files.document(_KUBERNETES / "with-drain" / "kustomization.yaml")["configMapGenerator"]
    known = {f"FOREBAY_{name.upper()}" for name in Settings.model_fields} | {"FOREBAY_METRICS_ADDRESS"}
    for literal in (*(f"{name}={value}" for name, value in _settings().items()), *external["literals"]):
        name, value = literal.split("=", 1)
        assert name in known
        monkeypatch.setenv(name, value)
    assert Settings().writer == "external"


def test_no_pod_may_more_than_it_must() -> None:
    for pod in _pods():
        assert pod["automountServiceAccountToken"] is False
        # A Service called forebay would set FOREBAY_PORT and others of the settings' prefix.
        assert pod["enableServiceLinks"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 10001
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in _containers():
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["limits"]["memory"]
        assert set(container["resources"]["requests"]) == {"cpu", "memory"}


def test_people_stay_with_their_pod() -> None:
    (ingress,) = _of_kind("Ingress")
    prefix = "nginx.ingress.kubernetes.io/"
    annotations = {
        name.removeprefix(prefix): value for name, value in ingress["metadata"]["annotations"].items()
    }
    assert annotations["affinity"] == "cookie"
    assert annotations["affinity-mode"] == "persistent"
    assert int(annotations["proxy-read-timeout"]) >= 3600


def test_the_rules_become_a_resource_as_the_readme_says(tmp_path: Path) -> None:
    readme = (files.DEPLOY / "README.md").read_text()
    start = readme.index("    { printf")
    command = readme[start : readme.index("| kubectl", start)]
    done = files.run("sh", "-c", f"cd '{files.ROOT}' && {command}", package="dash")
    assert (done.returncode, done.stderr) == (0, "")
    resource = yaml.safe_load(done.stdout)
    assert resource["kind"] == "PrometheusRule"
    assert json.dumps(resource["spec"]["groups"]) == json.dumps(files.document(files.RULES)["groups"])
