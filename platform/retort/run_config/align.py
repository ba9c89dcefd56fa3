"""Corpus → durations of its phones."""

from typing import Annotated, Literal

from pydantic import Field

from retort.audio.mel import MelConfig
from retort.config import Config
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


class AlignConfig(Config):
    """Corpus → durations of its phones, by an aligner that is trained on it."""

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
    aligner: Annotated[TrainAlignerConfig | SavedAligner, Field(discriminator="kind")] = TrainAlignerConfig()
    plausible: PlausibilityConfig = PlausibilityConfig()
    max_reject_fraction: float = Field(default=0.1, ge=0, le=1)
    pool: PoolConfig = PoolConfig()
