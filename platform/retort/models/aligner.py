"""A small convolutional network that says of each mel frame which phone it is, or that it is none: a pause."""

from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from retort.audio.codec_files import (
    CONFIG_NAME,
    check_fingerprint,
    check_weights,
    fingerprint_of,
    read_codec_weights,
    write_codec_folder,
)
from retort.audio.mel import MelConfig
from retort.config import Config
from retort.errors import DataError

PAUSE = 0
"""Class of frames in which nothing is said; CTC's blank."""
_STRESS = str.maketrans("", "", "ˈˌ")


class AlignerConfig(Config):
    """What an aligner is."""

    voice: str
    """Of espeak-ng, whose phones it knows."""
    phones: tuple[str, ...] = Field(min_length=1)
    """Without stress; class ``n + 1`` is phone ``n``."""
    mel: MelConfig = MelConfig()
    dim: int = Field(default=128, ge=1)
    dilations: tuple[int, ...] = (1, 2, 4, 1)
    """One residual block each, of kernel 5: what a frame sees is ``2 * sum + 1`` frames to either side."""


class Aligner(nn.Module):
    """Log-mels to log-probabilities of pause and phones, frame by frame."""

    def __init__(self, config: AlignerConfig) -> None:
        super().__init__()
        self.config = config
        self.enter = nn.Conv1d(config.mel.num_mels, config.dim, 3, padding=1)
        self.blocks = nn.ModuleList(_Block(config.dim, dilation) for dilation in config.dilations)
        self.leave = nn.Linear(config.dim, len(config.phones) + 1)

    def forward(self, mel_BTM: Tensor) -> Tensor:
        """Log-probabilities [B, T, 1 + P] of normalised log-mels (see :func:`normalised`)."""
        x_BDT = self.enter(mel_BTM.transpose(1, 2))
        for block in self.blocks:
            x_BDT = block(x_BDT)
        logits_BTC: Tensor = self.leave(x_BDT.transpose(1, 2))
        return functional.log_softmax(logits_BTC, dim=-1)

    def fingerprint(self) -> str:
        """Hash of its weights and of what it is."""
        return fingerprint_of("aligner", self.config.model_dump(mode="json"), self.state_dict())

    def save(self, folder: Path) -> None:
        """Write it; :func:`open_aligner` reads it."""
        write_codec_folder(folder, self.config, self.state_dict(), self.fingerprint())


def open_aligner(folder: Path) -> Aligner:
    """An aligner that was saved.

    Raises:
        DataError: the folder holds none, or it was changed since.
    """
    try:
        config = AlignerConfig.model_validate_json((folder / CONFIG_NAME).read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: no aligner of this version ({str(error)[:200]}); run `retort align`") from None
    with torch.random.fork_rng(devices=[]):
        model = Aligner(config)
    weights, saved = read_codec_weights(folder)
    check_weights(folder, weights, {name: tuple(value.shape) for name, value in model.state_dict().items()})
    model.load_state_dict(weights)
    check_fingerprint(folder, saved, model.fingerprint())
    return model.eval()


class _Block(nn.Module):
    """Norm, dilated convolution, gate, and back onto the residual."""

    def __init__(self, dim: int, dilation: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, dim)
        self.mix = nn.Conv1d(dim, 2 * dim, 5, padding=2 * dilation, dilation=dilation)
        self.back = nn.Conv1d(dim, dim, 1)

    def forward(self, x_BDT: Tensor) -> Tensor:
        added_BDT: Tensor = self.back(functional.glu(self.mix(self.norm(x_BDT)), dim=1))
        return x_BDT + added_BDT


def normalised(mel_TM: Tensor) -> Tensor:
    """Log-mels [T, M] without the recording's own spectrum and level: each mel's mean 0, all together variance 1."""
    centred_TM = mel_TM - mel_TM.mean(dim=0, keepdim=True)
    return centred_TM / centred_TM.std().clamp(min=1e-3)


def without_stress(phones: Sequence[str]) -> tuple[str, ...]:
    """The phones as an aligner knows them."""
    return tuple(phone.translate(_STRESS) for phone in phones)
