"""The Ray cluster of a RayJob in the shape that its run file asks for: groups of workers, their pods, how many."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from retort.errors import ConfigError
from retort.orchestration.demand import ACCELERATOR_LABEL, Demand

Manifest = dict[str, Any]

GPU = "nvidia.com/gpu"
_FOR_WORKERS = 0.7
"""Share of a pod's memory that Ray hands out; the rest is its object store."""
_GIB = re.compile(r"(\d+)(Gi|Ti)")


@dataclass(frozen=True)
class Shape:
    """What decides over the cluster beside the template.

    Attributes:
        demands: of the jobs, one after another.
        driver_cpus: that the entry script holds on a worker; 0 where it runs on the head.
        node_selector: labels of the Kubernetes nodes that worker pods run on.
        is_fixed: whether the cluster has its whole size from the beginning and keeps it, as a queue wants it.
    """

    demands: Sequence[Demand]
    driver_cpus: float = 0.0
    node_selector: Mapping[str, str] = field(default_factory=dict)
    is_fixed: bool = False


def shape_cluster(cluster: Manifest, shape: Shape) -> None:
    """Give a cluster the groups that hold the demands, each as large as the largest demand on it.

    A pod has at least the template's size and at least room for one worker. Nodes are selected for the workers with
    GPUs where there are any, else for all.

    Args:
        cluster: spec of a RayCluster with a group ``cpu`` and a group ``gpu``; it is changed.
        shape: what is wanted.

    Raises:
        ConfigError: an accelerator is asked for, and nothing says which nodes have it.
    """
    kinds = [demand.labels[ACCELERATOR_LABEL] for demand in shape.demands if ACCELERATOR_LABEL in demand.labels]
    if kinds and not shape.node_selector:
        raise ConfigError(
            f"accelerator {kinds[0]} is a name of Ray's, by which Kubernetes finds no node; say how its nodes are "
            f"labelled, such as --node-selector {GPU}.product=NVIDIA-{kinds[0]}-80GB-HBM3"
        )
    templates = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    together: dict[_Kind, list[Demand]] = {}
    for demand in shape.demands:
        together.setdefault(_Kind.of(demand), []).append(demand)
    if shape.driver_cpus or not together:
        together.setdefault(_ANY_CPU, [])
    selected = [kind for kind in together if kind.name == "gpu"] or list(together)
    groups = []
    for number, (kind, demands) in enumerate(together.items()):
        group = json.loads(json.dumps(templates[kind.name]))
        if kind.labels:
            group["groupName"] = f"{kind.name}-{number}"
            group["labels"] = dict(kind.labels)
        if shape.node_selector and kind in selected:
            group["template"]["spec"]["nodeSelector"] = dict(shape.node_selector)
        _size(group, demands, shape.driver_cpus if kind == _ANY_CPU else 0.0, is_fixed=shape.is_fixed)
        groups.append(group)
    cluster["workerGroupSpecs"] = groups
    if shape.is_fixed:
        cluster.pop("enableInTreeAutoscaling", None)
        cluster.pop("autoscalerOptions", None)


@dataclass(frozen=True)
class _Kind:
    """Workers that one group can hold: the template's group, and the labels of its nodes."""

    name: Literal["cpu", "gpu"]
    labels: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, demand: Demand) -> "_Kind":
        return cls("gpu" if demand.gpus else "cpu", tuple(sorted(demand.labels.items())))


_ANY_CPU = _Kind("cpu")


def _size(group: Manifest, demands: Sequence[Demand], driver_cpus: float, *, is_fixed: bool) -> None:
    """Set the size of a group's pods and their number; the driver, if it is here, has a pod of its own."""
    resources = group["template"]["spec"]["containers"][0]["resources"]
    limits = resources["limits"]
    cpus = max(int(limits["cpu"]), math.ceil(max([driver_cpus, *(demand.cpus for demand in demands)])))
    memory_gib = max([_gib(limits["memory"]), *(math.ceil(demand.memory_gib / _FOR_WORKERS) for demand in demands)])
    gpus = max([int(limits.get(GPU, 0)), *(math.ceil(demand.gpus) for demand in demands)])
    for amounts in resources.values():
        amounts |= {"cpu": str(cpus), "memory": f"{memory_gib}Gi", **({GPU: str(gpus)} if gpus else {})}
    pods = max([_pods(demand, cpus, gpus, memory_gib * _FOR_WORKERS) for demand in demands], default=0)
    pods += 1 if driver_cpus else 0
    least = pods if is_fixed else 0
    group |= {"replicas": least, "minReplicas": least, "maxReplicas": max(1, pods)}
    if is_fixed:
        group.pop("idleTimeoutSeconds", None)


def _pods(demand: Demand, cpus: int, gpus: int, memory_gib: float) -> int:
    has = ((cpus, demand.cpus), (gpus, demand.gpus), (memory_gib, demand.memory_gib))
    of_a_pod = min(math.floor(there / needs + 1e-9) for there, needs in has if needs > 0)
    return math.ceil(demand.count / of_a_pod)


def _gib(amount: str) -> int:
    found = _GIB.fullmatch(amount)
    assert found is not None, f"memory {amount} of k8s/cluster is in Gi or Ti"
    return int(found[1]) * (1024 if found[2] == "Ti" else 1)
