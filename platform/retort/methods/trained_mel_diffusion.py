"""What a run that trains a denoiser leaves: a folder that can speak, with the codec LM whose latents it reads."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor

from retort.inference.diffusion_synthesizer import LM as LM
from retort.inference.synthesizer import carry_speaking_model
from retort.models.codec_lm import count_parameters
from retort.models.mel_diffusion import MelDiffusion, MelDiffusionConfig
from retort.models.mel_lineage import MelDiffusionLineage
from retort.models.weights import fingerprint_of, save_model
from retort.training.seam import Trained


@dataclass(frozen=True)
class TrainedMelDiffusion(Trained):
    """A denoiser, whole.

    Attributes:
        model: with its trained weights.
        lineage: what they stand for.
        lm: folder of the codec LM, which goes along.
        beside: writes what the method leaves beside the weights.
    """

    model: MelDiffusion
    lineage: MelDiffusionLineage
    lm: Path
    beside: Callable[[MelDiffusion, Path], None]

    @cached_property
    def fingerprint(self) -> str:
        """Of the denoiser."""
        return fingerprint_of(self.model)

    @property
    def num_parameters(self) -> int:
        """Of the denoiser alone."""
        return count_parameters(self.model)

    def save(self, folder: Path) -> None:
        """Write the model folder."""
        save_model(folder, self.model, self.lineage)
        carry_speaking_model(self.lm, folder / LM)
        self.beside(self.model, folder)


def nothing_beside(model: MelDiffusion, folder: Path) -> None:
    """Most methods leave the weights alone."""
    del model, folder


@dataclass(frozen=True)
class MelDiffusionResult:
    """Trained weights → :class:`TrainedMelDiffusion`; the module is built anew, since a sharded one has no weights.

    Attributes:
        config: the student's shape.
        lineage: what its weights will stand for.
        lm: see :class:`TrainedMelDiffusion`.
        beside: see :class:`TrainedMelDiffusion`.
    """

    config: MelDiffusionConfig
    lineage: MelDiffusionLineage
    lm: Path
    beside: Callable[[MelDiffusion, Path], None] = nothing_beside

    def __call__(self, weights: Mapping[str, Tensor]) -> TrainedMelDiffusion:
        """The denoiser with these weights."""
        model = MelDiffusion(self.config)
        model.load_state_dict(weights)
        return TrainedMelDiffusion(model.eval(), self.lineage, self.lm, self.beside)
