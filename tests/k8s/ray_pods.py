"""What each pod of a Ray cluster needs besides, and the heads' disruption budget, so that no work on them is lost."""

from collections.abc import Iterator

from tests.k8s.rendering import Manifest, clusters

Fault = tuple[str, str]
_GRACE_S = 30
"""A pod's time of grace that Kubernetes takes where none is given."""
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


def budget_faults(budget: Manifest) -> Iterator[Fault]:
    """Of a budget over heads; nothing but a number of ready pods counts there, without a scale subresource."""
    least = budget["spec"].get("minAvailable")
    if not isinstance(least, int) or least <= _MOST_PODS:
        yield "a drain evicts no head, of however many clusters", str(budget["spec"])
