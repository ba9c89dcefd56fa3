"""The first stage of the zero-shot method: the teacher, trained on recordings (arXiv 2501.08566; METHODS.md 4.3).

Source and prompt are different recordings of one speaker, and the target is the source: what the content keeps of the
voice is not yet taken from it. Equations are in METHODS.md 4.2, departures at
:mod:`retort.models.zero_shot.model` and :mod:`retort.methods.zero_shot_learning`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from retort.config import Config
from retort.data.phone_mel_stream import PhoneMelBatchConfig, PhoneMelStream
from retort.methods.trained_zero_shot import ZeroShotResult
from retort.methods.zero_shot_data import (
    check_phone_mels,
    check_vocoder,
    lineage_of,
    scales_of,
    timbre_for,
    training_rows,
)
from retort.methods.zero_shot_learning import ZeroShotLosses, ZeroShotObjective, ZeroShotTeacher
from retort.models.zero_shot.config import FeatureScales
from retort.models.zero_shot.model import ZeroShot
from retort.models.zero_shot.presets import ZeroShotPreset, ZeroShotShape, zero_shot_config
from retort.models.zero_shot.timbre import TimbreEncoderConfig, check_timbre_encoder
from retort.store.artifact import read_artifact
from retort.store.results import result_of
from retort.training.seam import Place, Problem, Task


class ZeroShotPretrainConfig(Config):
    """How a zero-shot model is trained on recordings."""

    kind: Literal["zero_shot_pretrain"] = "zero_shot_pretrain"
    losses: ZeroShotLosses = ZeroShotLosses()


@dataclass(frozen=True)
class ZeroShotPretraining(Task):
    """Phone mels of recordings → a model; the attributes are those of a run file."""

    data: Path
    model: ZeroShotPreset | ZeroShotShape
    timbre: TimbreEncoderConfig
    method: ZeroShotPretrainConfig
    batch: PhoneMelBatchConfig
    seed: int
    vocoder: Path | None = None

    def check(self) -> dict[str, str]:
        """See :meth:`retort.training.seam.Task.check`."""
        rows, fingerprint = check_phone_mels(self.data, self.timbre)
        made = rows.description
        zero_shot_config(
            self.model,
            num_phones=len(made.phones),
            num_mels=made.num_mels,
            timbre_dim=made.timbre_dim,
            scales=FeatureScales(),
        )
        timbre_for(self.timbre, made, torch.device("cpu"), weight=self.method.losses.contrastive.weight)
        return {"data": fingerprint, **check_vocoder(self.vocoder, made)}

    def build(self, place: Place) -> Problem:
        """See :meth:`retort.training.seam.Task.build`."""
        rows, losses = training_rows(self.data), self.method.losses
        made = rows.description
        check_timbre_encoder(self.timbre, made.timbre_encoder)  # on this node, before the work and not after it
        config = zero_shot_config(
            self.model,
            num_phones=len(made.phones),
            num_mels=made.num_mels,
            timbre_dim=made.timbre_dim,
            scales=scales_of(rows),
        )
        torch.manual_seed(self.seed)  # the same first weights on every rank
        student = ZeroShot(config).train()
        teacher = ZeroShotTeacher(config, losses, seed=(self.seed << 16) + place.rank)
        timbre = timbre_for(self.timbre, made, place.device, weight=losses.contrastive.weight)
        batches = PhoneMelStream(rows, self.batch, seed=self.seed, rank=place.rank, world_size=place.world_size)
        lineage = lineage_of(self.method.kind, made, read_artifact(result_of(self.data)).fingerprint)
        result = ZeroShotResult(config, lineage, rows, self.batch.prompt_max_frames, self.timbre, self.vocoder)
        return Problem(ZeroShotObjective(student, losses, timbre), teacher, batches, result)
