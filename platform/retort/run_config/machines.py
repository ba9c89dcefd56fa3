"""What jobs run on: pools of actors, and training workers."""

from typing import Literal

from pydantic import Field

from retort.config import Config


class PoolConfig(Config):
    """A pool of Ray actors or tasks."""

    size: int = Field(default=2, ge=1)
    cpus_per_worker: float = Field(default=1.0, gt=0)
    gpus_per_worker: float = Field(default=0.0, ge=0)
    """A fraction shares one GPU between workers."""
    threads_per_worker: int = Field(default=1, ge=1)


class WorkersConfig(Config):
    """Ray Train workers and how DeepSpeed shards over them."""

    num_workers: int = Field(default=1, ge=1)
    use_gpu: bool = False
    cpus_per_worker: float = Field(default=1.0, gt=0)
    threads_per_worker: int = Field(default=1, ge=1)
    zero_stage: Literal[0, 1, 2, 3] = 0
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    """``auto`` is bf16 where the processor multiplies it natively, else fp32; the choice is logged."""
    max_failures: int = Field(default=2, ge=0)
    """Restarts of the worker group before the job gives up."""
