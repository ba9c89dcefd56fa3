"""How a model is decoded: one config for each family, told apart by ``kind``; what is left out is the plain way."""

import math
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from retort.config import Config
from retort.inference.diffusion_sampling import SolverConfig
from retort.inference.sampling import SamplerConfig
from retort.nn.diffusion_guidance import DiffusionGuidance, NoDiffusionGuidance
from retort.nn.guidance import GuidanceConfig, NoGuidance


class CodecLMDecoding(Config):
    """Of a codec language model: without anything said, unguided at temperature 1."""

    kind: Literal["codec_lm"] = "codec_lm"
    guidance: GuidanceConfig = NoGuidance()
    sampler: SamplerConfig = SamplerConfig()
    scale: float | None = None
    """Guidance scale given as an input to a student that takes one."""

    @property
    def guidance_scale(self) -> float | None:
        """What is written beside the figures: 1.0 is none, None where text and voice are guided apart."""
        if self.scale is not None:
            return self.scale
        guidance = self.guidance.build()
        return guidance.text_scale if not self.guidance_apart else None

    @property
    def guidance_apart(self) -> Mapping[str, float]:
        """Scales of text and voice, by names of figures, where one number does not say both."""
        guidance = self.guidance.build()
        if math.isclose(guidance.text_scale, guidance.speaker_scale):
            return {}
        return {"guidance_text": guidance.text_scale, "guidance_speaker": guidance.speaker_scale}

    @property
    def temperature(self) -> float:
        """At which its tokens are drawn; 0 is greedy."""
        return self.sampler.temperature

    def at_temperature(self, temperature: float) -> "CodecLMDecoding":
        """The same at another temperature."""
        return self.replace(sampler=self.sampler.replace(temperature=temperature))


class MelDiffusionDecoding(Config):
    """Of a denoiser of mels and the codec LM that writes for it: without anything said, both unguided."""

    kind: Literal["mel_diffusion"] = "mel_diffusion"
    lm: CodecLMDecoding = CodecLMDecoding()
    """Of the codec LM."""
    solver: SolverConfig | None = None
    """None is a student's own solver and steps; for a teacher, 80 steps of DDIM."""
    guidance: DiffusionGuidance = NoDiffusionGuidance()
    """Of the denoiser."""

    @property
    def guidance_scale(self) -> float:
        """Of the denoiser, as it is written beside the figures; 1.0 is none."""
        return float(getattr(self.guidance, "scale", 1.0))

    @property
    def temperature(self) -> float:
        """At which the codec LM's tokens are drawn; a denoiser has none."""
        return self.lm.temperature

    def at_temperature(self, temperature: float) -> "MelDiffusionDecoding":
        """The same with its codec LM at another temperature."""
        return self.replace(lm=self.lm.at_temperature(temperature))

    @property
    def guidance_apart(self) -> Mapping[str, float]:
        """Nothing: a denoiser is guided by all of its conditions together."""
        return {}


class ZeroShotDecoding(Config):
    """Of a zero-shot model: without anything said, at two thirds of its prior's noise and its own pace."""

    kind: Literal["zero_shot"] = "zero_shot"
    noise_scale: float = Field(default=0.667, ge=0)
    """Of the prior; at 0 every seed says the same."""
    tempo: float = Field(default=1.0, ge=0.25, le=4)
    """How much faster than the model's own durations."""

    @property
    def guidance_scale(self) -> float:
        """What is written beside the figures: it is never guided."""
        return 1.0

    @property
    def guidance_apart(self) -> Mapping[str, float]:
        """Nothing: see :attr:`guidance_scale`."""
        return {}

    @property
    def temperature(self) -> None:
        """It draws no tokens."""
        return None


Decoding = Annotated[CodecLMDecoding | MelDiffusionDecoding | ZeroShotDecoding, Field(discriminator="kind")]
"""Of any family, told apart by ``kind``."""


def at_temperature(decoding: Decoding, temperature: float) -> Decoding:
    """The same at another temperature, of a family that draws tokens."""
    match decoding:
        case CodecLMDecoding() | MelDiffusionDecoding():
            return decoding.at_temperature(temperature)
        case ZeroShotDecoding():
            raise AssertionError("it draws no tokens, so nobody asks for it")
