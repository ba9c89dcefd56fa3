"""Aligned corpus → mels with phones; and, of these and a zero-shot teacher, the same phones in other voices."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from retort.config import Config
from retort.data.readers import CorpusConfig
from retort.data.splits import Split
from retort.evaluation.asr import RecogniserConfig
from retort.location import Location
from retort.models.zero_shot.timbre import ResemblyzerTimbreConfig, TimbreEncoderConfig
from retort.run_config.machines import PoolConfig
from retort.run_config.output import Output


class RecordedPhoneMels(Config):
    """The mels of the recordings that were aligned: what a zero-shot model is trained on."""

    kind: Literal["recordings"] = "recordings"
    durations: Location
    """Of ``retort align``, whose run file says where the recordings are and what is done to them."""
    corpus: CorpusConfig | None = None
    """Where the recordings lie now; ``None`` is where they were aligned. Rows are found by their ids."""
    splits: tuple[Split, ...] = Field(default=("train", "validation", "test"), min_length=1)
    timbre_encoder: TimbreEncoderConfig = ResemblyzerTimbreConfig()
    """It stays frozen; models are told voices by it, so judge them by another one."""


class SwapFilterConfig(Config):
    """What a row in another voice must satisfy to be kept; what is dropped is counted by reason."""

    min_similarity_gain: float | None = Field(default=0.0, ge=-2, le=2)
    """Drop rows whose voice is not by more than this nearer to the one asked for than to the source's, as cosines of
    the timbre encoder; ``None`` keeps them."""
    max_cer: float | None = Field(default=None, ge=0)
    """Drop rows of which the recogniser mishears more than this share of characters; ``None`` runs no recogniser."""
    recogniser: RecogniserConfig | None = None
    """Must differ from the one that scores the evaluation."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.max_cer is None) != (self.recogniser is None):
            raise ValueError("max_cer and recogniser go together: give both or neither")
        return self


class SwappedPhoneMels(Config):
    """Each training row in the voices of other speakers, phone by phone as long as the row's own."""

    kind: Literal["swapped"] = "swapped"
    teacher: Location
    """A zero-shot model."""
    mels: Location
    """The phone mel set of recordings whose training rows are said again, and whose training rows give the voices."""
    pairs_per_row: int = Field(default=1, ge=1)
    """Other speakers whose voices each row is said in."""
    noise_scale: float = Field(default=0.8, ge=0)
    """Of the teacher's prior."""
    timbre_encoder: TimbreEncoderConfig = ResemblyzerTimbreConfig()
    """The one of ``mels``: it tells which voice a row is nearer to."""
    filters: SwapFilterConfig = SwapFilterConfig()
    chunk_size: int = Field(default=32, ge=1)
    """Rows that are made, or made again, at once."""


class GeneratePhoneMelsConfig(Config):
    """Aligned corpus, or zero-shot teacher and its corpus → mels with phones."""

    job: Literal["generate"] = "generate"
    makes: Literal["phone_mels"]
    output: Output
    source: Annotated[RecordedPhoneMels | SwappedPhoneMels, Field(discriminator="kind")]
    pool: PoolConfig = PoolConfig()
    seed: int = Field(default=0, ge=0)
