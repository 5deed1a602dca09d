"""The manifests: against Kubernetes' schemas, and for what no schema knows."""

from __future__ import annotations

import ipaddress
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes_validate import utils as schemas

from forebay.settings import Settings
from tests.deploy import files, restricted

_KUBERNETES = files.DEPLOY / "kubernetes"
_BASE = _KUBERNETES / "base"
_PATCHES = {"with-bucket", "with-drain"}
_FILES = sorted(
    path
    for path in _KUBERNETES.rglob("*.yaml")
    if path.name != "kustomization.yaml" and path.parent.name not in _PATCHES
)
_KUSTOMIZATIONS = sorted(path.parent for path in _KUBERNETES.rglob("kustomization.yaml"))
# From the first with sidecars that are on by default to the newest that there are schemas of.
_VERSIONS = [
    version
    for version in dict.fromkeys(schemas.all_versions())
    if tuple(map(int, version.split(".")[:2])) >= (1, 29)
]
_DEAD_LETTERS = 256 * 2**20  # room for them
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


def _bytes(quantity: str) -> int:
    """A quantity as Kubernetes writes it."""
    return int(quantity[:-2]) * {"Mi": 2**20, "Gi": 2**30}[quantity[-2:]]


def _rendered(folder: Path) -> list[dict[str, Any]]:
    """What kustomize makes of a folder."""
    client = json.loads(files.run("kubectl", "version", "--client", "-o", "json", package=_KUBECTL).stdout)
    if client.get("kustomizeVersion", "v0") < "v5":
        pytest.skip(f"kubectl is too old: apt-get install {_KUBECTL}")
    done = files.run("kubectl", "kustomize", folder, package=_KUBECTL)
    assert (done.returncode, done.stderr) == (0, "")
    return list(yaml.safe_load_all(done.stdout))


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
    rendered = _rendered(folder)
    for resource in rendered:
        _validate(resource, _VERSIONS[-1])
        assert resource["metadata"].get("namespace") == "forebay" or resource["kind"] == "Namespace"
    images = set(re.findall(r"image: (\S+)", yaml.safe_dump_all(rendered)))
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
    # Whole Secrets, in the one patch that takes any.
    (patched,) = files.documents(_KUBERNETES / "with-bucket" / "bucket.yaml")
    (chat,) = patched["spec"]["template"]["spec"]["containers"]
    whole = {source["secretRef"]["name"] for source in chat["envFrom"] if "secretRef" in source}
    asked = {
        (variable["valueFrom"]["secretKeyRef"]["name"], variable["valueFrom"]["secretKeyRef"]["key"])
        for container in _containers()
        for variable in container.get("env", [])
        if "valueFrom" in variable
    }
    assert asked == {(name, key) for name, key in known if name not in whole}
    assert whole <= {name for name, _ in known}


def test_the_examples_secrets_open_nothing() -> None:
    for secret in files.documents(_KUBERNETES / "secret.example.yaml"):
        assert set(secret["stringData"].values()) == {""}


def test_there_is_time_to_drain() -> None:
    pod = _stateful_set()["spec"]["template"]["spec"]
    before = int(_chat()["lifecycle"]["preStop"]["exec"]["command"][1])
    close_timeout = float(_settings()["FOREBAY_CLOSE_TIMEOUT"])
    # The chat server's close, and then that of a drain beside it.
    assert pod["terminationGracePeriodSeconds"] > before + 2 * close_timeout


def test_the_drain_runs_beside_the_chat_server() -> None:
    drain = _stateful_set(with_drain=True)["spec"]["template"]["spec"]["initContainers"][-1]
    assert drain["restartPolicy"] == "Always"  # or the pod would wait for its end before it starts
    (journals,) = [mount for mount in _chat()["volumeMounts"] if mount["name"] == "journals"]
    assert drain["command"] == ["forebay", "drain", journals["mountPath"], "--watch"]
    assert drain["volumeMounts"] == [journals]


def test_there_is_room_for_the_journal() -> None:
    (claim,) = _stateful_set()["spec"]["volumeClaimTemplates"]
    needed = files.journal_volume(_settings())
    assert _bytes(claim["spec"]["resources"]["requests"]["storage"]) > needed + _DEAD_LETTERS
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
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        requests, limits = container["resources"]["requests"], container["resources"]["limits"]
        assert set(requests) == {"cpu", "memory", "ephemeral-storage"}
        assert set(limits) == {
            "memory",
            "ephemeral-storage",
        }  # throttling would show as lag of the event loop
        for name in limits:
            assert _bytes(requests[name]) <= _bytes(limits[name])


