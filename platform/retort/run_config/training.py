"""Training jobs: the loop, a teacher from data, a student from a teacher."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from retort.config import Config
from retort.data.stream import BatchConfig
from retort.methods.cfg_distill import CFGDistillConfig
from retort.methods.multilevel_distill import MultilevelDistillConfig
from retort.models.initialise import Initialisation
from retort.models.student_shape import ModelSize, StudentSize
from retort.run_config.machines import WorkersConfig
from retort.training.schedule import OptimizerConfig

Method = Annotated[CFGDistillConfig | MultilevelDistillConfig, Field(discriminator="kind")]


class TrainingConfig(Config):
    """The loop: steps, batches, optimizer, workers, checkpoints."""

    steps: int = Field(ge=1)
    """Optimizer steps."""
    batch: BatchConfig
    optimizer: OptimizerConfig
    workers: WorkersConfig = WorkersConfig()
    checkpoint_every: int = Field(default=500, ge=1)
    """Steps between checkpoints."""
    keep_checkpoints: int = Field(default=2, ge=1)
    log_every: int = Field(default=20, ge=1)
    seed: int = Field(default=0, ge=0)


class PretrainConfig(Config):
    """Token set → teacher, by next-token cross-entropy."""

    job: Literal["pretrain"] = "pretrain"
    output: Path
    data: Path
    model: ModelSize
    training: TrainingConfig


class DistillConfig(Config):
    """Teacher (or its synthetic data) → student."""

    job: Literal["distill"] = "distill"
    output: Path
    teacher: Path
    data: Path
    synthetic: Path | None = None
    """Output of `retort generate`: cached targets and sampled sequences."""
    sampled_fraction: float = Field(default=0.0, ge=0, le=1)
    """Share of sampled sequences in the training rows; needs ``synthetic``."""
    student: StudentSize
    init: Initialisation = "teacher"
    method: Method
    training: TrainingConfig

    @property
    def is_cached(self) -> bool:
        """Whether the targets are read from ``synthetic`` instead of a live teacher."""
        return isinstance(self.method, CFGDistillConfig) and self.method.targets == "cached"

    @model_validator(mode="after")
    def _consistent(self) -> "DistillConfig":
        if self.synthetic is None and (self.sampled_fraction > 0 or self.is_cached):
            raise ValueError("sampled_fraction and method.targets: cached need `synthetic`, the output of `generate`")
        if self.training.batch.total_drop > 0:
            raise ValueError("training.batch.drop_* must be 0: the target is conditional (METHODS.md, trap 15)")
        return self
