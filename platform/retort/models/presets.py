"""Sizes as functions. Each takes what the data decide and returns a configuration.

Of a codec language model these are its vocabularies, of a vocoder its mels.
"""

from collections.abc import Callable
from typing import Literal

from retort.audio.mel import MelConfig
from retort.models.codec_lm import CodecLMConfig
from retort.models.vocoder import VocoderConfig

VocoderPresetName = Literal["tiny", "base"]
PresetName = Literal["spotify_1b3", "spotify_500m", "spotify_180m", "tiny", "demo"]


def sized(
    *, dim: int, num_layers: int, num_heads: int, ffn_dim: int, vocabularies: tuple[int, int, int], dropout: float = 0.0
) -> CodecLMConfig:
    """A configuration with full multi-head attention.

    Args:
        dim: model width.
        num_layers: number of blocks.
        num_heads: attention heads.
        ffn_dim: inner width of the feed-forward.
        vocabularies: text vocabulary size, number of codebooks, codebook size.
        dropout: residual dropout.
    """
    text_vocabulary_size, num_codebooks, codebook_size = vocabularies
    return CodecLMConfig(
        text_vocabulary_size=text_vocabulary_size,
        num_codebooks=num_codebooks,
        codebook_size=codebook_size,
        dim=dim,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        ffn_dim=ffn_dim,
        dropout=dropout,
    )


def spotify_1b3(vocabularies: tuple[int, int, int]) -> CodecLMConfig:
    """Paper 1's teacher and large student: about 1.3B. It states the size only; depth and width are our reading."""
    return sized(dim=2048, num_layers=24, num_heads=16, ffn_dim=5632, vocabularies=vocabularies)


def spotify_500m(vocabularies: tuple[int, int, int]) -> CodecLMConfig:
    """Paper 1's medium student: about 500M, 16 layers, narrower."""
    return sized(dim=1536, num_layers=16, num_heads=12, ffn_dim=4608, vocabularies=vocabularies)


def spotify_180m(vocabularies: tuple[int, int, int]) -> CodecLMConfig:
    """Paper 1's small student: about 180M, 12 layers, minimal width."""
    return sized(dim=1024, num_layers=12, num_heads=8, ffn_dim=3200, vocabularies=vocabularies)


def demo(vocabularies: tuple[int, int, int]) -> CodecLMConfig:
    """The demo's teacher: trains to speak digits in minutes on two CPU cores."""
    return sized(dim=256, num_layers=6, num_heads=4, ffn_dim=640, vocabularies=vocabularies)


def tiny(vocabularies: tuple[int, int, int]) -> CodecLMConfig:
    """For tests: everything real, nothing learned."""
    return sized(dim=32, num_layers=2, num_heads=2, ffn_dim=64, vocabularies=vocabularies)


def preset(name: PresetName) -> Callable[[tuple[int, int, int]], CodecLMConfig]:
    """The preset of a name, as run files give it."""
    match name:
        case "spotify_1b3":
            return spotify_1b3
        case "spotify_500m":
            return spotify_500m
        case "spotify_180m":
            return spotify_180m
        case "demo":
            return demo
        case "tiny":
            return tiny


def vocoder_tiny(mel: MelConfig) -> VocoderConfig:
    """About 0.7M: minutes of training on one CPU core, a hundredth of real time there."""
    return VocoderConfig(mel=mel, dim=128, hidden=384, num_blocks=4)


def vocoder_base(mel: MelConfig) -> VocoderConfig:
    """About 3.5M."""
    return VocoderConfig(mel=mel, dim=256, hidden=768, num_blocks=7)


def vocoder_preset(name: VocoderPresetName) -> Callable[[MelConfig], VocoderConfig]:
    """The vocoder's preset of a name, as run files give it."""
    match name:
        case "tiny":
            return vocoder_tiny
        case "base":
            return vocoder_base
