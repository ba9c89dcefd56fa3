"""Corpus → token set."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from retort.audio.codec import AnyCodecConfig
from retort.config import Config
from retort.data.readers import CorpusConfig
from retort.data.recordings import AudioConfig
from retort.data.splits import SplitConfig
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


class PrepareConfig(Config):
    """Corpus → token set."""

    job: Literal["prepare"] = "prepare"
    output: Path
    corpus: CorpusConfig
    audio: AudioConfig = AudioConfig()
    codec: Annotated[AnyCodecConfig | SavedCodec, Field(discriminator="kind")]
    codec_fit_utterances: int = Field(default=1000, ge=1)
    """Training utterances that a fitted codec sees."""
    text: Annotated[CharactersConfig | PhonemesConfig | SavedText, Field(discriminator="kind")]
    splits: SplitConfig = SplitConfig()
    speaker_encoder: SpeakerEncoderConfig | None = None
    """Writes an embedding for each row, for similarity scores later; ``None`` writes none."""
    max_reject_fraction: float = Field(default=0.1, ge=0, le=1)
    pool: PoolConfig = PoolConfig()
