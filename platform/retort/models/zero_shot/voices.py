"""The voices that a zero-shot model's folder brings: of each, a prompt and its timbre."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from retort.config import Config, read_record
from retort.errors import DataError

VOICES_FILE, VOICES_WEIGHTS = "voices.json", "voices.safetensors"
_CURE = "restore the folder that `retort pretrain` or `distill` wrote, or make it again"


class VoicesRecord(Config):
    """Contents of ``voices.json``."""

    names: tuple[str, ...]
    """In the order of the tensors ``mel.N`` and ``timbre.N``."""


@dataclass(frozen=True)
class StoredVoice:
    """A voice by name.

    Attributes:
        name: of the speaker.
        prompt_SM: natural-log mel of a recording.
        timbre_E: of the recording, by the frozen speaker encoder.
    """

    name: str
    prompt_SM: Tensor
    timbre_E: Tensor


def write_voices(folder: Path, voices: Sequence[StoredVoice]) -> None:
    """Write them beside the weights."""
    from safetensors.torch import save_file

    record = VoicesRecord(names=tuple(voice.name for voice in voices))
    (folder / VOICES_FILE).write_text(record.model_dump_json(indent=2) + "\n")
    tensors = {f"mel.{n}": voice.prompt_SM.contiguous() for n, voice in enumerate(voices)}
    tensors |= {f"timbre.{n}": voice.timbre_E.contiguous() for n, voice in enumerate(voices)}
    save_file(tensors, folder / VOICES_WEIGHTS)


def read_voices(folder: Path) -> dict[str, StoredVoice]:
    """The voices of a model folder by name.

    Raises:
        DataError: they are missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    record = read_record(folder / VOICES_FILE, VoicesRecord, cure=_CURE)
    try:
        tensors = load_file(folder / VOICES_WEIGHTS)
        found = [StoredVoice(name, tensors[f"mel.{n}"], tensors[f"timbre.{n}"]) for n, name in enumerate(record.names)]
    except (SafetensorError, OSError, KeyError) as error:
        raise DataError(f"{folder}: the voices are damaged: {error}; {_CURE}") from error
    return {voice.name: voice for voice in found}
