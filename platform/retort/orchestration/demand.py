"""What a job needs of a cluster, what the cluster has, and whether one fits into the other."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, assert_never

from retort.run_config import (
    AlignConfig,
    AnyConfig,
    BundleConfig,
    DemoConfig,
    DistillConfig,
    DistillMelsConfig,
    DistillZeroShotConfig,
    EvaluateConfig,
    ExportConfig,
    GenerateConfig,
    GenerateMelsConfig,
    GeneratePhoneMelsConfig,
    GenerateSpeechConfig,
    ImportConfig,
    PoolConfig,
    PrepareConfig,
    PretrainConfig,
    PretrainMelsConfig,
    PretrainVocoderConfig,
    PretrainZeroShotConfig,
    PruneConfig,
    ReportConfig,
    TuneConfig,
    WorkersConfig,
)

ACCELERATOR_LABEL = "ray.io/accelerator-type"
_GIB = 1 << 30


@dataclass(frozen=True)
class Demand:
    """Workers that are alike.

    Attributes:
        name: what they are called, in the plural.
        count: how many the job would like.
        least: how many must have room at the same time, or nothing begins.
        cpus: of each.
        gpus: of each.
        wait_for_nodes_s: how long a cluster without room may take to grow.
        memory_gib: main memory that is set aside for each.
        labels: of the nodes that they run on.
        is_pool: whether an item stays with the worker that has it, though its node is lost, until that has room again.
    """

    name: str
    count: int
    least: int
    cpus: float
    gpus: float
    wait_for_nodes_s: float
    memory_gib: float = 0.0
    labels: Mapping[str, str] = field(default_factory=dict)
    is_pool: bool = False

    @classmethod
    def of_pool(cls, pool: PoolConfig) -> "Demand":
        """Actors that take items one by one: one of them is enough."""
        return cls(
            "workers",
            pool.size,
            1,
            pool.cpus_per_worker,
            pool.gpus_per_worker,
            pool.wait_for_nodes_s,
            pool.memory_gib_per_worker or 0.0,
            _labels(pool),
            is_pool=True,
        )

    @classmethod
    def of_training(cls, workers: WorkersConfig) -> "Demand":
        """Ranks, of which at least the least number work or none."""
        gpus = workers.gpus_per_worker if workers.use_gpu else 0.0
        return cls(
            "training workers",
            workers.max_workers,
            workers.min_workers,
            workers.cpus_per_worker,
            gpus,
            workers.wait_for_nodes_s,
            workers.memory_gib_per_worker or 0.0,
            _labels(workers),
        )

    @property
    def bundles(self) -> list[dict[str, float]]:
        """What must have room at the same time, in the words of Ray."""
        return [self.resources] * self.least

    @property
    def resources(self) -> dict[str, float]:
        """Of each, by Ray's names; memory in whole bytes, as Ray counts it."""
        each = {"CPU": self.cpus, "GPU": self.gpus, "memory": float(int(self.memory_gib * _GIB))}
        return {name: amount for name, amount in each.items() if amount > 0}

    @property
    def options(self) -> dict[str, Any]:
        """Of each as an actor, by the names of Ray's options."""
        given: dict[str, Any] = {"num_cpus": self.cpus, "num_gpus": self.gpus}
        if self.memory_gib:
            given["memory"] = int(self.resources["memory"])
        if self.labels:
            given["label_selector"] = dict(self.labels)
        return given

    def __str__(self) -> str:
        """Such as ``2 training workers of 4 CPUs and 1 GPU each``."""
        each = amounts(self.cpus, self.gpus, self.memory_gib)
        where = f" on nodes with {', '.join(f'{k}={v}' for k, v in self.labels.items())}" if self.labels else ""
        if self.count == 1:
            return f"1 {self.name.removesuffix('s')} of {each}{where}"
        return f"{self.count} {self.name} of {each} each{where}"


