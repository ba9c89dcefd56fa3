"""What a zero-shot model is: its sizes, what the data decide, and how its features are scaled."""

import math
from typing import Literal

from pydantic import Field, model_validator
from torch import Tensor

from retort.config import Config


class FeatureScales(Config):
    """Means and standard deviations of the training rows, by which features come near 0 and 1."""

    mel_mean: float = -5.0
    """Of natural-log mel amplitudes, over all mels together."""
    mel_std: float = Field(default=2.0, gt=0)
    log_f0_mean: float = 5.0
    """Of ln(Hz), over voiced phones."""
    log_f0_std: float = Field(default=0.3, gt=0)
    energy_mean: float = 0.0
    """Of ln of the mel's L2 norm, over phones."""
    energy_std: float = Field(default=1.0, gt=0)
    log_frames_mean: float = math.log(7.0)
    """Of ln(1 + frames), over phones."""
    log_frames_std: float = Field(default=0.6, gt=0)

    def mel_in(self, mel: Tensor) -> Tensor:
        """Natural-log mel to what the network reads and writes."""
        return (mel - self.mel_mean) / self.mel_std

    def mel_out(self, scaled: Tensor) -> Tensor:
        """The reverse of :meth:`mel_in`."""
        return scaled * self.mel_std + self.mel_mean


class ZeroShotConfig(Config):
    """Shape of a :class:`retort.models.zero_shot.model.ZeroShot`; it is stored beside the weights."""

    type: Literal["zero_shot"] = "zero_shot"
    num_phones: int = Field(ge=1)
    """Of the inventory, without the pause."""
    num_mels: int = Field(ge=8)
    timbre_dim: int = Field(ge=1)
    """Width of the frozen speaker encoder's vectors."""
    scales: FeatureScales = FeatureScales()
    dim: int = Field(ge=8)
    """Width of phones and of style frames."""
    num_layers: int = Field(ge=1)
    """Blocks of the linguistic encoder."""
    num_heads: int = Field(ge=1)
    """Of the linguistic encoder and of the cross-attention to the prompt."""
    ffn_dim: int = Field(ge=8)
    mel_channels: tuple[int, ...] = Field(min_length=1)
    """Of the mel encoder's stages; the first halves the frames and quarters the mels, the others halve the mels."""
    latent_dim: int = Field(ge=2, multiple_of=2)
    """Of what a phone takes from the source mel."""
    flow_dim: int = Field(ge=1)
    num_couplings: int = Field(ge=2, multiple_of=2)
    style_layers: int = Field(ge=1)
    """Blocks of the style encoder."""
    style_stride: int = Field(default=1, ge=1)
    """Prompt frames averaged into one style frame."""
    predictor_dim: int = Field(ge=8)
    """Of the predictor of durations, melody and loudness."""
    decoder_dim: int = Field(ge=8)
    patch_frames: int = Field(default=2, ge=1)
    """Mel frames in one position of the mel decoder."""
    decoder_dilations: tuple[int, ...] = Field(min_length=1)
    """Of the mel decoder's blocks."""
    decoder_kernel: int = Field(default=5, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Of linguistic encoder and predictors."""

    @model_validator(mode="after")
    def _consistent(self) -> "ZeroShotConfig":
        if self.dim % self.num_heads or (self.dim // self.num_heads) % 2:
            raise ValueError(f"dim {self.dim} must be an even multiple of num_heads {self.num_heads}")
        if self.decoder_dim % self.patch_frames:
            raise ValueError(f"decoder_dim {self.decoder_dim} must be a multiple of patch_frames {self.patch_frames}")
        if self.decoder_kernel % 2 == 0:
            raise ValueError(f"decoder_kernel {self.decoder_kernel} must be odd")
        if any(channels < 1 for channels in self.mel_channels) or any(wide < 1 for wide in self.decoder_dilations):
            raise ValueError("mel_channels and decoder_dilations must be 1 or more")
        return self
