"""Pod Security "restricted" (Kubernetes 1.37), and what this project asks of every pod besides."""

import re
from collections.abc import Collection, Iterator
from typing import Any

Pod = dict[str, Any]
Fault = tuple[str, str]

_VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret",
}  # fmt: skip


_UNITS = {"m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def amount(quantity: str | int | float) -> float:
    """A quantity of Kubernetes as a number."""
    match = re.fullmatch(r"([0-9.]+)([a-zA-Z]*)", str(quantity))
    assert match is not None, quantity
    return float(match[1]) * (_UNITS[match[2]] if match[2] else 1.0)


def all_containers(pod: Pod) -> list[dict[str, Any]]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def restricted(pod: Pod) -> Iterator[Fault]:
    """The rules of the standard; containers inherit the pod's."""
    context = pod.get("securityContext", {})
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(name):
            yield "nothing of the host", name
    for volume in pod.get("volumes", []):
        if not _VOLUMES & volume.keys():
            yield "volumes of the allowed kinds", volume["name"]
    for container in all_containers(pod):
        yield from confined(container.get("name", ""), container.get("securityContext", {}), context)
        if any("hostPort" in port for port in container.get("ports", [])):
            yield "nothing of the host", "hostPort"


def confined(name: str, own: dict[str, Any], pod: dict[str, Any]) -> Iterator[Fault]:
    if own.get("privileged") or own.get("allowPrivilegeEscalation") is not False:
        yield "no privilege escalation", name
    capabilities = own.get("capabilities", {})
    if "ALL" not in capabilities.get("drop", []) or set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
        yield "all capabilities dropped", name
    if own.get("runAsNonRoot", pod.get("runAsNonRoot")) is not True or own.get("runAsUser", pod.get("runAsUser")) == 0:
        yield "not root", name
    seccomp = own.get("seccompProfile", pod.get("seccompProfile", {}))
    if seccomp.get("type") not in ("RuntimeDefault", "Localhost"):
        yield "seccomp", name


def careful(pod: Pod, claims: Collection[str] = ()) -> Iterator[Fault]:
    """What the standard does not ask: a read-only root, bounded resources, an identity without a token, no secrets.

    ``claims`` are the volumes that a StatefulSet makes for its pods.
    """
    if not pod.get("serviceAccountName") or pod.get("automountServiceAccountToken") is not False:
        yield "an identity of its own, without a token", pod.get("serviceAccountName", "")
    volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
    for name, volume in volumes.items():
        if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]:
            yield "temporary folders have a limit", name
    for container in all_containers(pod):
        yield from _careful(container)
        yield from _bounded(container["name"], container.get("resources", {}))
        for mount in container.get("volumeMounts", []):
            if mount["name"] not in {*claims, *volumes}:
                yield "mounted volumes exist", f"{container['name']}: {mount['name']}"


def _careful(container: dict[str, Any]) -> Iterator[Fault]:
    if not container.get("securityContext", {}).get("readOnlyRootFilesystem"):
        yield "a read-only root", container["name"]
    if ":" not in container["image"].rsplit("/", 1)[-1] or container["image"].endswith(":latest"):
        yield "an image with a version", container["image"]
    for entry in container.get("env", []):
        if entry.get("value") and any(word in entry["name"] for word in ("SECRET", "PASSWORD", "TOKEN", "_KEY")):
            yield "no secrets in a manifest", entry["name"]


def _bounded(name: str, resources: dict[str, Any]) -> Iterator[Fault]:
    requests, limits = resources.get("requests", {}), resources.get("limits", {})
    for key in ("cpu", "memory"):
        if key not in requests or key not in limits:
            yield "requests and limits", f"{name}: {key}"
    for key, asked in requests.items():
        if amount(asked) > amount(limits.get(key, asked)):
            yield "no more is requested than the limit", f"{name}: {key}"
