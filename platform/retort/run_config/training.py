"""Training jobs: the loop, a teacher from data, a student from a teacher, for each family of models."""

import math
from typing import Annotated, Any, Generic, Literal, Self, TypeVar, get_args

from pydantic import Discriminator, Field, Tag, model_validator

from retort.audio.mel import MelConfig
from retort.config import Config
from retort.config_faults import UNKNOWN_BRANCH
from retort.data.mel_stream import MelBatchConfig
from retort.data.phone_mel_stream import PhoneMelBatchConfig
from retort.data.readers import CorpusConfig
from retort.data.recordings import AudioConfig
from retort.data.sound_stream import SoundBatchConfig
from retort.data.splits import SplitConfig
from retort.data.stream import BatchConfig
from retort.location import Location
from retort.methods.cfg_distill import CFGDistillConfig
from retort.methods.guided_distill import GuidedDistillConfig
from retort.methods.interval_distill import IntervalDistillConfig
from retort.methods.mel_pretrain import MelDiffusionShape, MelPretrainConfig
from retort.methods.multilevel_distill import MultilevelDistillConfig
from retort.methods.progressive_distill import ProgressiveDistillConfig
from retort.methods.self_distill import SelfDistillConfig
from retort.methods.vocoder_pretrain import VocoderPretrainConfig, VocoderSize
from retort.methods.zero_shot_pretrain import ZeroShotPretrainConfig
from retort.models.initialise import Initialisation
from retort.models.student_shape import ModelSize, SameAsTeacher, StudentSize
from retort.models.zero_shot.presets import ZeroShotPreset, ZeroShotShape
from retort.models.zero_shot.timbre import ResemblyzerTimbreConfig, TimbreEncoderConfig
from retort.run_config.machines import WorkersConfig
from retort.run_config.output import Output
from retort.run_config.tracker import TrackerConfig
from retort.training.schedule import OptimizerConfig

Method = Annotated[CFGDistillConfig | MultilevelDistillConfig, Field(discriminator="kind")]
"""What distils a codec language model."""
MelMethod = Annotated[
    GuidedDistillConfig | ProgressiveDistillConfig | IntervalDistillConfig, Field(discriminator="kind")
]
"""What distils a denoiser of mels."""
ZeroShotSize = Annotated[ZeroShotPreset | ZeroShotShape, Field(discriminator="kind")]
ZeroShotStudentSize = Annotated[SameAsTeacher | ZeroShotPreset | ZeroShotShape, Field(discriminator="kind")]

B = TypeVar("B", bound=Config)


class TrainingConfig(Config, Generic[B]):
    """The loop: steps, batches, optimizer, workers, checkpoints."""

    steps: int = Field(ge=1)
    """Optimizer steps."""
    batch: B
    optimizer: OptimizerConfig
    workers: WorkersConfig = WorkersConfig()
    checkpoint_every: int = Field(default=500, ge=1)
    """Steps between checkpoints."""
    keep_checkpoints: int = Field(default=2, ge=1)
    log_every: int = Field(default=20, ge=1)
    max_bad_steps: int = Field(default=3, ge=0)
    """Steps that are left out because their loss is not a number; one more ends the run (exit code 7)."""
    tracker: TrackerConfig | None = None
    """Takes the metrics as well; TensorBoard and ``metrics.jsonl`` always have them."""
    seed: int = Field(default=0, ge=0)

    @property
    def micro_batches_per_step(self) -> int:
        """Over all workers; fewer of them make up for it by accumulation."""
        return self.optimizer.accumulation * self.workers.max_workers

    @model_validator(mode="after")
    def _every_number_of_workers_makes_the_same_step(self) -> Self:
        counts = range(self.workers.min_workers, self.workers.max_workers + 1)
        uneven = [count for count in counts if self.micro_batches_per_step % count]
        if uneven:
            whole = math.lcm(*counts) // self.workers.max_workers
            raise ValueError(
                f"{self.micro_batches_per_step} micro-batches a step (optimizer.accumulation times the most workers) "
                f"cannot be dealt out to {' or '.join(map(str, uneven))} workers; an accumulation of {whole}, or a "
                "multiple of it, can"
            )
        return self


