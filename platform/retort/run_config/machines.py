"""What jobs run on: pools of actors, and training workers."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from retort.config import Config

WAIT_FOR_NODES_S = 300.0

LabelKey = Annotated[str, Field(pattern=r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?$")]
LabelValue = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?$")]
"""As Ray and Kubernetes have them."""


class PoolConfig(Config):
    """A pool of Ray actors or tasks."""

    size: int = Field(default=2, ge=1)
    cpus_per_worker: float = Field(default=1.0, gt=0)
    gpus_per_worker: float = Field(default=0.0, ge=0)
    """A fraction shares one GPU between workers."""
    memory_gib_per_worker: float | None = Field(default=None, gt=0)
    """Main memory that is set aside for a worker, as Ray counts it; ``None`` counts none."""
    accelerator: LabelValue | None = None
    """Kind of GPU that a worker needs, such as ``H100``: the node's label ``ray.io/accelerator-type``."""
    labels: dict[LabelKey, LabelValue] = Field(default_factory=dict)
    """Labels of the nodes that workers run on."""
    threads_per_worker: int = Field(default=1, ge=1)
    wait_for_nodes_s: float = Field(default=WAIT_FOR_NODES_S, ge=0)
    """How long a cluster that has no room for one worker may take to grow; a Ray of this machine never does."""


class WorkersConfig(Config):
    """Ray Train workers and how DeepSpeed shards over them."""

    num_workers: Annotated[int, Field(ge=1)] | tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = 1
    """``[least, most]`` takes what the cluster has, and follows it; the step stays the same step."""
    use_gpu: bool = False
    gpus_per_worker: float = Field(default=1.0, gt=0)
    """Where ``use_gpu`` is set; a fraction lets several small runs share one GPU, and needs num_workers: 1."""
    cpus_per_worker: float = Field(default=1.0, gt=0)
    memory_gib_per_worker: float | None = Field(default=None, gt=0)
    """Main memory that is set aside for a worker, as Ray counts it; ``None`` counts none."""
    accelerator: LabelValue | None = None
    """Kind of GPU that a worker needs, such as ``H100``: the node's label ``ray.io/accelerator-type``."""
    labels: dict[LabelKey, LabelValue] = Field(default_factory=dict)
    """Labels of the nodes that workers run on."""
    threads_per_worker: int = Field(default=1, ge=1)
    zero_stage: Literal[0, 1, 2, 3] = 0
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    """``auto`` is bf16 where the processor multiplies it natively, else fp32; the choice is logged."""
    max_failures: int = Field(default=2, ge=0)
    """Restarts of the worker group before the job gives up."""
    wait_for_nodes_s: float = Field(default=WAIT_FOR_NODES_S, ge=0)
    """How long a cluster without room for all workers may take to grow, or to replace a node that it lost."""
    preemption_grace_s: float = Field(default=30.0, ge=0)
    """After SIGTERM, how long the workers may take to end their step and write a checkpoint of it."""

    @property
    def min_workers(self) -> int:
        """With fewer the work does not begin."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def max_workers(self) -> int:
        """For so many ``optimizer.accumulation`` is meant."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.min_workers > self.max_workers:
            raise ValueError(f"num_workers [{self.min_workers}, {self.max_workers}]: the least comes first")
        if self.gpus_per_worker < 1 and self.max_workers > 1:
            raise ValueError("workers of one run cannot share a GPU: gpus_per_worker below 1 needs num_workers: 1")
        return self
