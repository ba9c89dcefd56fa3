"""Corpus → durations of its phones."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from retort.audio.mel import MelConfig
from retort.config import Config
from retort.data.digits import DigitsConfig
from retort.data.readers import CorpusConfig
from retort.data.recordings import AudioConfig
from retort.data.splits import SplitConfig
from retort.inference.aligning import PlausibilityConfig
from retort.location import Location
from retort.methods.phone_alignment import TrainAlignerConfig
from retort.run_config.machines import PoolConfig
from retort.run_config.output import Output


class SavedAligner(Config):
    """The aligner of an earlier run."""

    kind: Literal["saved"] = "saved"
    path: Location


class TextGridTimes(Config):
    """Times of another aligner: TextGrids with the tiers words and phones, as ``mfa align`` writes them."""

    kind: Literal["text_grids"]
    folder: Path
    """On every node. Files are named as the corpus' ids, or as its recordings."""


class EspeakTimes(Config):
    """espeak-ng's own times, of spoken digits in its voices."""

    kind: Literal["espeak"]


AlignerConfig = Annotated[TrainAlignerConfig | SavedAligner | TextGridTimes | EspeakTimes, Field(discriminator="kind")]


class AlignConfig(Config):
    """Corpus → durations of its phones: by an aligner that is trained on it, a saved one, or times that are known."""

    job: Literal["align"] = "align"
    output: Output
    corpus: CorpusConfig
    audio: AudioConfig = AudioConfig()
    """As in the corpus' ``retort prepare``: what is trimmed there has no frames here."""
    splits: SplitConfig = SplitConfig()
    voice: str = "en-us"
    """Of espeak-ng, which reads the texts."""
    language: str = "en"
    """Of the texts, whose numbers and the like are written out first."""
    mel: MelConfig = MelConfig()
    """Whose frames are counted; of a saved aligner its own must be the same."""
    aligner: AlignerConfig = TrainAlignerConfig()
    plausible: PlausibilityConfig = PlausibilityConfig()
    max_reject_fraction: float = Field(default=0.1, ge=0, le=1)
    pool: PoolConfig = PoolConfig()

    @model_validator(mode="after")
    def _times_fit(self) -> Self:
        if isinstance(self.aligner, TextGridTimes | EspeakTimes) and self.audio.trim_silence_dbfs is not None:
            raise ValueError(
                f"aligner {self.aligner.kind} has times from the beginning of each recording, and "
                "audio.trim_silence_dbfs cuts that off; set it to null, here and in the corpus' `retort prepare`"
            )
        if isinstance(self.aligner, EspeakTimes) and not isinstance(self.corpus, DigitsConfig):
            raise ValueError(f"aligner espeak knows the times of corpus.kind: digits alone, not of {self.corpus.kind}")
        return self
