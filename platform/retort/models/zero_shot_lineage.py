"""What a zero-shot model's weights stand for: how they were trained, and what phones, mels and timbres they know."""

from typing import Literal

from pydantic import Field, model_validator

from retort.audio.mel import MelConfig
from retort.config import Config


class SelfDistilled(Config):
    """What the second stage was like."""

    teacher_fingerprint: str
    swaps_fingerprint: str
    """Of the phone mel set that the teacher spoke."""
    sigma: float = Field(ge=0, le=1)
    """Probability that the source or target of a row is one that the teacher spoke, where the row has one."""
    swapped_share: float | None = Field(default=None, ge=0, le=1)
    """Of the rows: sigma times the share of the rows that have one. None where it was not written down."""
    direction: Literal["synth_source", "synth_target"]
    init: Literal["teacher", "random"]


class ZeroShotLineage(Config):
    """What a zero-shot model's weights stand for; speaking, evaluation and serving read it."""

    method: str = Field(min_length=1)
    """``kind`` of the method that trained it."""
    phones: tuple[str, ...] = Field(min_length=1)
    """Inventory in the order of the phones' numbers, without the pause."""
    voice: str
    """Of espeak-ng, that reads the texts."""
    language: str
    """Of the texts."""
    mel: MelConfig
    timbre_encoder: str
    """Name of the frozen speaker encoder."""
    data_fingerprint: str
    """Of the phone mel set of recordings."""
    durations_fingerprint: str
    target_lufs: float | None = None
    """Loudness of its recordings, to which prompts are brought; None where they were left as they were, or where nobody
    wrote it down."""
    self_distilled: SelfDistilled | None = None
    """None for a teacher."""

    @property
    def teacher_fingerprint(self) -> str | None:
        """Of the teacher, where there was one."""
        return None if self.self_distilled is None else self.self_distilled.teacher_fingerprint

    @model_validator(mode="after")
    def _consistent(self) -> "ZeroShotLineage":
        if (self.method == "zero_shot_pretrain") != (self.self_distilled is None):
            raise ValueError(f"method {self.method} and self_distilled {self.self_distilled} do not fit")
        return self
