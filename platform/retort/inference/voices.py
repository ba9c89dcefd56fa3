"""Voices: named tensors in a space that one kind of model understands, and the voices of a model's folder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from retort.data.tokens import TokenRow
from retort.errors import ConfigError, DataError

VOICES_FILE = "voices.safetensors"
MIN_FRAMES_OF_A_VOICE = 40
CODES = "codes"
"""Name of a codec language model's only tensor: the speaker prompt [K, P], int64."""


@dataclass(frozen=True)
class Voice:
    """Somebody's voice, as models of one space take it.

    Attributes:
        space: fingerprint of what the tensors mean, such as that of the codec whose codes they are.
        tensors: by name; which ones there are, the space decides.
    """

    space: str
    tensors: Mapping[str, Tensor]

    def tensor(self, name: str, space: str) -> Tensor:
        """One of the tensors, for a model of ``space``.

        Raises:
            ConfigError: the voice is of another space; both are named.
        """
        if self.space != space:
            raise ConfigError(f"this voice is in the space {self.space}, the model needs {space}; encode it again")
        return self.tensors[name]


def voice_of_codes(codec_fingerprint: str, codes_KP: Tensor) -> Voice:
    """A prompt in a codec's codes."""
    return Voice(codec_fingerprint, {CODES: codes_KP})


def pick_voices(rows: Sequence[TokenRow]) -> dict[str, Tensor]:
    """One prompt per speaker: the first training row, in order of ids, that is long enough, else the longest."""
    voices: dict[str, Tensor] = {}
    for row in rows:
        held = voices.get(row.speaker)
        if held is None or (held.shape[1] < MIN_FRAMES_OF_A_VOICE and row.num_frames > held.shape[1]):
            voices[row.speaker] = row.codes_KT
    return voices


def no_voices() -> dict[str, Tensor]:
    """The voices of a model without a prompt column: one name, which says nothing."""
    return {"default": torch.zeros(1, 0, dtype=torch.int64)}


def save_voices(folder: Path, voices: Mapping[str, Tensor]) -> None:
    """Write the voices of a model folder: codes [K, T] by name."""
    from safetensors.torch import save_file

    save_file({name: codes.to(torch.int32).contiguous() for name, codes in voices.items()}, folder / VOICES_FILE)


def load_voices(folder: Path) -> dict[str, Tensor]:
    """Voices of a model folder: codes [K, T] int64 by name.

    Raises:
        DataError: there are none.
    """
    from safetensors.torch import load_file

    if not (folder / VOICES_FILE).is_file():
        raise DataError(f"{folder} has no {VOICES_FILE}, so it cannot speak; train it again with this version")
    return {name: codes.long() for name, codes in load_file(folder / VOICES_FILE).items()}
