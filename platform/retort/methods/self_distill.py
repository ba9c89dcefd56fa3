"""The second stage of the zero-shot method: self-distillation (arXiv 2501.08566; METHODS.md 4.3).

The teacher said each recording again in another voice, with the recording's durations. With probability ``sigma`` such
a mel is the source, the prompt is another recording of the recording's speaker, and the recording is the target: what
the content keeps of the source's voice is wrong for the target, and the prompt alone says whose voice it is. The other
rows are those of the first stage.

The paper does not say which side of a pair is the target, nor whether the student starts anew; both are open here.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field

from retort.config import Config
from retort.data.phone_mel_stream import Direction, PhoneMelBatchConfig, PhoneMelStream, Swaps
from retort.data.phone_mels import FromSwaps, PhoneMelSet, PhoneMelSetDescription
from retort.data.tokens import refuse_mismatch
from retort.errors import ConfigError
from retort.inference.inversion import BESIDE
from retort.methods.trained_zero_shot import ZeroShotResult
from retort.methods.zero_shot_data import check_phone_mels, check_vocoder, lineage_of, timbre_for, training_rows
from retort.methods.zero_shot_learning import ZeroShotLosses, ZeroShotObjective, ZeroShotTeacher
from retort.models.student_shape import SameAsTeacher
from retort.models.weights import LoadedZeroShot, load_zero_shot
from retort.models.zero_shot.config import ZeroShotConfig
from retort.models.zero_shot.model import ZeroShot
from retort.models.zero_shot.presets import ZeroShotPreset, ZeroShotShape, zero_shot_config
from retort.models.zero_shot.timbre import TimbreEncoderConfig, check_timbre_encoder
from retort.models.zero_shot_lineage import SelfDistilled, ZeroShotLineage
from retort.store.artifact import read_artifact
from retort.store.results import result_of
from retort.training.seam import Place, Problem, Task


class SelfDistillConfig(Config):
    """How a student learns of recordings and of what its teacher said."""

    kind: Literal["self_distill"] = "self_distill"
    sigma: float = Field(default=0.8, ge=0, le=1)
    """Share of the rows with a swapped mel; the paper's best."""
    direction: Direction = "synth_source"
    """Whether the swapped mel is what the student hears, or what it is to say."""
    init: Literal["teacher", "random"] = "teacher"
    """First weights."""
    losses: ZeroShotLosses = ZeroShotLosses()


@dataclass(frozen=True)
class SelfDistillation(Task):
    """A teacher, its data and what it said → a student; the attributes are those of a run file."""

    teacher: Path
    data: Path
    swapped: Path
    student: SameAsTeacher | ZeroShotPreset | ZeroShotShape
    timbre: TimbreEncoderConfig
    method: SelfDistillConfig
    batch: PhoneMelBatchConfig
    seed: int
    vocoder: Path | None = None

    def check(self) -> dict[str, str]:
        """See :meth:`retort.training.seam.Task.check`."""
        rows, data_fingerprint = check_phone_mels(self.data, self.timbre)
        read_artifact(result_of(self.teacher))
        teacher = load_zero_shot(result_of(self.teacher))
        check_knows(teacher.lineage, rows.description, who=f"the teacher {self.teacher}", data=str(self.data))
        swaps = read_artifact(result_of(self.swapped))
        found = PhoneMelSet.open(swaps.path)
        self._check_swaps(found.description, rows.description, teacher.fingerprint, data_fingerprint)
        student_config(teacher.model.config, self.student, self.method.init)
        stream_of(rows, found, self.method, self.batch, self.seed, Place())
        timbre_for(self.timbre, rows.description, torch.device("cpu"), weight=self.method.losses.contrastive.weight)
        inputs = {"data": data_fingerprint, "teacher": teacher.fingerprint, "swapped": swaps.fingerprint}
        return {**inputs, **check_vocoder(self.vocoder, rows.description)}

    def build(self, place: Place) -> Problem:
        """See :meth:`retort.training.seam.Task.build`."""
        rows, losses = training_rows(self.data), self.method.losses
        check_timbre_encoder(self.timbre, rows.description.timbre_encoder)
        swaps = read_artifact(result_of(self.swapped))
        teacher = load_zero_shot(result_of(self.teacher))
        torch.manual_seed(self.seed)  # the same first weights on every rank
        student = student_from(teacher, self.student, self.method.init)
        draws = ZeroShotTeacher(student.config, losses, seed=(self.seed << 16) + place.rank)
        timbre = timbre_for(self.timbre, rows.description, place.device, weight=losses.contrastive.weight)
        batches = stream_of(rows, PhoneMelSet.open(swaps.path), self.method, self.batch, self.seed, place)
        lineage = lineage_of(
            self.method.kind,
            rows.description,
            read_artifact(result_of(self.data)).fingerprint,
            SelfDistilled(
                teacher_fingerprint=teacher.fingerprint,
                swaps_fingerprint=swaps.fingerprint,
                sigma=self.method.sigma,
                swapped_share=batches.swapped_share,
                direction=self.method.direction,
                init=self.method.init,
            ),
        )
        longest = self.batch.prompt_max_frames
        result = ZeroShotResult(student.config, lineage, rows, longest, self.timbre, self._vocoder())
        return Problem(ZeroShotObjective(student, losses, timbre), draws, batches, result)

    def _vocoder(self) -> Path | None:
        """The one that is named, or the teacher's."""
        if self.vocoder is not None:
            return self.vocoder
        teachers = result_of(self.teacher) / BESIDE
        return teachers if teachers.is_dir() else None

    def _check_swaps(
        self, found: PhoneMelSetDescription, made: PhoneMelSetDescription, teacher: str, data: str
    ) -> None:
        """Refuse what another teacher said, or said of other recordings."""
        if not isinstance(found.source, FromSwaps):
            raise ConfigError(
                f"{self.swapped} holds recordings; give what the teacher said of them in other voices "
                "(`retort generate` with makes: phone_mels and source.kind: swapped)"
            )
        cure = "make the swapped mels again (`retort generate`) with this teacher and these data"
        who = str(self.swapped)
        for part, ours, other, theirs in (
            ("teacher", found.source.teacher_fingerprint, str(self.teacher), teacher),
            ("phone mel set", found.source.mels_fingerprint, str(self.data), data),
            ("mel", found.mel.model_dump_json(), str(self.data), made.mel.model_dump_json()),
            ("inventory of phones", " ".join(found.phones), str(self.data), " ".join(made.phones)),
            ("timbre encoder", found.timbre_encoder, str(self.data), made.timbre_encoder),
        ):
            refuse_mismatch(part, who, ours, other, theirs, cure)


