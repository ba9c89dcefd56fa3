"""Sizes of codec language models as run files give them, and the shape of a student beside its teacher."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from retort.config import Config, first_fault
from retort.errors import ConfigError
from retort.location import Location
from retort.models.codec_lm import CodecLMConfig
from retort.models.initialise import check_compatible
from retort.models.layer_choice import Criterion
from retort.models.presets import PresetName, preset

_FOLLOWED = ("delays", "rope_theta", "rope_scaling", "norm_eps", "head_dim", "speaker_prompt")
"""What a student of a shape of its own takes from its teacher."""


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
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Of the student, whatever the teacher was trained with: noise on what a student says moves it away from what its
    teacher says (METHODS.md, trap 23)."""


class PrunedTeacher(Config):
    """Some of the teacher's layers, and as much of its width as is asked for."""

    kind: Literal["pruned"] = "pruned"
    layers: Location | tuple[int, ...]
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
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Of the student, as in :class:`SameAsTeacher`."""

    @model_validator(mode="after")
    def _consistent(self) -> "PrunedTeacher":
        if not isinstance(self.layers, Path) and (self.criterion is not None or self.num_layers is not None):
            raise ValueError("criterion and num_layers choose from the output of `retort prune`; `layers` is a list")
        return self


ModelSize = Annotated[ModelShape | ModelPreset, Field(discriminator="kind")]
StudentSize = Annotated[ModelShape | ModelPreset | SameAsTeacher | PrunedTeacher, Field(discriminator="kind")]


@dataclass(frozen=True)
class Kept:
    """The teacher's layers that a student holds, and the recogniser that chose them, if one did."""

    layers: tuple[int, ...]
    selected_by: str | None = None


def model_of(size: ModelSize, vocabularies: tuple[int, int, int]) -> CodecLMConfig:
    """The model of a size that a run file spells out or names.

    Raises:
        ConfigError: the numbers do not make a model.
    """
    try:
        if not isinstance(size, ModelShape):
            return preset(size.name)(vocabularies)
        text, num_codebooks, codebook_size = vocabularies
        return CodecLMConfig(
            text_vocabulary_size=text,
            num_codebooks=num_codebooks,
            codebook_size=codebook_size,
            num_kv_heads=size.num_kv_heads or size.num_heads,
            **size.model_dump(exclude={"kind", "num_kv_heads"}),
        )
    except ValidationError as error:
        raise ConfigError(f"the model's size does not work: {first_fault(error)}") from None


def student_shape(
    size: StudentSize, kept: Kept, teacher: CodecLMConfig, *, guidance_scales: Sequence[float] = ()
) -> CodecLMConfig:
    """The student's shape; what logits depend on beside it (delays, positions, norms, prompt) follows the teacher.

    Its dropout does not: it is what the run file says of the student, and none where that says nothing.

    Args:
        size: as a run file gives it.
        kept: the teacher's layers that the student holds.
        teacher: whose vocabularies the student has, too.
        guidance_scales: that the student takes as an input.

    Raises:
        ConfigError: the numbers do not make a model, or not one that the teacher can teach.
    """
    match size:
        case SameAsTeacher():
            shape = teacher.replace(dropout=size.dropout)
        case PrunedTeacher():
            shape = _pruned(size, kept, teacher)
        case ModelShape() | ModelPreset():
            followed = {name: getattr(teacher, name) for name in _FOLLOWED}
            shape = model_of(size, teacher.vocabularies).replace(**followed)
    check_compatible(teacher, shape)
    return shape.replace(guidance_scales=list(guidance_scales))


def _pruned(size: PrunedTeacher, kept: Kept, teacher: CodecLMConfig) -> CodecLMConfig:
    heads = size.num_heads or teacher.num_heads
    changes = {
        "num_layers": len(kept.layers),
        "dim": size.dim or teacher.dim,
        "num_heads": heads,
        "num_kv_heads": size.num_kv_heads or max(1, heads * teacher.num_kv_heads // teacher.num_heads),
        "ffn_dim": size.ffn_dim or teacher.ffn_dim,
        "dropout": size.dropout,
    }
    try:
        return teacher.replace(**changes)
    except ValidationError as error:
        raise ConfigError(f"the student's size does not work: {first_fault(error)}") from None
