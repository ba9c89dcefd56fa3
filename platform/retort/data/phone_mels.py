"""Phone mel sets: recordings as log-mels with their phones, durations, melody, loudness and timbre.

What zero-shot models are trained on and distil themselves on (METHODS.md 4). A folder with ``phone_mels.json`` (how
everything in it was made) and ``rows/*.parquet``. A row repeats what it was made with, so that a shard alone still
tells (METHODS.md, trap 45). The log-mel is that of :func:`retort.audio.mel.log_mel`; nothing is normalised here.

A *swapped* row is what a teacher said of a real row in another speaker's voice, with the real row's durations: frame
for frame it is aligned with the real one, which ``source_id`` names.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, JsonValue
from torch import Tensor

from retort.audio.mel import MelConfig
from retort.config import Config, read_record
from retort.data.shards import Shards, fp16_bytes, fp16_tensor, fp32_bytes, fp32_tensor
from retort.errors import DataError

PHONE_MELS_FILE = "phone_mels.json"
ROWS = "rows"
_LARGE = ("mel", "log_f0", "voiced", "energy", "timbre")


class FromRecordings(Config):
    """The mels are those of recordings."""

    kind: Literal["recordings"] = "recordings"


class FromSwaps(Config):
    """A zero-shot teacher said the rows of another set in other voices, with the rows' own durations."""

    kind: Literal["swapped"] = "swapped"
    teacher_fingerprint: str
    mels_fingerprint: str
    """Of the phone mel set of recordings."""
    pairs_per_row: int
    noise_scale: float
    """Of the teacher's prior."""
    filters: dict[str, JsonValue]


class PhoneMelSetDescription(Config):
    """How a phone mel set was made."""

    source: Annotated[FromRecordings | FromSwaps, Field(discriminator="kind")]
    mel: MelConfig
    phones: tuple[str, ...]
    """IPA with stress, in order: all that the aligned corpus holds. The pause, an empty string, is not among them."""
    voice: str
    """Of espeak-ng, that read the texts."""
    language: str
    """Of the texts, whose numbers and the like were written out first."""
    phonemizer: str
    """The program with its version."""
    timbre_encoder: str
    """Name of the frozen speaker encoder."""
    timbre_dim: int
    """E."""
    durations_fingerprint: str
    target_lufs: float | None = None
    """Loudness that the recordings were brought to; None where they were left as they were, or nobody wrote it down."""
    seed: int
    code_version: str

    @property
    def num_mels(self) -> int:
        """M."""
        return self.mel.num_mels


@dataclass(frozen=True)
class PhoneMelRow:
    """One utterance of P phones and pauses.

    Attributes:
        id: unique in its set.
        text: as spoken.
        speaker: whose voice is heard.
        split: ``train``, ``validation`` or ``test``.
        phones: IPA with stress; empty for a pause.
        frames_P: int64, how long each lasts; together they are the T frames.
        mel_TM: natural-log mel, fp32.
        log_f0_P: mean ln(Hz) over the voiced frames of a phone, fp32; 0 where there is none.
        voiced_P: whether a phone has a voiced frame.
        energy_P: mean over a phone's frames of the ln of the L2 norm of their mel amplitudes, fp32.
        timbre_E: of the whole utterance by the frozen speaker encoder; L2 norm 1, fp32.
        source_id: of a swapped row the id of the real one, whose text, phones and durations these are.
        prompt_speaker: of a swapped row whose voice was asked for; ``speaker`` is the same one.
    """

    id: str
    text: str
    speaker: str
    split: str
    phones: tuple[str, ...]
    frames_P: Tensor
    mel_TM: Tensor
    log_f0_P: Tensor
    voiced_P: Tensor
    energy_P: Tensor
    timbre_E: Tensor
    source_id: str | None = None
    prompt_speaker: str | None = None


