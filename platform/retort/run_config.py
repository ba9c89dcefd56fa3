"""What a file in ``jobs/configs`` must satisfy: a union of jobs, told apart by ``job``.

A tour (``job: demo``) is a list of jobs in one file. Each job writes to its ``output`` folder: ``run.yaml`` (the
resolved configuration), ``metrics.jsonl``, ``checkpoints/`` where it trains, and ``result/``, the committed artifact
that the next job reads.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from retort.audio.codec import EncodecConfig, MelRVQConfig
from retort.config import Config
from retort.data.readers import CorpusConfig
from retort.data.stream import BatchConfig
from retort.evaluation.asr import RecogniserConfig
from retort.evaluation.speaker import SpeakerEncoderConfig
from retort.evaluation.stability import StabilityConfig
from retort.inference.sampling import SamplerConfig
from retort.methods.cfg_distill import CFGDistillConfig
from retort.models.initialise import Initialisation
from retort.models.presets import PresetName
from retort.nn.guidance import GuidanceConfig, NoGuidance
from retort.text.front_end import TextConfig
from retort.training.schedule import OptimizerConfig


class PoolConfig(Config):
    """A pool of Ray actors or tasks."""

    size: int = Field(default=2, ge=1)
    cpus_per_worker: float = Field(default=1.0, gt=0)
    gpus_per_worker: float = Field(default=0.0, ge=0)
    """A fraction shares one GPU between workers."""
    threads_per_worker: int = Field(default=1, ge=1)


class WorkersConfig(Config):
    """Ray Train workers and how DeepSpeed shards over them."""

    num_workers: int = Field(default=1, ge=1)
    use_gpu: bool = False
    cpus_per_worker: float = Field(default=1.0, gt=0)
    threads_per_worker: int = Field(default=1, ge=1)
    zero_stage: Literal[0, 1, 2, 3] = 0
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    """``auto`` is bf16 where the processor multiplies it natively, else fp32; the choice is logged."""
    max_failures: int = Field(default=2, ge=0)
    """Restarts of the worker group before the job gives up."""


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


ModelSize = Annotated[ModelShape | ModelPreset, Field(discriminator="kind")]
StudentSize = Annotated[ModelShape | ModelPreset | SameAsTeacher, Field(discriminator="kind")]


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


class SavedCodec(Config):
    """The codec of an earlier token set or a saved codec folder."""

    kind: Literal["saved"] = "saved"
    path: Path


class AudioConfig(Config):
    """What happens to a recording before it becomes tokens."""

    min_duration_s: float = Field(default=0.1, gt=0)
    max_duration_s: float = Field(default=30.0, gt=0)
    target_lufs: float | None = -23.0
    """Loudness after normalisation; ``None`` leaves it alone."""
    trim_silence_dbfs: float | None = None
    """Cut leading and trailing audio that stays below this level; ``None`` keeps it."""


class SplitConfig(Config):
    """Splits for rows whose corpus does not name one."""

    test_fraction: float = Field(default=0.05, ge=0, lt=1)
    validation_fraction: float = Field(default=0.02, ge=0, lt=1)
    by: Literal["utterance", "speaker"] = "utterance"
    seed: int = Field(default=0, ge=0)


class PrepareConfig(Config):
    """Corpus → token set."""

    job: Literal["prepare"] = "prepare"
    output: Path
    corpus: CorpusConfig
    audio: AudioConfig = AudioConfig()
    codec: Annotated[MelRVQConfig | EncodecConfig | SavedCodec, Field(discriminator="kind")]
    codec_fit_utterances: int = Field(default=1000, ge=1)
    """Training utterances that a fitted codec sees."""
    text: TextConfig
    splits: SplitConfig = SplitConfig()
    speaker_encoder: SpeakerEncoderConfig | None = None
    """Writes an embedding for each row, for similarity scores later; ``None`` writes none."""
    max_reject_fraction: float = Field(default=0.1, ge=0, le=1)
    pool: PoolConfig = PoolConfig()
    seed: int = Field(default=0, ge=0)


class PretrainConfig(Config):
    """Token set → teacher, by next-token cross-entropy."""

    job: Literal["pretrain"] = "pretrain"
    output: Path
    data: Path
    model: ModelSize
    training: TrainingConfig


class CorpusTexts(Config):
    """The training texts of the token set."""

    kind: Literal["corpus"] = "corpus"


class FileTexts(Config):
    """A text file, one utterance a line."""

    kind: Literal["file"] = "file"
    path: Path


class DigitTexts(Config):
    """New digit strings; none of them is a held-out text of the token set."""

    kind: Literal["digits"] = "digits"
    min_digits: int = Field(default=1, ge=1)
    max_digits: int = Field(default=5, ge=1)


TextSource = Annotated[CorpusTexts | FileTexts | DigitTexts, Field(discriminator="kind")]


class FilterConfig(Config):
    """What a sampled sequence must satisfy to be kept; what is dropped is counted by reason."""

    stability: StabilityConfig = StabilityConfig()
    max_wer: float | None = Field(default=None, ge=0)
    """Drop sequences that the recogniser mishears by more than this; ``None`` runs no recogniser."""
    recogniser: RecogniserConfig | None = None
    """Must differ from the one that scores the evaluation."""

    @model_validator(mode="after")
    def _consistent(self) -> "FilterConfig":
        if (self.max_wer is None) != (self.recogniser is None):
            raise ValueError("max_wer and recogniser go together: give both or neither")
        return self


class GenerateConfig(Config):
    """Teacher → synthetic data: guided top-k for real tokens, and sequences sampled from the guided teacher."""

    job: Literal["generate"] = "generate"
    output: Path
    teacher: Path
    data: Path
    guidance: GuidanceConfig
    top_k: int = Field(default=32, ge=1)
    """Guided log-probabilities kept for each token."""
    temperature: float = Field(default=1.0, gt=0)
    """Temperature T of the stored distributions."""
    teacher_forced: bool = True
    """Store the guided top-k of the training split's own tokens."""
    num_sampled: int = Field(default=0, ge=0)
    """Sequences to sample, before filters."""
    texts: TextSource = CorpusTexts()
    sampler: SamplerConfig = SamplerConfig()
    max_frames: int = Field(default=400, ge=1)
    """Longest sampled sequence, in codec frames; longer ones are runaways."""
    filters: FilterConfig = FilterConfig()
    batch_size: int = Field(default=32, ge=1)
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    pool: PoolConfig = PoolConfig()
    seed: int = Field(default=0, ge=0)


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
    method: CFGDistillConfig
    training: TrainingConfig

    @model_validator(mode="after")
    def _consistent(self) -> "DistillConfig":
        if self.synthetic is None and (self.sampled_fraction > 0 or self.method.targets == "cached"):
            raise ValueError("sampled_fraction and method.targets: cached need `synthetic`, the output of `generate`")
        if self.training.batch.total_drop > 0:
            raise ValueError("training.batch.drop_* must be 0: the target is conditional (METHODS.md, trap 15)")
        return self


