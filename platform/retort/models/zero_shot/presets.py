"""Sizes of zero-shot models; what the data decide (phones, mels, timbre, scales) is filled in."""

from typing import Literal

from pydantic import Field, ValidationError

from retort.config import Config, first_fault
from retort.errors import ConfigError
from retort.models.zero_shot.config import FeatureScales, ZeroShotConfig

ZeroShotPresetName = Literal["zero_shot_tiny", "zero_shot_small", "zero_shot_paper"]


class ZeroShotShape(Config):
    """A size of one's own; see :class:`ZeroShotConfig` for the fields."""

    kind: Literal["shape"] = "shape"
    dim: int = Field(ge=8)
    num_layers: int = Field(ge=1)
    num_heads: int = Field(ge=1)
    ffn_dim: int = Field(ge=8)
    mel_channels: tuple[int, ...] = (8, 16, 24)
    latent_dim: int = 16
    flow_dim: int = 64
    num_couplings: int = 4
    style_layers: int = Field(default=2, ge=1)
    style_stride: int = Field(default=1, ge=1)
    predictor_dim: int = Field(ge=8)
    decoder_dim: int = Field(ge=8)
    patch_frames: int = 2
    decoder_dilations: tuple[int, ...] = (1, 2, 4, 1)
    decoder_kernel: int = 5
    dropout: float = Field(default=0.1, ge=0, lt=1)


class ZeroShotPreset(Config):
    """A size with a name."""

    kind: Literal["preset"] = "preset"
    name: ZeroShotPresetName
    style_stride: int = Field(default=2, ge=1)
    """Prompt frames averaged into one style frame."""
    dropout: float = Field(default=0.1, ge=0, lt=1)


def zero_shot_tiny() -> ZeroShotShape:
    """At most 3M: learns on one thread in minutes."""
    return ZeroShotShape(
        dim=128, num_layers=2, num_heads=4, ffn_dim=256, mel_channels=(8, 16), num_couplings=2, style_layers=1,
        predictor_dim=96, decoder_dim=192,
    )  # fmt: skip


def zero_shot_small() -> ZeroShotShape:
    """At most 7M."""
    return ZeroShotShape(
        dim=192, num_layers=4, num_heads=4, ffn_dim=576, mel_channels=(8, 16, 24), predictor_dim=192, decoder_dim=256,
        decoder_dilations=(1, 2, 4, 2, 1),
    )  # fmt: skip


def zero_shot_paper() -> ZeroShotShape:
    """At most the paper's 22.5M, read as without the timbre encoder (METHODS.md 4.1); its layers are not published."""
    return ZeroShotShape(
        dim=352, num_layers=6, num_heads=4, ffn_dim=928, mel_channels=(16, 32, 64), flow_dim=96, predictor_dim=256,
        decoder_dim=384, decoder_dilations=(1, 2, 4, 8, 4, 2, 1),
    )  # fmt: skip


def shape_of(size: ZeroShotPreset | ZeroShotShape) -> ZeroShotShape:
    """The size that a run file means."""
    match size:
        case ZeroShotShape():
            return size
        case ZeroShotPreset(name=name):
            return _preset(name).replace(style_stride=size.style_stride, dropout=size.dropout)


def _preset(name: ZeroShotPresetName) -> ZeroShotShape:
    match name:
        case "zero_shot_tiny":
            return zero_shot_tiny()
        case "zero_shot_small":
            return zero_shot_small()
        case "zero_shot_paper":
            return zero_shot_paper()


def zero_shot_config(
    size: ZeroShotPreset | ZeroShotShape, *, num_phones: int, num_mels: int, timbre_dim: int, scales: FeatureScales
) -> ZeroShotConfig:
    """The whole configuration.

    Raises:
        ConfigError: the numbers do not make a model.
    """
    given = {name: value for name, value in dict(shape_of(size)).items() if name != "kind"}
    try:
        return ZeroShotConfig(num_phones=num_phones, num_mels=num_mels, timbre_dim=timbre_dim, scales=scales, **given)
    except ValidationError as error:
        raise ConfigError(f"the model's size does not work: {first_fault(error)}") from None
