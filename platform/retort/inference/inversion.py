"""What makes sound of mels: Griffin-Lim, which needs no weights, or a vocoder that was trained on recordings."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor

from retort.audio.griffin_lim import GriffinLimStream, griffin_lim, whole_mel_stream
from retort.audio.mel import MelConfig
from retort.config import Config
from retort.errors import DataError
from retort.location import Location
from retort.models.codec_lm import count_parameters
from retort.models.vocoder import Vocoder
from retort.models.vocoder_stream import VocoderStream, vocoded
from retort.models.weights import CONFIG_FILE, WEIGHTS_FILE, LoadedVocoder, load_vocoder
from retort.store.results import folder_with

BESIDE = "vocoder"
"""Folder of the vocoder that a model speaks through, in the model's own."""


class GriffinLimInversion(Config):
    """No weights: phases are looked for by going to samples and back."""

    kind: Literal["griffin_lim"] = "griffin_lim"
    num_iterations: int = Field(default=32, ge=1)


class VocoderInversion(Config):
    """A vocoder that ``retort pretrain`` trained."""

    kind: Literal["vocoder"] = "vocoder"
    path: Location
    """A job's output, a name in a registry, or any folder with ``config.json`` and ``model.safetensors``."""


Inversion = Annotated[GriffinLimInversion | VocoderInversion, Field(discriminator="kind")]


class SoundStream(Protocol):
    """Sound of mels that arrive in blocks of one size."""

    def push(self, log_mel_MT: Tensor) -> Tensor:
        """Add one block of features [M, block]; returns the samples that became final, maybe none."""
        ...

    def finish(self) -> Tensor:
        """The remaining samples; together with what was pushed out, a hop for each frame."""
        ...


class Inverter(Protocol):
    """Makes sound of mels."""

    @property
    def name(self) -> str:
        """What reports say spoke: ``griffin_lim``, or the vocoder's fingerprint."""
        ...

    def sound(self, log_mel_MT: Tensor, *, seed: int = 0) -> Tensor:
        """Samples [T * hop_samples] of a whole mel; the same seed gives the same samples."""
        ...

    def stream(self, *, block_frames: int, seed: int = 0) -> SoundStream:
        """The same for blocks, as they come; the samples need not be those of :meth:`sound`."""
        ...

    def whole(self) -> SoundStream:
        """The same little by little, frame by frame, where all of the mel is there: the samples of :meth:`sound`."""
        ...

    @property
    def parameters(self) -> int:
        """How many numbers it has learned."""
        ...


@dataclass(frozen=True)
class GriffinLimInverter:
    """:mod:`retort.audio.griffin_lim` as an :class:`Inverter`."""

    config: GriffinLimInversion
    mel: MelConfig

    @property
    def name(self) -> str:
        """See :class:`Inverter`."""
        return "griffin_lim"

    def sound(self, log_mel_MT: Tensor, *, seed: int = 0) -> Tensor:
        """See :class:`Inverter`."""
        return griffin_lim(log_mel_MT, self.mel, num_iterations=self.config.num_iterations, seed=seed)

    def stream(self, *, block_frames: int, seed: int = 0) -> SoundStream:
        """See :class:`Inverter`."""
        rounds = self.config.num_iterations
        return GriffinLimStream(self.mel, block_frames=block_frames, num_iterations=rounds, seed=seed)

    def whole(self) -> SoundStream:
        """See :class:`Inverter`."""
        return whole_mel_stream(self.mel, num_iterations=self.config.num_iterations)

    @property
    def parameters(self) -> int:
        """See :class:`Inverter`."""
        return 0


@dataclass(frozen=True)
class VocoderInverter:
    """A vocoder as an :class:`Inverter`."""

    loaded: LoadedVocoder

    @property
    def name(self) -> str:
        """See :class:`Inverter`."""
        return self.loaded.fingerprint

    def sound(self, log_mel_MT: Tensor, *, seed: int = 0) -> Tensor:
        """See :class:`Inverter`."""
        return vocoded(self.loaded.model, log_mel_MT, seed=seed)

    def stream(self, *, block_frames: int, seed: int = 0) -> SoundStream:
        """See :class:`Inverter`."""
        return VocoderStream(self.loaded.model, block_frames=block_frames, seed=seed)

    def whole(self) -> SoundStream:
        """See :class:`Inverter`. All of it comes at the end: a sentence takes a hundredth of its length."""
        return _AtOnce(self.loaded.model)

    @property
    def parameters(self) -> int:
        """See :class:`Inverter`."""
        return count_parameters(self.loaded.model)


@dataclass
class _AtOnce:
    """Keeps a mel until it is whole."""

    vocoder: Vocoder
    frames: list[Tensor] = field(default_factory=list)

    def push(self, log_mel_MT: Tensor) -> Tensor:
        """Nothing yet."""
        self.frames.append(log_mel_MT)
        return torch.zeros(0)

    def finish(self) -> Tensor:
        """The sound of all frames."""
        return vocoded(self.vocoder, torch.cat(self.frames, dim=1)) if self.frames else torch.zeros(0)


def open_inversion(config: GriffinLimInversion | VocoderInversion, mel: MelConfig) -> Inverter:
    """What a run file asks for, for mels of one kind.

    Raises:
        ConfigError: the path is a model of another family.
        DataError: there is no model, or it reads other mels; both are named.
        StorageError: it is damaged.
    """
    match config:
        case GriffinLimInversion():
            return GriffinLimInverter(config, mel)
        case VocoderInversion(path=path):
            loaded = load_vocoder(folder_with(path, CONFIG_FILE, ""))
            own = loaded.model.config.mel
            if own != mel:
                raise DataError(
                    f"the vocoder {path} reads mels of {differing(own, mel)}, and here they have "
                    f"{differing(mel, own)}; train a vocoder on these mels, or take kind: griffin_lim"
                )
            return VocoderInverter(loaded)


def inversion_beside(folder: Path, mel: MelConfig) -> Inverter:
    """What a model's folder speaks through: the vocoder that lies in it, or Griffin-Lim.

    Raises:
        DataError: the vocoder reads other mels, or is damaged.
    """
    vocoder = folder / BESIDE
    return open_inversion(VocoderInversion(path=vocoder) if vocoder.is_dir() else GriffinLimInversion(), mel)


def carry_vocoder(vocoder: Path, folder: Path) -> None:
    """Copy a vocoder into a model's folder, which then speaks through it."""
    source, target = folder_with(vocoder, CONFIG_FILE, ""), folder / BESIDE
    target.mkdir(parents=True)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        shutil.copyfile(source / name, target / name)


def differing(one: MelConfig, other: MelConfig) -> str:
    """What one kind of mels has otherwise than another, in words."""
    return ", ".join(f"{name} {value}" for name, value in one if value != getattr(other, name))
