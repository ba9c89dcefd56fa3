"""The codec of a token set, where its log-mels are what a denoiser can make."""

from pathlib import Path

from retort.audio.codec import open_codec
from retort.audio.mel_rvq import MelRVQ
from retort.errors import ConfigError


def open_mel_codec(data: Path) -> MelRVQ:
    """The codec of a token set.

    Raises:
        ConfigError: it is not one that quantises log-mels.
    """
    codec = open_codec(data / "codec")
    match codec:
        case MelRVQ():
            return codec
        case _:
            raise ConfigError(
                f"{data} was made with the codec {codec.fingerprint()}, which has no log-mel of its own; "
                "mels need a token set of kind mel_rvq"
            )
