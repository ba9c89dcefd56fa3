"""How a model is decoded: one config for each family, told apart by ``kind``; what is left out is the plain way."""

from typing import Literal

from retort.config import Config
from retort.inference.sampling import SamplerConfig
from retort.nn.guidance import GuidanceConfig, NoGuidance


class CodecLMDecoding(Config):
    """Of a codec language model: without anything said, unguided at temperature 1."""

    kind: Literal["codec_lm"] = "codec_lm"
    guidance: GuidanceConfig = NoGuidance()
    sampler: SamplerConfig = SamplerConfig()
    scale: float | None = None
    """Guidance scale given as an input to a student that takes one."""

    @property
    def guidance_scale(self) -> float:
        """What is written beside the figures; 1.0 is none."""
        return float(getattr(self.guidance, "scale", 1.0))


Decoding = CodecLMDecoding
"""Of any family: a union told apart by ``kind`` as soon as there are two."""
