"""What every method on denoisers reads: a mel set, and for a distillation a teacher that it fits; and the run of it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from retort.data.mel_stream import MelBatchConfig, MelStream
from retort.data.mels import FromRecordings, FromTeacher, MelSet, MelSetDescription
from retort.data.tokens import refuse_mismatch
from retort.errors import ConfigError, DataError
from retort.methods.denoising import DenoiseObjective, FrozenDenoiser
from retort.methods.trained_mel_diffusion import LM, MelDiffusionResult, nothing_beside
from retort.models.mel_diffusion import MelDiffusion, MelDiffusionConfig
from retort.models.mel_lineage import MelDiffusionLineage
from retort.models.weights import LoadedMelDiffusion, load_mel_diffusion
from retort.store.artifact import read_artifact
from retort.store.results import result_of
from retort.training.seam import Place, Problem


@dataclass(frozen=True)
class MelDistillation:
    """What a run file says of a distillation of denoisers beside its method."""

    teacher: Path
    data: Path
    batch: MelBatchConfig
    seed: int


@dataclass(frozen=True)
class OpenedMels:
    """The inputs of such a distillation, which belong together.

    Attributes:
        given: what the run file says.
        mels: that the teacher's family made.
        teacher: in fp32.
    """

    given: MelDistillation
    mels: MelSet
    teacher: LoadedMelDiffusion

    @property
    def lm(self) -> Path:
        """Folder of the codec LM."""
        return result_of(self.given.data) / LM

    def problem(
        self,
        place: Place,
        make: Callable[[MelDiffusion, int], tuple[FrozenDenoiser[Any], DenoiseObjective]],
        lineage: MelDiffusionLineage,
        *,
        rows: MelSet | None = None,
        beside: Callable[[MelDiffusion, Path], None] = nothing_beside,
    ) -> Problem:
        """One rank's part of the distillation.

        Args:
            place: the rank.
            make: teacher's model and the rank's seed → frozen teacher and objective, whose student is new.
            lineage: what the student's weights will stand for.
            rows: the mels to train on; all of them by default.
            beside: see :class:`retort.methods.trained_mel_diffusion.TrainedMelDiffusion`.
        """
        seed = self.given.seed
        torch.manual_seed(seed)  # the same first weights on every rank
        teacher, objective = make(self.teacher.model, (seed << 16) + place.rank)
        teacher.model.to(place.device, place.dtype)
        batches = stream_of(self.mels if rows is None else rows, self.given.batch, seed=seed, place=place)
        return Problem(
            objective, teacher, batches, MelDiffusionResult(objective.student.config, lineage, self.lm, beside)
        )


def check_mels(data: Path) -> tuple[MelSet, str]:
    """Verify a mel set; returns it with its artifact's fingerprint.

    Raises:
        DataError: it is missing, or lacks the codec LM that a denoiser speaks with.
        StorageError: it is damaged.
    """
    artifact = read_artifact(result_of(data))
    mels = MelSet.open(artifact.path)
    if not (artifact.path / LM).is_dir():
        raise DataError(f"{data} lacks its {LM} folder; run `retort generate` with makes: mels again")
    return mels, artifact.fingerprint


def check_recordings(data: Path, mels: MelSet) -> None:
    """Refuse a mel set that a denoiser made: a teacher is trained on recordings.

    Raises:
        ConfigError: names the cure.
    """
    if not isinstance(mels.description.source, FromRecordings):
        raise ConfigError(
            f"{data} was made by a denoiser; train on recordings (`retort generate` with source.kind: recordings)"
        )


def check_inputs(given: MelDistillation) -> tuple[OpenedMels, dict[str, str]]:
    """Verify and match mel set and teacher; returns them opened, and their fingerprints by name.

    Raises:
        ConfigError: the teacher is of another family, or the mels are recordings.
        DataError: an input is missing, or they were made with different codecs, text front-ends or LMs.
        StorageError: an input is damaged.
    """
    mels, data_fingerprint = check_mels(given.data)
    if not isinstance(mels.description.source, FromTeacher):
        raise ConfigError(
            f"{given.data} holds recordings; distil from a denoiser's own mels (`retort generate` with source.kind: "
            "synthetic), as the paper does: no original data are needed then"
        )
    read_artifact(result_of(given.teacher))
    teacher = load_mel_diffusion(result_of(given.teacher))
    check_fits_mels(teacher.lineage, teacher.model.config, mels.description, who=f"the teacher {given.teacher}")
    return OpenedMels(given, mels, teacher), {"data": data_fingerprint, "teacher": teacher.fingerprint}


def open_inputs(given: MelDistillation) -> OpenedMels:
    """What :func:`check_inputs` verified, opened again by a worker."""
    return OpenedMels(given, MelSet.open(result_of(given.data)), load_mel_diffusion(result_of(given.teacher)))


def check_fits_mels(
    lineage: MelDiffusionLineage, model: MelDiffusionConfig, mels: MelSetDescription, *, who: str
) -> None:
    """Refuse a denoiser that reads other latents or speaks other mels than these.

    Raises:
        DataError: both values and the cure are named.
    """
    cure = "give mels that were made with its codec LM, or a denoiser that was trained on that LM's latents"
    refuse_other_mels(lineage, model, mels, who=who, other="the mel set", cure=cure)


def refuse_other_mels(
    lineage: MelDiffusionLineage,
    model: MelDiffusionConfig,
    mels: MelSetDescription,
    *,
    who: str,
    other: str,
    cure: str,
) -> None:
    """Compare all that a denoiser and mels have in common.

    Raises:
        DataError: what differs, both values and the cure are named.
    """
    for part, ours, theirs in (
        ("codec LM", lineage.lm_fingerprint, mels.lm_fingerprint),
        ("codec", lineage.codec_fingerprint, mels.codec_fingerprint),
        ("text front-end", lineage.text_fingerprint, mels.text_fingerprint),
        ("size of the latents", f"latents of {model.latent_dim}", f"latents of {mels.latent_dim}"),
        ("number of mels", f"{model.num_mels} mels", f"{mels.num_mels} mels"),
    ):
        refuse_mismatch(part, who, ours, other, theirs, cure)


def stream_of(mels: MelSet, batch: MelBatchConfig, *, seed: int, place: Place) -> MelStream:
    """One rank's batches."""
    return MelStream(mels, batch, seed=seed, rank=place.rank, world_size=place.world_size)
