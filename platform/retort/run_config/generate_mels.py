"""Codec LM and recordings, or codec LM and guided denoiser → mels with latents."""

from typing import Annotated, Literal

from pydantic import Field

from retort.config import Config
from retort.data.prompts import PROMPT_MAX_FRAMES
from retort.inference.diffusion_sampling import SolverConfig
from retort.inference.sampling import SamplerConfig
from retort.location import Location
from retort.nn.diffusion_guidance import DiffusionGuidance
from retort.nn.guidance import GuidanceConfig
from retort.run_config.generate import CorpusTexts, FilterConfig, TextSource
from retort.run_config.machines import PoolConfig
from retort.run_config.output import Output


class RecordedMels(Config):
    """The mels of the token set's own recordings, and the latents of their codes: what a denoiser is trained on."""

    kind: Literal["recordings"] = "recordings"
    splits: tuple[Literal["train", "validation", "test"], ...] = Field(default=("train", "validation"), min_length=1)
    max_rows: int | None = Field(default=None, ge=1)
    """A sample of the rows that no order changes; ``None`` takes all."""


class MelFilterConfig(Config):
    """What a denoised mel must satisfy to be kept; what is dropped is counted by reason."""

    max_saturated_ratio: float = Field(default=0.02, ge=0, le=1)
    """Share of values at the top of the denoiser's range, where it clamps."""
    silence_nats: float = Field(default=1.0, gt=0)
    """A frame is silent if no mel lies this far above the bottom of the range."""
    max_silence_ratio: float = Field(default=0.8, gt=0, le=1)
    """Share of silent frames."""


class SyntheticMels(Config):
    """The LM says new texts and the guided denoiser turns its codes' latents into mels: what students learn from."""

    kind: Literal["synthetic"] = "synthetic"
    teacher: Location
    """The denoiser."""
    voices: Location
    """The mel set of recordings, whose training rows give the voices."""
    num_rows: int = Field(ge=1)
    """Utterances to make, before filters."""
    texts: TextSource = CorpusTexts()
    lm_guidance: GuidanceConfig
    sampler: SamplerConfig = SamplerConfig()
    max_frames: int = Field(default=400, ge=1)
    """Longest sequence, in codec frames; longer ones are runaways."""
    filters: FilterConfig = FilterConfig()
    """Of the LM's codes."""
    guidance: DiffusionGuidance
    """Of the denoiser."""
    solver: SolverConfig
    mel_filters: MelFilterConfig = MelFilterConfig()


class GenerateMelsConfig(Config):
    """Codec LM → mels with latents."""

    job: Literal["generate"] = "generate"
    makes: Literal["mels"]
    output: Output
    lm: Location
    """The codec LM whose latents the denoiser reads."""
    data: Location
    """The token set."""
    source: Annotated[RecordedMels | SyntheticMels, Field(discriminator="kind")]
    voice_max_frames: int = Field(default=PROMPT_MAX_FRAMES, ge=1)
    """Longest voice, in codec frames; longer ones are cropped."""
    batch_size: int = Field(default=16, ge=1)
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    pool: PoolConfig = PoolConfig()
    seed: int = Field(default=0, ge=0)
