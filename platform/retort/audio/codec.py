"""The codec seam: audio to codes and back, whichever codec it is."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, assert_never

from pydantic import Field
from torch import Tensor

from retort.audio.codec_files import CONFIG_NAME, CURE
from retort.audio.encodec_codec import EncodecConfig, load_encodec, load_saved_encodec
from retort.audio.mel_rvq import MelRVQ, MelRVQConfig, fit_mel_rvq, load_mel_rvq
from retort.config import Config, load_config
from retort.errors import ConfigError, DataError

__all__ = [
    "AnyCodecConfig",
    "Codec",
    "CodecConfig",
    "EncodecConfig",
    "MelRVQConfig",
    "OutsideCodecConfig",
    "new_codec",
    "open_codec",
    "outside_codec",
]

AnyCodecConfig = MelRVQConfig | EncodecConfig
CodecConfig = Annotated[AnyCodecConfig, Field(discriminator="kind")]
"""Any codec, told apart by ``kind``."""
_OUTSIDE = "outside-"


class OutsideCodecConfig(Config):
    """A codec that Retort does not have. Models of its codes can be pruned, distilled and exported, but not heard."""

    kind: Literal["outside"] = "outside"
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")

    def fingerprint(self) -> str:
        """By name alone: that equal names mean equal codes is for the person to see to."""
        return _OUTSIDE + self.name


def outside_codec(fingerprint: str) -> str | None:
    """The name of the outside codec of a fingerprint, or None if it is a codec that can be opened."""
    return fingerprint.removeprefix(_OUTSIDE) if fingerprint.startswith(_OUTSIDE) else None


class CodecStream(Protocol):
    """One utterance on its way from codes to samples, with the state that its next piece needs."""

    def push(self, codes_KT: Tensor) -> Tensor:
        """Add codes [K, T]; returns the samples that no later code can change, maybe none."""
        ...

    def finish(self) -> Tensor:
        """The remaining samples; the stream is over."""
        ...


class Codec(Protocol):
    """Turns audio into K streams of codes and back; nothing else in the package knows how."""

    @property
    def sample_rate(self) -> int:
        """Hz of the audio that goes in and comes out."""
        ...

    @property
    def frame_rate(self) -> float:
        """Tokens per second in each stream."""
        ...

    @property
    def num_codebooks(self) -> int:
        """K."""
        ...

    @property
    def codebook_size(self) -> int:
        """V, the same for every codebook."""
        ...

    def fingerprint(self) -> str:
        """Name by content; equal fingerprints mean equal codes."""
        ...

    def encode(self, samples_N: Tensor) -> Tensor:
        """Codes [K, T] int64 of one channel of audio."""
        ...

    def decode(self, codes_KT: Tensor) -> Tensor:
        """Samples [N] of codes [K, T]."""
        ...

    def stream(self) -> CodecStream:
        """Decode while codes still arrive; all samples together are those of :meth:`decode`, bit for bit."""
        ...

    def save(self, folder: Path) -> None:
        """Write a folder that ``open_codec`` reads."""
        ...


def mel_codec(codec: Codec, *, who: str) -> MelRVQ:
    """A codec whose log-mels a denoiser can make.

    Args:
        codec: any.
        who: has it, for the message.

    Raises:
        ConfigError: it is not one that quantises log-mels.
    """
    match codec:
        case MelRVQ():
            return codec
        case _:
            raise ConfigError(
                f"{who} was made with the codec {codec.fingerprint()}, which has no log-mel of its own; "
                "mels need a token set of kind mel_rvq"
            )


def new_codec(config: AnyCodecConfig, recordings: Callable[[int], Iterable[Tensor]]) -> Codec:
    """The codec of a config: fitted, or of published weights.

    Args:
        config: of any kind.
        recordings: from a sample rate in Hz to recordings [N] to fit on; not called by kinds that are not fitted.

    Raises:
        DataError: the recordings are too few, or a checkpoint is missing or of another model.
        StorageError: published weights could not be fetched.
    """
    match config:
        case MelRVQConfig():
            return fit_mel_rvq(recordings(config.mel.sample_rate), config)
        case EncodecConfig():
            return load_encodec(config)


def open_codec(folder: Path) -> Codec:
    """Open a saved codec, whichever kind it is.

    Raises:
        DataError: the folder is missing, damaged, or holds something else.
    """
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise DataError(f"{path}: no such file, so {folder} is not a saved codec; {CURE}")
    try:
        # JSON is YAML, and one reader means one set of error messages.
        kind: Any = CodecConfig
        config: AnyCodecConfig = load_config(path, kind)
    except ConfigError as error:
        raise DataError(f"{error}; {CURE}") from error
    match config:
        case MelRVQConfig():
            return load_mel_rvq(folder, config)
        case EncodecConfig():
            return load_saved_encodec(folder, config)
    assert_never(config)