def phone_mel_schema() -> Any:
    """The Arrow schema of the rows."""
    import pyarrow as pa

    texts = [(name, pa.string()) for name in ("id", "text", "speaker", "split", "source_id", "prompt_speaker")]
    phones = [("phones", pa.list_(pa.string())), ("frames", pa.list_(pa.int32()))]
    shapes = [(name, pa.int32()) for name in ("num_phones", "num_frames", "num_mels")]
    large = [(name, pa.binary()) for name in _LARGE]
    return pa.schema([*texts, *phones, *shapes, *large, ("seed", pa.int64()), ("made_with", pa.string())])


def phone_mel_record(row: PhoneMelRow, seed: int, description: PhoneMelSetDescription) -> dict[str, Any]:
    """The parquet record of a row.

    Args:
        row: the row.
        seed: its own.
        description: of the set; what a row was made with is repeated in it, but for the inventory of phones.
    """
    return {
        "id": row.id,
        "text": row.text,
        "speaker": row.speaker,
        "split": row.split,
        "source_id": row.source_id,
        "prompt_speaker": row.prompt_speaker,
        "phones": list(row.phones),
        "frames": row.frames_P.tolist(),
        "num_phones": len(row.phones),
        "num_frames": len(row.mel_TM),
        "num_mels": row.mel_TM.shape[1],
        "mel": fp16_bytes(row.mel_TM),
        "log_f0": fp32_bytes(row.log_f0_P),
        "voiced": bytes(map(int, row.voiced_P.tolist())),
        "energy": fp32_bytes(row.energy_P),
        "timbre": fp32_bytes(row.timbre_E),
        "seed": seed,
        "made_with": json.dumps(description.model_dump(mode="json", exclude={"seed", "phones"}), sort_keys=True),
    }


class PhoneMelSet(Sequence[PhoneMelRow]):
    """A phone mel set opened for reading: rows in order of their ids.

    Attributes:
        description: how it was made.
    """

    def __init__(self, description: PhoneMelSetDescription, shards: Shards, places: Sequence[int]) -> None:
        self.description, self._shards, self._places = description, shards, list(places)

    @classmethod
    def open(cls, folder: Path) -> "PhoneMelSet":
        """Open the result folder of ``retort generate`` with ``makes: phone_mels``.

        Raises:
            DataError: it is not one, or an id appears twice.
        """
        path = folder / PHONE_MELS_FILE
        if not path.is_file():
            raise DataError(
                f"{folder} is not a phone mel set (no {PHONE_MELS_FILE}); make one with `retort generate`, "
                "makes: phone_mels"
            )
        description = read_record(path, PhoneMelSetDescription, cure="run `retort generate` again")
        shards = Shards(folder / ROWS, phone_mel_schema(), _LARGE)
        ids = shards.small.column("id").to_pylist()
        if len(set(ids)) != len(ids):
            raise DataError(f"{folder}: {len(ids) - len(set(ids))} ids appear twice; run `retort generate` again")
        return cls(description, shards, sorted(range(len(ids)), key=ids.__getitem__))

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = self._places[index]
        small, large = self._shards.small.slice(place, 1).to_pylist()[0], self._shards.large(place)
        return PhoneMelRow(
            id=small["id"],
            text=small["text"],
            speaker=small["speaker"],
            split=small["split"],
            phones=tuple(small["phones"]),
            frames_P=torch.tensor(small["frames"], dtype=torch.int64),
            mel_TM=fp16_tensor(large["mel"], small["num_frames"]).float(),
            log_f0_P=fp32_tensor(large["log_f0"]),
            voiced_P=torch.tensor(list(large["voiced"]), dtype=torch.bool),
            energy_P=fp32_tensor(large["energy"]),
            timbre_E=fp32_tensor(large["timbre"]),
            source_id=small["source_id"],
            prompt_speaker=small["prompt_speaker"],
        )

    def column(self, name: str) -> list[Any]:
        """One small column of :func:`phone_mel_schema` in row order, such as ``num_frames`` or ``speaker``."""
        values = self._shards.small.column(name).to_pylist()
        return [values[place] for place in self._places]

    def split(self, name: str) -> "PhoneMelSet":
        """The rows of one split."""
        splits = self._shards.small.column("split").to_pylist()
        return PhoneMelSet(self.description, self._shards, [place for place in self._places if splits[place] == name])
