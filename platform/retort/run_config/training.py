"""Training jobs: a model's size, the loop, a teacher from data, a student from a teacher."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from retort.config import Config
from retort.data.stream import BatchConfig
from retort.methods.cfg_distill import CFGDistillConfig
from retort.methods.layer_pruning import Criterion
from retort.methods.multilevel_distill import MultilevelDistillConfig
from retort.models.initialise import Initialisation
from retort.models.presets import PresetName
from retort.run_config.machines import WorkersConfig
from retort.training.schedule import OptimizerConfig


class ModelShape(Config):
    """A model's size; what the data decide (vocabularies) is filled in."""

    kind: Literal["shape"] = "shape"
    dim: int = Field(ge=8)
    num_layers: int = Field(ge=1)
    num_heads: int = Field(ge=1)
    num_kv_heads: int | None = None
    """``None`` is as many as heads."""
    ffn_dim: int = Field(ge=8)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    qkv_bias: bool = False


class ModelPreset(Config):
    """A size of :mod:`retort.models.presets`."""

    kind: Literal["preset"] = "preset"
    name: PresetName


class SameAsTeacher(Config):
    """The teacher's own shape."""

    kind: Literal["teacher"] = "teacher"


class PrunedTeacher(Config):
    """Some of the teacher's layers, and as much of its width as is asked for."""

    kind: Literal["pruned"] = "pruned"
    layers: Path | tuple[int, ...]
    """Output of `retort prune`, or the layers themselves in ascending order."""
    criterion: Criterion | None = None
    """Which of the choices of `retort prune`; ``None`` is the one that it was asked for."""
    num_layers: int | None = Field(default=None, ge=1)
    """How many layers of that choice; ``None`` is as many as it was asked for."""
    dim: int | None = Field(default=None, ge=8)
    """``None`` is the teacher's, here and below."""
    num_heads: int | None = Field(default=None, ge=1)
    num_kv_heads: int | None = Field(default=None, ge=1)
    """``None`` keeps the teacher's query heads per key-value head."""
    ffn_dim: int | None = Field(default=None, ge=8)

    @model_validator(mode="after")
    def _consistent(self) -> "PrunedTeacher":
        if not isinstance(self.layers, Path) and (self.criterion is not None or self.num_layers is not None):
            raise ValueError("criterion and num_layers choose from the output of `retort prune`; `layers` is a list")
        return self


ModelSize = Annotated[ModelShape | ModelPreset, Field(discriminator="kind")]
StudentSize = Annotated[ModelShape | ModelPreset | SameAsTeacher | PrunedTeacher, Field(discriminator="kind")]
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
