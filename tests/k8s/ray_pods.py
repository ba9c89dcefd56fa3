"""What each pod of a Ray cluster needs besides, and the heads' disruption budget, so that no work on them is lost."""

from collections.abc import Iterator

from tests.k8s.pod_security import amount
from tests.k8s.rendering import Manifest, clusters

Fault = tuple[str, str]
_GRACE_S = 30
"""A pod's time of grace that Kubernetes takes where none is given."""
_LEAST_DISK = {False: "20Gi", True: "100Gi"}
"""For what is in a store, without and with GPUs: of 1.3B parameters a checkpoint is 16 GB, and there are several."""
_MOST_PODS = 150_000
"""Kubernetes is made for clusters of no more."""


def pods_of_ray(manifest: Manifest) -> Iterator[Manifest]:
    """The pods' specifications of the cluster that a custom resource has."""
    for cluster in clusters(manifest):
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            yield group["template"]["spec"]


def faults(pod: Manifest) -> Iterator[Fault]:
    environment = {entry["name"]: entry.get("value", "") for entry in pod["containers"][0].get("env", [])}
    drain_s = float(environment.get("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "nan"))
    if not 0 < drain_s < pod.get("terminationGracePeriodSeconds", _GRACE_S):
        yield "Ray drains for a stated time, and the pod's grace is longer", f"{drain_s:g} s"
    yield from _cache(pod, environment.get("XDG_CACHE_HOME"))


def _cache(pod: Manifest, place: str | None) -> Iterator[Fault]:
    container = pod["containers"][0]
    mounted = [mount["name"] for mount in container["volumeMounts"] if mount["mountPath"] == place]
    disks = [volume["ephemeral"] for volume in pod["volumes"] if volume["name"] in mounted and "ephemeral" in volume]
    sizes = [disk["volumeClaimTemplate"]["spec"]["resources"]["requests"]["storage"] for disk in disks]
    if len(sizes) != 1:
        yield "what is in a store has a disk of its own on each node", f"{place}: {mounted}"
    least = _LEAST_DISK["nvidia.com/gpu" in container["resources"]["limits"]]
    if any(amount(size) < amount(least) for size in sizes):
        yield "the disk for what is in a store holds checkpoints", f"{sizes}, less than {least}"


def budget_faults(budget: Manifest) -> Iterator[Fault]:
    """Of a budget over heads; nothing but a number of ready pods counts there, without a scale subresource."""
    least = budget["spec"].get("minAvailable")
    if not isinstance(least, int) or least <= _MOST_PODS:
        yield "a drain evicts no head, of however many clusters", str(budget["spec"])
