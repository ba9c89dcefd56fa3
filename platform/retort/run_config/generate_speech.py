"""Black-box teacher and texts → a corpus of recordings."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from retort.config import Config
from retort.data.english import EnglishTexts
from retort.evaluation.asr import RecogniserConfig
from retort.evaluation.stability import StabilityConfig
from retort.inference.black_box.opening import BlackBoxConfig
from retort.run_config.machines import PoolConfig
from retort.run_config.output import Output


class TextFiles(Config):
    """Text files, one utterance a line; a training text that is held out as well is left out, and counted."""

    kind: Literal["files"] = "files"
    train: Path
    validation: Path | None = None
    test: Path | None = None


class SpeechFilterConfig(Config):
    """What a recording must satisfy to be kept; what is dropped is counted by reason."""

    stability: StabilityConfig = StabilityConfig()
    """By the rules and the names of the evaluation; its ``max_wer`` is not used here."""
    min_lufs: float = -45.0
    """Quieter recordings are dropped: loudness can be mended, and what is so quiet is rarely speech."""
    max_lufs: float = -5.0
    max_wer: float | None = Field(default=None, ge=0)
    """Drop recordings that the recogniser mishears by more than this; ``None`` runs no recogniser."""
    recogniser: RecogniserConfig | None = None
    """Should differ from the one that scores the evaluation."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.max_wer is None) != (self.recogniser is None):
            raise ValueError("max_wer and recogniser go together: give both or neither")
        if self.min_lufs >= self.max_lufs:
            raise ValueError(f"min_lufs {self.min_lufs:g} is not below max_lufs {self.max_lufs:g}")
        return self


class GenerateSpeechConfig(Config):
    """Texts → recordings by a teacher that only speaks, which ``retort prepare`` reads as parquet."""

    job: Literal["generate"] = "generate"
    makes: Literal["speech"]
    output: Output
    teacher: BlackBoxConfig
    texts: Annotated[TextFiles | EnglishTexts, Field(discriminator="kind")]
    held_out_voices: tuple[str, ...] = ()
    """Of the teacher's voices, those that say test texts alone, as the others do too: a model that is trained on the
    corpus never hears them."""
    filters: SpeechFilterConfig = SpeechFilterConfig()
    audio_format: Literal["flac", "wav"] = "flac"
    """Of the recordings in the corpus; both keep 16 bits of each sample."""
    chunk_size: int = Field(default=32, ge=1)
    """Lines that are done, or done again, at once."""
    pool: PoolConfig = PoolConfig()
    seed: int = Field(default=0, ge=0)