@pytest.mark.parametrize("workload", _workloads(), ids=lambda workload: workload["metadata"]["name"])
def test_a_cluster_that_enforces_restricted_takes_it(workload: dict[str, Any]) -> None:
    assert restricted.violations(workload["spec"]["template"]["spec"]) == []
    (namespace,) = _of_kind("Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


_WRONG: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("hostNetwork is on", {"hostNetwork": True}, {}),
    ("volume disk is a hostPath", {"volumes": [{"name": "disk", "hostPath": {"path": "/"}}]}, {}),
    ("the pod runs as root", {"securityContext": {"runAsUser": 0}}, {}),
    ("sysctl kernel.msgmax", {"securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}}, {}),
    (
        "the pod has an open seccomp profile",
        {"securityContext": {"seccompProfile": {"type": "Unconfined"}}},
        {},
    ),
    ("chat is privileged", {}, {"privileged": True}),
    ("chat may gain privileges", {}, {"allowPrivilegeEscalation": True}),
    ("chat runs as root", {}, {"runAsNonRoot": False}),
    ("chat keeps capabilities", {}, {"capabilities": {"drop": ["NET_RAW"]}}),
    ("chat has more capabilities", {}, {"capabilities": {"drop": ["ALL"], "add": ["SYS_ADMIN"]}}),
    ("chat sees all of /proc", {}, {"procMount": "Unmasked"}),
    ("chat has an open AppArmor profile", {}, {"appArmorProfile": {"type": "Unconfined"}}),
    ("chat has SELinux options of its own", {}, {"seLinuxOptions": {"user": "root"}}),
]


@pytest.mark.parametrize(("told", "pod", "context"), _WRONG, ids=[told for told, _, _ in _WRONG])
def test_what_restricted_forbids_is_noticed(told: str, pod: dict[str, Any], context: dict[str, Any]) -> None:
    spec = _stateful_set()["spec"]["template"]["spec"]
    spec["securityContext"] = {**spec["securityContext"], **pod.pop("securityContext", {})}
    spec.update(pod)
    (chat,) = spec["containers"]
    chat["securityContext"] = {**chat["securityContext"], **context}
    assert told in restricted.violations(spec)


def test_attachments_are_shared_by_all_pods() -> None:
    mounts = {mount["name"]: mount["mountPath"] for mount in _chat()["volumeMounts"]}
    image = files.image_environment()
    assert mounts["files"] == image["FOREBAY_STORAGE_DIR"]
    assert mounts["journals"] == image["FOREBAY_JOURNAL_DIR"]
    (volume,) = [
        one for one in _stateful_set()["spec"]["template"]["spec"]["volumes"] if one["name"] == "files"
    ]
    (claim,) = _of_kind("PersistentVolumeClaim")
    assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


def test_with_a_bucket_nothing_of_the_folder_is_left() -> None:
    rendered = _rendered(_KUBERNETES / "with-bucket")
    assert [one for one in rendered if one["kind"] == "PersistentVolumeClaim"] == []
    (workload,) = [one for one in rendered if one["kind"] == "StatefulSet"]
    pod = workload["spec"]["template"]["spec"]
    assert "files" not in {volume["name"] for volume in pod["volumes"]}
    (chat,) = pod["containers"]
    # So content that no variable leads to a bucket is refused, and not lost with the container.
    assert "files" not in {mount["name"] for mount in chat["volumeMounts"]}
    assert chat["securityContext"]["readOnlyRootFilesystem"] is True
    assert {"secretRef": {"name": "forebay-bucket"}} in chat["envFrom"]
    assert restricted.violations(pod) == []


def test_the_network_lets_through_what_is_needed_and_nothing_else() -> None:
    policies = {policy["metadata"]["name"]: policy["spec"] for policy in _of_kind("NetworkPolicy")}
    default = policies.pop("forebay-default")
    assert default == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    chat, jobs = policies["forebay-chat"], policies["forebay-jobs"]
    assert chat["podSelector"]["matchLabels"] == _stateful_set()["spec"]["template"]["metadata"]["labels"]
    ports = {port["containerPort"] for one in _stateful_set(with_drain=True)["spec"]["template"]["spec"][
        "initContainers"] + [_chat()] for port in one.get("ports", [])}  # fmt: skip
    let_in = {port["port"] for rule in chat["ingress"] for port in rule["ports"]}
    assert let_in == ports
    assert all(rule["from"] for rule in chat["ingress"]), "from somewhere that is named"
    (component,) = jobs["podSelector"]["matchExpressions"]
    for job in _of_kind("Job"):
        labels = job["spec"]["template"]["metadata"]["labels"]
        assert labels["app.kubernetes.io/component"] in component["values"]
    assert "ingress" not in jobs
    assert "ipBlock" not in json.dumps(jobs)


def test_what_people_name_is_fetched_from_the_internet_alone() -> None:
    (chat,) = [one["spec"] for one in _of_kind("NetworkPolicy") if one["metadata"]["name"] == "forebay-chat"]
    (web,) = [rule for rule in chat["egress"] if {"port": 443} in rule["ports"]]
    for target in web["to"]:
        block = ipaddress.ip_network(target["ipBlock"]["cidr"])
        left_out = [ipaddress.ip_network(one) for one in target["ipBlock"].get("except", [])]
        for private in ("10.1.2.3", "172.20.0.1", "192.168.1.1", "169.254.169.254", "fd00::1", "fe80::1"):
            address = ipaddress.ip_address(private)
            assert address not in block or any(address in one for one in left_out), private


def test_no_image_is_whatever_is_newest() -> None:
    for folder in _KUSTOMIZATIONS:
        for image in files.document(folder / "kustomization.yaml").get("images", []):
            assert image.get("newTag", "latest") != "latest" or image.get("digest"), folder


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
