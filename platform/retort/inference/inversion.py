"""What makes sound of mels: Griffin-Lim, which needs no weights, or a vocoder that was trained on recordings."""

from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

from pydantic import Field
from torch import Tensor

from retort.audio.griffin_lim import GriffinLimStream, griffin_lim
from retort.audio.mel import MelConfig
from retort.config import Config
from retort.errors import DataError
from retort.location import Location
from retort.models.vocoder_stream import VocoderStream, vocoded
from retort.models.weights import CONFIG_FILE, LoadedVocoder, load_vocoder
from retort.store.results import folder_with


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


def differing(one: MelConfig, other: MelConfig) -> str:
    """What one kind of mels has otherwise than another, in words."""
    return ", ".join(f"{name} {value}" for name, value in one if value != getattr(other, name))
