"""What a job needs of a cluster, what the cluster has, and whether one fits into the other."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from retort.run_config import PoolConfig, WorkersConfig


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
        is_pool: whether an item stays with the worker that has it, though its node is lost, until that has room again.
    """

    name: str
    count: int
    least: int
    cpus: float
    gpus: float
    wait_for_nodes_s: float
    is_pool: bool = False

    @classmethod
    def of_pool(cls, pool: PoolConfig) -> "Demand":
        """Actors that take items one by one: one of them is enough."""
        each = pool.cpus_per_worker, pool.gpus_per_worker
        return cls("workers", pool.size, 1, *each, pool.wait_for_nodes_s, is_pool=True)

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
        )

    @property
    def bundles(self) -> list[dict[str, float]]:
        """What must have room at the same time, in the words of Ray."""
        each = {"CPU": self.cpus, "GPU": self.gpus}
        return [{name: amount for name, amount in each.items() if amount > 0}] * self.least

    def __str__(self) -> str:
        """Such as ``2 training workers of 4 CPUs and 1 GPU each``."""
        each = amounts(self.cpus, self.gpus)
        if self.count == 1:
            return f"1 {self.name.removesuffix('s')} of {each}"
        return f"{self.count} {self.name} of {each} each"


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
    """

    name: str
    node_id: str
    alive: bool
    cpus: float
    gpus: float
    reason: str = ""

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
        )

    def room(self, demand: Demand) -> int:
        """How many of the workers would fit on it if it did nothing else."""
        if not self.alive:
            return 0
        fits = [
            math.floor(has / needs + 1e-9)
            for has, needs in ((self.cpus, demand.cpus), (self.gpus, demand.gpus))
            if needs > 0
        ]
        return min(fits, default=demand.count)


def room(nodes: Sequence[Node], demand: Demand) -> int:
    """How many of the workers fit on the nodes that are alive, at most as many as are wanted."""
    return min(demand.count, sum(node.room(demand) for node in nodes))


def there(nodes: Sequence[Node]) -> str:
    """What the nodes have together, such as ``2 nodes with 8 CPUs and 2 GPUs``."""
    alive = [node for node in nodes if node.alive]
    many = "1 node" if len(alive) == 1 else f"{len(alive)} nodes"
    return f"{many} with {amounts(sum(n.cpus for n in alive), sum(n.gpus for n in alive))}"


def amounts(cpus: float, gpus: float) -> str:
    """Such as ``4 CPUs and 1 GPU``."""
    said = [f"{cpus:g} CPU{'' if cpus == 1 else 's'}"]
    if gpus > 0:
        said.append(f"{gpus:g} GPU{'' if gpus == 1 else 's'}")
    return " and ".join(said)
