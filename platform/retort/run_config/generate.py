"""Teacher → synthetic data."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from retort.config import Config
from retort.evaluation.asr import RecogniserConfig
from retort.evaluation.stability import StabilityConfig
from retort.inference.sampling import SamplerConfig
from retort.location import Location
from retort.nn.guidance import GuidanceConfig
from retort.run_config.machines import PoolConfig
from retort.run_config.output import Output


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
    """Teacher → synthetic data: guided top-k for real tokens, and for sequences sampled from it or from a student."""

    job: Literal["generate"] = "generate"
    makes: Literal["tokens"] = "tokens"
    output: Output
    teacher: Location
    data: Location
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
    sampled_by: Location | None = None
    """A model that the sequences are sampled from, without guidance; ``None`` is the guided teacher. Those of a student
    are on-policy (GKD, Agarwal et al., arXiv 2306.13649): the guided teacher says what it would have said in each place
    of what the student says."""
    sampler: SamplerConfig = SamplerConfig()
    max_frames: int = Field(default=400, ge=1)
    """Longest sampled sequence, in codec frames; longer ones are runaways."""
    filters: FilterConfig = FilterConfig()
    batch_size: int = Field(default=32, ge=1)
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    pool: PoolConfig = PoolConfig()
    seed: int = Field(default=0, ge=0)