class PretrainConfig(Config):
    """Token set → teacher, by next-token cross-entropy."""

    job: Literal["pretrain"] = "pretrain"
    family: Literal["codec_lm"] = "codec_lm"
    output: Output
    data: Location
    model: ModelSize
    training: TrainingConfig[BatchConfig]


class DistillConfig(Config):
    """Teacher (or its synthetic data) → student."""

    job: Literal["distill"] = "distill"
    family: Literal["codec_lm"] = "codec_lm"
    output: Output
    teacher: Location
    data: Location
    synthetic: Location | None = None
    """Output of `retort generate`: cached targets and sampled sequences."""
    sampled_fraction: float = Field(default=0.0, ge=0, le=1)
    """Share of sampled sequences in the training rows; needs ``synthetic``."""
    student: StudentSize
    init: Initialisation = "teacher"
    method: Method
    training: TrainingConfig[BatchConfig]

    @property
    def is_cached(self) -> bool:
        """Whether the targets are read from ``synthetic`` instead of a live teacher."""
        return isinstance(self.method, CFGDistillConfig) and self.method.targets == "cached"

    @model_validator(mode="after")
    def _consistent(self) -> "DistillConfig":
        if self.synthetic is None and (self.sampled_fraction > 0 or self.is_cached):
            raise ValueError("sampled_fraction and method.targets: cached need `synthetic`, the output of `generate`")
        if self.training.batch.total_drop > 0 and self.method.needs_teacher:
            raise ValueError(
                "training.batch.drop_* must be 0: the teacher's target is conditional (METHODS.md, trap 15); only with "
                "cross-entropy alone, as a teacher is trained on, may conditions be dropped"
            )
        return self


class PretrainMelsConfig(Config):
    """Mels of recordings → a denoiser, conditioned on the latents of a codec LM."""

    job: Literal["pretrain"] = "pretrain"
    family: Literal["mel_diffusion"]
    output: Output
    data: Location
    """Output of `retort generate` with ``makes: mels`` and ``source.kind: recordings``."""
    model: MelDiffusionShape
    method: MelPretrainConfig = MelPretrainConfig()
    training: TrainingConfig[MelBatchConfig]


class PretrainVocoderConfig(Config):
    """Recordings → a vocoder, which makes sound of any mels of their kind."""

    job: Literal["pretrain"] = "pretrain"
    family: Literal["vocoder"]
    output: Output
    corpus: CorpusConfig
    """Its train split is trained on. A parquet corpus' recordings are held in memory, encoded, by each worker."""
    audio: AudioConfig = AudioConfig()
    splits: SplitConfig = SplitConfig()
    mel: MelConfig = MelConfig()
    """That it will read; its sample rate is that of the sound."""
    model: VocoderSize
    method: VocoderPretrainConfig = VocoderPretrainConfig()
    training: TrainingConfig[SoundBatchConfig]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        adversary, training = self.method.adversary, self.training
        if adversary is None:
            return self
        if adversary.from_step >= training.steps:
            raise ValueError(
                f"method.adversary.from_step {adversary.from_step} is no step of training.steps {training.steps}; "
                "begin earlier, or leave the adversary out"
            )
        if training.workers.zero_stage == 3:
            raise ValueError(
                "workers.zero_stage 3 leaves no worker the whole discriminator, through which the vocoder is taught; "
                "2 shards as much of networks as small as these"
            )
        return self


