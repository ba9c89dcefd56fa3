"""What a file in ``jobs/configs`` must satisfy: a union of jobs, told apart by ``job``.

A tour (``job: demo``) is a list of jobs in one file. Each job writes to its ``output`` folder: ``run.yaml`` (the
resolved configuration), ``metrics.jsonl``, ``checkpoints/`` where it trains, and ``result/``, the committed artifact
that the next job reads.
"""

from typing import Annotated, Literal

from pydantic import Field

from retort.config import Config
from retort.run_config.align import AlignConfig, EspeakTimes, SavedAligner, TextGridTimes
from retort.run_config.evaluate import ComparisonConfig, EvaluateConfig, ReportConfig, SpeedConfig, SystemConfig
from retort.run_config.generate import CorpusTexts, DigitTexts, FileTexts, FilterConfig, GenerateConfig, TextSource
from retort.run_config.generate_mels import GenerateMelsConfig, MelFilterConfig, RecordedMels, SyntheticMels
from retort.run_config.generate_phone_mels import (
    GeneratePhoneMelsConfig,
    RecordedPhoneMels,
    SwapFilterConfig,
    SwappedPhoneMels,
)
from retort.run_config.generate_speech import GenerateSpeechConfig, SpeechFilterConfig, TextFiles
from retort.run_config.job import GenerateJob, JobConfig
from retort.run_config.machines import PoolConfig, WorkersConfig
from retort.run_config.output import Output
from retort.run_config.outside import (
    BundleConfig,
    ExportConfig,
    ExportJob,
    ImportConfig,
    SpeechTokensConfig,
    TemplateConfig,
)
from retort.run_config.prepare import PrepareConfig, SavedCodec, SavedText
from retort.run_config.prune import PruneConfig
from retort.run_config.training import (
    DistillConfig,
    DistillJob,
    DistillMelsConfig,
    DistillZeroShotConfig,
    MelMethod,
    Method,
    PretrainConfig,
    PretrainJob,
    PretrainMelsConfig,
    PretrainVocoderConfig,
    PretrainZeroShotConfig,
    TrainingConfig,
)
from retort.run_config.tune import TuneConfig

__all__ = [
    "AlignConfig",
    "AnyConfig",
    "BundleConfig",
    "ComparisonConfig",
    "CorpusTexts",
    "DemoConfig",
    "DigitTexts",
    "DistillConfig",
    "DistillJob",
    "DistillMelsConfig",
    "DistillZeroShotConfig",
    "EspeakTimes",
    "EvaluateConfig",
    "ExportConfig",
    "ExportJob",
    "FileTexts",
    "FilterConfig",
    "GenerateConfig",
    "GenerateJob",
    "GenerateMelsConfig",
    "GeneratePhoneMelsConfig",
    "GenerateSpeechConfig",
    "ImportConfig",
    "JobConfig",
    "MelFilterConfig",
    "MelMethod",
    "Method",
    "PoolConfig",
    "PrepareConfig",
    "PretrainConfig",
    "PretrainJob",
    "PretrainMelsConfig",
    "PretrainVocoderConfig",
    "PretrainZeroShotConfig",
    "PruneConfig",
    "RecordedMels",
    "RecordedPhoneMels",
    "ReportConfig",
    "RunConfig",
    "SavedAligner",
    "SavedCodec",
    "SavedText",
    "SpeechFilterConfig",
    "SpeechTokensConfig",
    "SpeedConfig",
    "SwapFilterConfig",
    "SwappedPhoneMels",
    "SyntheticMels",
    "SystemConfig",
    "TemplateConfig",
    "TextFiles",
    "TextGridTimes",
    "TextSource",
    "TrainingConfig",
    "TuneConfig",
    "WorkersConfig",
]


class DemoConfig(Config):
    """A tour: jobs in order, each reading what the ones before wrote."""

    job: Literal["demo"] = "demo"
    output: Output
    """Holds the jobs' outputs, and copies of the last report and summary."""
    jobs: tuple[JobConfig, ...] = Field(min_length=1)


AnyConfig = (
    PrepareConfig
    | AlignConfig
    | PretrainJob
    | ImportConfig
    | GenerateJob
    | PruneConfig
    | DistillJob
    | TuneConfig
    | EvaluateConfig
    | ReportConfig
    | ExportJob
    | DemoConfig
)
"""Any job, in the order in which a person uses them."""

RunConfig = Annotated[AnyConfig, Field(discriminator="job")]
