"""Kubernetes' Pod Security Standards, level "restricted" (which holds "baseline"), for pods that run on Linux.

The rules are those of https://kubernetes.io/docs/concepts/security/pod-security-standards/.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_VOLUMES = {
    *(
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    ),
}
_PROFILES = {"RuntimeDefault", "Localhost"}
_SELINUX_TYPES = {"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
_SYSCTLS = {
    *("kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_unprivileged_port_start"),
    *("net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range", "net.ipv4.ip_local_reserved_ports"),
    *("net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl"),
    "net.ipv4.tcp_keepalive_probes",
}


def violations(pod: dict[str, Any]) -> list[str]:
    """What a cluster that enforces the level would refuse in a pod's `spec`; empty for a pod that it takes."""
    return [*_of_the_pod(pod), *(found for one in _containers(pod) for found in _of_a_container(one, pod))]


def _containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        one for kind in ("initContainers", "containers", "ephemeralContainers") for one in pod.get(kind, [])
    ]


def _of_the_pod(pod: dict[str, Any]) -> Iterator[str]:
    yield from (f"{name} is on" for name in ("hostNetwork", "hostPID", "hostIPC") if pod.get(name))
    for volume in pod.get("volumes", []):
        if kinds := set(volume) - {"name"} - _VOLUMES:
            yield f"volume {volume['name']} is a {', '.join(kinds)}"
    context = pod.get("securityContext", {})
    yield from (f"sysctl {one['name']}" for one in context.get("sysctls", []) if one["name"] not in _SYSCTLS)
    yield from _of_any_context(context, "the pod")


def _of_a_container(container: dict[str, Any], pod: dict[str, Any]) -> Iterator[str]:
    name = str(container["name"])
    context = container.get("securityContext", {})
    outer = pod.get("securityContext", {})
    yield from _of_any_context(context, name)
    if context.get("privileged"):
        yield f"{name} is privileged"
    if context.get("allowPrivilegeEscalation") is not False:
        yield f"{name} may gain privileges"
    if context.get("runAsNonRoot", outer.get("runAsNonRoot")) is not True:
        yield f"{name} may run as root"
    if "seccompProfile" not in context and "seccompProfile" not in outer:
        yield f"{name} has no seccomp profile"
    capabilities = context.get("capabilities", {})
    if capabilities.get("drop") != ["ALL"]:
        yield f"{name} keeps capabilities"
    if set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
        yield f"{name} has more capabilities"
    if context.get("procMount", "Default") != "Default":
        yield f"{name} sees all of /proc"
    if any(port.get("hostPort") for port in container.get("ports", [])):
        yield f"{name} takes a port of its machine"


def _of_any_context(context: dict[str, Any], whose: str) -> Iterator[str]:
    if context.get("runAsNonRoot") is False or context.get("runAsUser") == 0:
        yield f"{whose} runs as root"
    if "seccompProfile" in context and context["seccompProfile"].get("type") not in _PROFILES:
        yield f"{whose} has an open seccomp profile"
    if context.get("appArmorProfile", {}).get("type", "RuntimeDefault") not in _PROFILES:
        yield f"{whose} has an open AppArmor profile"
    selinux = context.get("seLinuxOptions", {})
    if selinux.get("type", "") not in _SELINUX_TYPES or selinux.get("user") or selinux.get("role"):
        yield f"{whose} has SELinux options of its own"
    if context.get("windowsOptions", {}).get("hostProcess"):
        yield f"{whose} is a process of its machine"
