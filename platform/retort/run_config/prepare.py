"""Corpus → token set."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from retort.audio.codec import EncodecConfig, MelRVQConfig
from retort.config import Config
from retort.data.readers import CorpusConfig
from retort.evaluation.speaker import SpeakerEncoderConfig
from retort.run_config.machines import PoolConfig
from retort.text.front_end import CharactersConfig, PhonemesConfig


class SavedCodec(Config):
    """The codec of an earlier token set or a saved codec folder."""

    kind: Literal["saved"] = "saved"
    path: Path


class SavedText(Config):
    """The text front-end of an earlier token set or of a model, such as an imported one."""

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
    text: Annotated[CharactersConfig | PhonemesConfig | SavedText, Field(discriminator="kind")]
    splits: SplitConfig = SplitConfig()
    speaker_encoder: SpeakerEncoderConfig | None = None
    """Writes an embedding for each row, for similarity scores later; ``None`` writes none."""
    max_reject_fraction: float = Field(default=0.1, ge=0, le=1)
    pool: PoolConfig = PoolConfig()
    seed: int = Field(default=0, ge=0)
