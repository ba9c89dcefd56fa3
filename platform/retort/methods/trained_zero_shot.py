"""What a run that trains a zero-shot model leaves: a folder that can speak, with a voice for each training speaker."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor

from retort.data.phone_mels import PhoneMelSet
from retort.inference.inversion import carry_vocoder
from retort.models.codec_lm import count_parameters
from retort.models.weights import fingerprint_of, save_model
from retort.models.zero_shot.config import ZeroShotConfig
from retort.models.zero_shot.model import ZeroShot
from retort.models.zero_shot.timbre import TimbreEncoderConfig, carry_timbre_encoder
from retort.models.zero_shot.voices import StoredVoice, write_voices
from retort.models.zero_shot_lineage import ZeroShotLineage
from retort.training.seam import Trained


@dataclass(frozen=True)
class TrainedZeroShot(Trained):
    """A zero-shot model, whole.

    Attributes:
        model: with its trained weights.
        lineage: what they stand for.
        rows: what it was trained on, of which the voices are taken.
        prompt_max_frames: longest prompt.
        timbre: the frozen speaker encoder, which goes along where it is a file.
        vocoder: that goes along; None speaks by Griffin-Lim.
    """

    model: ZeroShot
    lineage: ZeroShotLineage
    rows: PhoneMelSet
    prompt_max_frames: int
    timbre: TimbreEncoderConfig
    vocoder: Path | None = None

    @cached_property
    def fingerprint(self) -> str:
        """Of configuration and weights."""
        return fingerprint_of(self.model)

    @property
    def num_parameters(self) -> int:
        """Without the timbre encoder."""
        return count_parameters(self.model)

    def save(self, folder: Path) -> None:
        """Write the model folder."""
        save_model(folder, self.model, self.lineage)
        write_voices(folder, stored_voices(self.rows, self.prompt_max_frames))
        carry_timbre_encoder(self.timbre, folder)
        if self.vocoder is not None:
            carry_vocoder(self.vocoder, folder)


def stored_voices(rows: PhoneMelSet, max_frames: int) -> list[StoredVoice]:
    """For each speaker the longest recording that is a prompt as a whole; or the shortest one's first frames."""
    lengths, speakers, ids = (rows.column(name) for name in ("num_frames", "speaker", "id"))
    best: dict[str, tuple[bool, int, str, int]] = {}
    for index, (length, speaker, name) in enumerate(zip(lengths, speakers, ids, strict=True)):
        fits = length <= max_frames
        rank = (fits, length if fits else -length, name, index)
        best[speaker] = max(rank, best.get(speaker, rank))
    found = []
    for speaker, (*_, index) in sorted(best.items()):
        row = rows[index]
        found.append(StoredVoice(speaker, row.mel_TM[:max_frames].clone(), row.timbre_E))
    return found


@dataclass(frozen=True)
class ZeroShotResult:
    """Trained weights → :class:`TrainedZeroShot`; the module is built anew, since a sharded one has no weights.

    Attributes:
        config: the model's shape.
        lineage: what its weights will stand for.
        rows: see :class:`TrainedZeroShot`.
        prompt_max_frames: see :class:`TrainedZeroShot`.
        timbre: see :class:`TrainedZeroShot`.
        vocoder: see :class:`TrainedZeroShot`.
    """

    config: ZeroShotConfig
    lineage: ZeroShotLineage
    rows: PhoneMelSet
    prompt_max_frames: int
    timbre: TimbreEncoderConfig
    vocoder: Path | None = None

    def __call__(self, weights: Mapping[str, Tensor]) -> TrainedZeroShot:
        """The model with these weights."""
        model = ZeroShot(self.config)
        model.load_state_dict(weights)
        return TrainedZeroShot(model.eval(), self.lineage, self.rows, self.prompt_max_frames, self.timbre, self.vocoder)
