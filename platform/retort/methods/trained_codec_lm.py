"""What a run that trains a codec language model leaves: a folder that can speak."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor

from retort.inference.synthesizer import save_speaking_model
from retort.models.codec_lm import CodecLM, CodecLMConfig, count_parameters
from retort.models.codec_lm_lineage import CodecLMLineage
from retort.models.outside.beside import carry_outside
from retort.models.weights import fingerprint_of
from retort.training.seam import Trained


@dataclass(frozen=True)
class TrainedCodecLM(Trained):
    """A student, whole.

    Attributes:
        model: with its trained weights.
        lineage: what they stand for.
        data: the token set, whose codec, text front-end and voices the folder gets.
        teacher: folder whose imported parts go along; None without a teacher.
    """

    model: CodecLM
    lineage: CodecLMLineage
    data: Path
    teacher: Path | None

    @cached_property
    def fingerprint(self) -> str:
        """Of the model."""
        return fingerprint_of(self.model)

    @property
    def num_parameters(self) -> int:
        """Of the model."""
        return count_parameters(self.model)

    def save(self, folder: Path) -> None:
        """Write the model folder."""
        save_speaking_model(folder, self.model, self.lineage, self.data)
        if self.teacher is not None:
            carry_outside(self.teacher, folder)


@dataclass(frozen=True)
class CodecLMResult:
    """Trained weights → :class:`TrainedCodecLM`; the module is built anew, since a sharded one has no weights.

    Attributes:
        config: the student's shape.
        lineage: what its weights will stand for.
        data: see :class:`TrainedCodecLM`.
        teacher: see :class:`TrainedCodecLM`.
    """

    config: CodecLMConfig
    lineage: CodecLMLineage
    data: Path
    teacher: Path | None = None

    def __call__(self, weights: Mapping[str, Tensor]) -> TrainedCodecLM:
        """The student with these weights."""
        model = CodecLM(self.config)
        model.load_state_dict(weights)
        return TrainedCodecLM(model, self.lineage, self.data, self.teacher)
