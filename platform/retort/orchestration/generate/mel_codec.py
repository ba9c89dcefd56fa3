"""The codec of a token set, where its log-mels are what a denoiser can make."""

from pathlib import Path

from retort.audio.codec import mel_codec, open_codec
from retort.audio.mel_rvq import MelRVQ


def open_mel_codec(data: Path) -> MelRVQ:
    """The codec of a token set.

    Raises:
        ConfigError: it is not one that quantises log-mels.
    """
    return mel_codec(open_codec(data / "codec"), who=str(data))