@dataclass(frozen=True)
class Node:
    """A machine of the cluster, alive or not.

    Attributes:
        name: its address and the first digits of its id, by which Ray's own tools know it.
        node_id: the whole id.
        alive: whether it still answers.
        cpus: that it offers to all jobs together.
        gpus: the same.
        reason: why it is not alive, in Ray's words.
        memory_gib: the same as ``cpus``.
        labels: by name.
    """

    name: str
    node_id: str
    alive: bool
    cpus: float
    gpus: float
    reason: str = ""
    memory_gib: float = math.inf
    labels: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_ray(cls, entry: Mapping[str, Any]) -> "Node":
        """From an entry of ``ray.nodes()``."""
        node_id, resources = str(entry["NodeID"]), entry.get("Resources", {})
        return cls(
            name=f"{entry.get('NodeManagerAddress', '?')} ({node_id[:8]})",
            node_id=node_id,
            alive=bool(entry["Alive"]),
            cpus=float(resources.get("CPU", 0.0)),
            gpus=float(resources.get("GPU", 0.0)),
            reason=str(entry.get("DeathReasonMessage") or ""),
            memory_gib=float(resources.get("memory", math.inf)) / _GIB,
            labels=dict(entry.get("Labels") or {}),
        )

    def room(self, demand: Demand) -> int:
        """How many of the workers would fit on it if it did nothing else."""
        if not self.alive or any(self.labels.get(name) != value for name, value in demand.labels.items()):
            return 0
        fits = [
            math.floor(has / needs + 1e-9)
            for has, needs in (
                (self.cpus, demand.cpus),
                (self.gpus, demand.gpus),
                (self.memory_gib, demand.memory_gib),
            )
            if needs > 0 and math.isfinite(has)
        ]
        return min(fits, default=demand.count)


def room(nodes: Sequence[Node], demand: Demand) -> int:
    """How many of the workers fit on the nodes that are alive, at most as many as are wanted."""
    return min(demand.count, sum(node.room(demand) for node in nodes))


def there(nodes: Sequence[Node]) -> str:
    """What the nodes have together, such as ``there are 2 nodes with 8 CPUs and 2 GPUs``."""
    alive = [node for node in nodes if node.alive]
    many = "there is 1 node" if len(alive) == 1 else f"there are {len(alive)} nodes"
    return f"{many} with {amounts(sum(n.cpus for n in alive), sum(n.gpus for n in alive))}"


def amounts(cpus: float, gpus: float, memory_gib: float = 0.0) -> str:
    """Such as ``4 CPUs and 1 GPU``."""
    said = [f"{cpus:g} CPU{'' if cpus == 1 else 's'}"]
    if gpus > 0:
        said.append(f"{gpus:g} GPU{'' if gpus == 1 else 's'}")
    if memory_gib > 0:
        said.append(f"{memory_gib:g} GiB")
    return " and ".join(said)


def demands_of(config: AnyConfig) -> list[Demand]:
    """What a job needs at one time or another; trials of a sweep, side by side.

    A job of the driver alone needs nothing.
    """
    match config:
        case DemoConfig():
            return [demand for job in config.jobs for demand in demands_of(job)]
        case TuneConfig():
            of_trial = [demand for job in config.trial for demand in demands_of(job)]
            return [replace(demand, count=demand.count * config.max_concurrent) for demand in of_trial]
        case (
            PretrainConfig()
            | PretrainMelsConfig()
            | PretrainZeroShotConfig()
            | PretrainVocoderConfig()
            | DistillConfig()
            | DistillMelsConfig()
            | DistillZeroShotConfig()
        ):
            return [Demand.of_training(config.training.workers)]
        case GenerateConfig() | GenerateMelsConfig() | GeneratePhoneMelsConfig() | GenerateSpeechConfig():
            return [Demand.of_pool(config.pool)]
        case PrepareConfig() | AlignConfig() | PruneConfig() | EvaluateConfig():
            return [Demand.of_pool(config.pool)]
        case ImportConfig() | ExportConfig() | BundleConfig() | ReportConfig():
            return []
        case _:
            assert_never(config)


def _labels(workers: PoolConfig | WorkersConfig) -> dict[str, str]:
    kind = {} if workers.accelerator is None else {ACCELERATOR_LABEL: workers.accelerator}
    return {**kind, **workers.labels}