class DistillMelsConfig(Config):
    """A denoiser and its own mels → a denoiser of fewer evaluations."""

    job: Literal["distill"] = "distill"
    family: Literal["mel_diffusion"]
    output: Output
    teacher: Location
    data: Location
    """Output of `retort generate` with ``makes: mels`` and ``source.kind: synthetic``; nothing else is read."""
    method: MelMethod
    training: TrainingConfig[MelBatchConfig]


class PretrainZeroShotConfig(Config):
    """Phone mels of recordings → a zero-shot model, the teacher of its own second stage."""

    job: Literal["pretrain"] = "pretrain"
    family: Literal["zero_shot"]
    output: Output
    data: Location
    """Output of `retort generate` with ``makes: phone_mels`` and ``source.kind: recordings``."""
    model: ZeroShotSize
    timbre: TimbreEncoderConfig = ResemblyzerTimbreConfig()
    """The frozen speaker encoder; the one that the data were made with."""
    vocoder: Location | None = None
    """Of ``retort pretrain`` with ``family: vocoder``; it goes along, and the model speaks through it. ``None`` is
    Griffin-Lim."""
    method: ZeroShotPretrainConfig = ZeroShotPretrainConfig()
    training: TrainingConfig[PhoneMelBatchConfig]


class DistillZeroShotConfig(Config):
    """A zero-shot model, its data, and what it said of them in other voices → a zero-shot model."""

    job: Literal["distill"] = "distill"
    family: Literal["zero_shot"]
    output: Output
    teacher: Location
    data: Location
    """What the teacher was trained on."""
    swapped: Location
    """Output of `retort generate` with ``makes: phone_mels`` and ``source.kind: swapped``."""
    student: ZeroShotStudentSize = SameAsTeacher()
    timbre: TimbreEncoderConfig = ResemblyzerTimbreConfig()
    """The frozen speaker encoder; the one that the data were made with."""
    vocoder: Location | None = None
    """As in the pretraining; ``None`` is the teacher's."""
    method: SelfDistillConfig = SelfDistillConfig()
    training: TrainingConfig[PhoneMelBatchConfig]


_KINDS = {
    "mel_diffusion": (MelPretrainConfig, *get_args(get_args(MelMethod)[0])),
    "zero_shot": (ZeroShotPretrainConfig, SelfDistillConfig),
    "vocoder": (VocoderPretrainConfig,),
}
_FAMILY_OF = {kind.model_fields["kind"].default: family for family, kinds in _KINDS.items() for kind in kinds}
"""Methods that say which family they are of; the others train codec language models."""


def _by_family(*families: str) -> Discriminator:
    """The tag of a training job; files that say nothing of it train codec language models.

    A method of another family without ``family`` gets that family's tag, so that the family is what is told to be
    missing.
    """

    def family_of(given: Any) -> str | None:
        if not isinstance(given, dict):
            return str(given.family)
        method = given.get("method")
        kind = method.get("kind") if isinstance(method, dict) else None
        family = given.get("family", _FAMILY_OF.get(kind, "codec_lm") if isinstance(kind, str) else "codec_lm")
        return family if family in families else None

    return Discriminator(
        family_of,
        custom_error_type=UNKNOWN_BRANCH,
        custom_error_message=f"family: it is one of {', '.join(families)}",
    )


PretrainJob = Annotated[
    Annotated[PretrainConfig, Tag("codec_lm")]
    | Annotated[PretrainMelsConfig, Tag("mel_diffusion")]
    | Annotated[PretrainZeroShotConfig, Tag("zero_shot")]
    | Annotated[PretrainVocoderConfig, Tag("vocoder")],
    _by_family("codec_lm", "mel_diffusion", "zero_shot", "vocoder"),
]
DistillJob = Annotated[
    Annotated[DistillConfig, Tag("codec_lm")]
    | Annotated[DistillMelsConfig, Tag("mel_diffusion")]
    | Annotated[DistillZeroShotConfig, Tag("zero_shot")],
    _by_family("codec_lm", "mel_diffusion", "zero_shot"),
]