def check_knows(lineage: ZeroShotLineage, made: PhoneMelSetDescription, *, who: str, data: str) -> None:
    """Refuse a model of other phones, mels or timbres than a set's.

    Raises:
        DataError: what differs, both values and the cure are named.
    """
    cure = "give the phone mels that it was trained on, or a model that was trained on these"
    for part, ours, theirs in (
        ("mel", lineage.mel.model_dump_json(), made.mel.model_dump_json()),
        ("inventory of phones", " ".join(lineage.phones), " ".join(made.phones)),
        ("voice of espeak-ng", lineage.voice, made.voice),
        ("timbre encoder", lineage.timbre_encoder, made.timbre_encoder),
    ):
        refuse_mismatch(part, who, ours, data, theirs, cure)


def stream_of(
    rows: PhoneMelSet,
    swapped: PhoneMelSet,
    method: SelfDistillConfig,
    batch: PhoneMelBatchConfig,
    seed: int,
    place: Place,
) -> PhoneMelStream:
    """One rank's batches."""
    swaps = Swaps(swapped, method.sigma, method.direction)
    return PhoneMelStream(rows, batch, seed=seed, swaps=swaps, rank=place.rank, world_size=place.world_size)


def student_config(
    teacher: ZeroShotConfig,
    size: SameAsTeacher | ZeroShotPreset | ZeroShotShape,
    init: Literal["teacher", "random"],
) -> ZeroShotConfig:
    """The student's shape; what the data decide is the teacher's.

    Raises:
        ConfigError: it shall start from a teacher of another shape.
    """
    match size:
        case SameAsTeacher():
            return teacher.replace(dropout=size.dropout)
        case _:
            config = zero_shot_config(
                size,
                num_phones=teacher.num_phones,
                num_mels=teacher.num_mels,
                timbre_dim=teacher.timbre_dim,
                scales=teacher.scales,
            )
    if init == "teacher" and config.replace(dropout=teacher.dropout) != teacher:
        raise ConfigError(
            "method.init: teacher needs a student of the teacher's shape; set student.kind: teacher, or "
            "method.init: random"
        )
    return config


def student_from(
    teacher: LoadedZeroShot, size: SameAsTeacher | ZeroShotPreset | ZeroShotShape, init: Literal["teacher", "random"]
) -> ZeroShot:
    """A student that starts as the teacher, or anew."""
    student = ZeroShot(student_config(teacher.model.config, size, init))
    if init == "teacher":
        student.load_state_dict(teacher.model.state_dict())
    return student.train()