class SystemConfig(Config):
    """One system of an evaluation."""

    name: str = Field(min_length=1)
    kind: Literal["recordings", "resynthesis", "model"]
    model: Path | None = None
    guidance: GuidanceConfig = NoGuidance()
    scale_input: float | None = None
    """Guidance scale given as an input to a student that takes one."""
    sampler: SamplerConfig = SamplerConfig()

    @model_validator(mode="after")
    def _consistent(self) -> "SystemConfig":
        if (self.kind == "model") != (self.model is not None):
            raise ValueError("`model` is the path of a system of kind: model, and of no other")
        return self


class SpeedConfig(Config):
    """Speed measurement: tokens per second and real-time factor at batch 1 and at saturation."""

    batch_sizes: tuple[int, ...] = (1, 64)
    """The last one is taken as saturating."""
    num_frames: int = Field(default=80, ge=2)
    rounds: int = Field(default=3, ge=1)
    """Systems take turns; the best round counts."""
    threads: int = Field(default=1, ge=1)


class EvaluateConfig(Config):
    """Systems → results.jsonl, summary.json and report.html."""

    job: Literal["evaluate"] = "evaluate"
    output: Path
    data: Path
    split: Literal["test", "validation"] = "test"
    num_strings: int = Field(default=300, ge=1)
    systems: tuple[SystemConfig, ...] = Field(min_length=1)
    comparisons: tuple[tuple[str, str], ...] = ()
    """Pairs (a, b): how much better is b than a."""
    confidence_teacher: str | None = None
    """System whose guided and unguided distributions the others' confidence is compared with."""
    recogniser: RecogniserConfig
    speaker_encoder: SpeakerEncoderConfig | None = None
    stability: StabilityConfig = StabilityConfig()
    max_frames: int = Field(default=400, ge=1)
    batch_size: int = Field(default=64, ge=1)
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    num_resamples: int = Field(default=10_000, ge=100)
    cluster_by_speaker: bool = False
    speed: SpeedConfig | None = SpeedConfig()
    num_samples: int = Field(default=4, ge=0)
    """Test strings with audio players in the report."""
    pool: PoolConfig = PoolConfig()
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _known_systems(self) -> "EvaluateConfig":
        names = [system.name for system in self.systems]
        if len(set(names)) != len(names):
            raise ValueError(f"systems: names must differ, got {names}")
        asked = {name for pair in self.comparisons for name in pair} | {self.confidence_teacher} - {None}
        unknown = sorted(str(name) for name in asked if name not in names)
        if unknown:
            raise ValueError(f"comparisons or confidence_teacher name {unknown}; the systems are {names}")
        return self


class ReportConfig(Config):
    """Write the report of an evaluation again, from its results."""

    job: Literal["report"] = "report"
    evaluation: Path
    output: Path


JobConfig = Annotated[
    PrepareConfig | PretrainConfig | GenerateConfig | DistillConfig | EvaluateConfig | ReportConfig,
    Field(discriminator="job"),
]


class DemoConfig(Config):
    """A tour: jobs in order, each reading what the ones before wrote."""

    job: Literal["demo"] = "demo"
    output: Path
    """Holds the jobs' outputs, and copies of the last report and summary."""
    jobs: tuple[JobConfig, ...] = Field(min_length=1)


RunConfig = Annotated[
    PrepareConfig | PretrainConfig | GenerateConfig | DistillConfig | EvaluateConfig | ReportConfig | DemoConfig,
    Field(discriminator="job"),
]
