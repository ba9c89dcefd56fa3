"""Mel sets: utterances as log-mels with the codec LM's latents, which denoisers are trained on and distilled on.

A folder with ``mels.json`` (how everything in it was made) and ``rows/*.parquet``. A row holds the latents of its codec
frames and its log-mel, both as fp16 bytes with their shapes, and repeats what it was made with, so that a shard alone
still tells (METHODS.md, trap 45). The log-mel is that of the codec: natural log with its soft floor, and
``frames_per_latent`` frames for each latent. Nothing is normalised here.

The voice of a row is the log-mel of another utterance of its speaker, chosen by id (:mod:`retort.data.prompts`). It is
cut from the training rows; a set that a teacher made keeps the recordings that it was given in ``voices/*.parquet``.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue
from torch import Tensor

from retort.audio.mel import MelConfig
from retort.config import Config, read_record
from retort.data.prompts import PromptsById, crop_prompt
from retort.data.shards import Shards, fp16_bytes, fp16_tensor
from retort.errors import DataError
from retort.nn.diffusion_guidance import DiffusionGuidance

MELS_FILE = "mels.json"
ROWS, VOICES = "rows", "voices"


class FromRecordings(Config):
    """The mels are those of the recordings that the token set was made from."""

    kind: Literal["recordings"] = "recordings"


class FromTeacher(Config):
    """The LM sampled the codes and a guided denoiser the mels."""

    kind: Literal["synthetic"] = "synthetic"
    teacher_fingerprint: str
    guidance: DiffusionGuidance
    """Of the denoiser."""
    solver: dict[str, JsonValue]
    """Its solver and number of steps."""
    lm_guidance: dict[str, float]
    """Of the codec LM: condition to coefficient."""
    sampler: dict[str, JsonValue]
    """Of the codec LM."""
    voices_fingerprint: str
    """Of the mel set that the voices come from."""


class MelSetDescription(Config):
    """How a mel set was made."""

    source: Annotated[FromRecordings | FromTeacher, Field(discriminator="kind")]
    lm_fingerprint: str
    data_fingerprint: str
    """Of the token set's result folder."""
    codec_fingerprint: str
    text_fingerprint: str
    latent_dim: int
    frames_per_latent: int
    mel: MelConfig
    soft_floor: float
    """Amplitude that was added before the log."""
    voice_max_frames: int
    """Longest voice, in codec frames."""
    precision: str
    """Number format of the forward passes."""
    seed: int
    code_version: str

    @property
    def num_mels(self) -> int:
        """M."""
        return self.mel.num_mels


@dataclass(frozen=True)
class MelRow:
    """One utterance.

    Attributes:
        id: unique in its set.
        text: as spoken, or as it was asked for.
        speaker: speaker id.
        split: ``train``, ``validation`` or ``test``.
        latents_LD: fp32, one for each codec frame.
        mel_TM: natural-log mel with the codec's soft floor, fp32, T = L * frames_per_latent.
        voice_PM: such a log-mel of another utterance of the speaker; None where there is no other.
    """

    id: str
    text: str
    speaker: str
    split: str
    latents_LD: Tensor
    mel_TM: Tensor
    voice_PM: Tensor | None


def mel_schema() -> Any:
    """The Arrow schema of the rows."""
    import pyarrow as pa

    texts = [(name, pa.string()) for name in ("id", "text", "speaker", "split")]
    shapes = [(name, pa.int32()) for name in ("num_latents", "latent_dim", "num_frames", "num_mels")]
    values = [("latents", pa.binary()), ("mel", pa.binary()), ("seed", pa.int64())]
    return pa.schema([*texts, *shapes, *values, *((name, pa.string()) for name in ("source", "made_with"))])


def voice_schema() -> Any:
    """The Arrow schema of the recordings that voices are cut from."""
    schema = mel_schema()
    import pyarrow as pa

    return pa.schema([schema.field(name) for name in ("id", "speaker", "num_frames", "num_mels", "mel")])


def mel_record(row: MelRow, seed: int, description: MelSetDescription) -> dict[str, Any]:
    """The parquet record of a row; its voice is not in it, since the law *by id* finds it again.

    Args:
        row: the row.
        seed: its own.
        description: of the set; all that a row was made with is repeated in it.
    """
    return {
        "id": row.id,
        "text": row.text,
        "speaker": row.speaker,
        "split": row.split,
        "num_latents": len(row.latents_LD),
        "latent_dim": row.latents_LD.shape[1],
        "num_frames": len(row.mel_TM),
        "num_mels": row.mel_TM.shape[1],
        "latents": fp16_bytes(row.latents_LD),
        "mel": fp16_bytes(row.mel_TM),
        "seed": seed,
        "source": description.source.kind,
        "made_with": json.dumps(description.model_dump(mode="json", exclude={"seed"}), sort_keys=True),
    }


class Voices:
    """The law *by id* over the recordings that voices are cut from, ``places`` in their shards."""

    def __init__(self, shards: Shards, places: Sequence[int], max_frames: int) -> None:
        ids, speakers = (shards.small.column(name).to_pylist() for name in ("id", "speaker"))
        self.places, self._shards, self._max_frames = list(places), shards, max_frames
        self._num_frames = shards.small.column("num_frames").to_pylist()
        self._law = PromptsById([ids[place] for place in places], [speakers[place] for place in places])

    def of(self, row_id: str, speaker: str) -> Tensor | None:
        """The voice [P, M] of a row, fp32; None where the speaker has no other recording."""
        choice = self._law.choose(row_id, speaker)
        if choice is None:
            return None
        place = self.places[choice.index]
        mel_TM = fp16_tensor(self._shards.large(place)["mel"], self._num_frames[place])
        return crop_prompt(mel_TM.T, choice.position, self._max_frames).T.float()

    def record(self, index: int) -> dict[str, Any]:
        """One of the recordings as a row of :func:`voice_schema`."""
        place = self.places[index]
        small = [name for name in voice_schema().names if name != "mel"]
        cells: dict[str, Any] = self._shards.small.select(small).slice(place, 1).to_pylist()[0]
        return {**cells, "mel": self._shards.large(place)["mel"]}


class MelSet(Sequence[MelRow]):
    """A mel set opened for reading: rows in order of their ids.

    Attributes:
        description: how it was made.
        voices: of its rows, and of others of its speakers.
    """

    def __init__(self, description: MelSetDescription, shards: Shards, places: Sequence[int], voices: Voices) -> None:
        self.description, self.voices = description, voices
        self._shards, self._places = shards, list(places)

    @classmethod
    def open(cls, folder: Path) -> "MelSet":
        """Open the result folder of ``retort generate`` with ``makes: mels``.

        Raises:
            DataError: it is not one, or an id appears twice.
        """
        path = folder / MELS_FILE
        if not path.is_file():
            raise DataError(f"{folder} is not a mel set (no {MELS_FILE}); make one with `retort generate`, makes: mels")
        description = read_record(path, MelSetDescription, cure="run `retort generate` again")
        shards = Shards(folder / ROWS, mel_schema(), ("latents", "mel"))
        ids = shards.small.column("id").to_pylist()
        if len(set(ids)) != len(ids):
            raise DataError(f"{folder}: {len(ids) - len(set(ids))} ids appear twice; run `retort generate` again")
        longest = description.voice_max_frames * description.frames_per_latent
        match description.source:
            case FromRecordings():
                voices = Voices(shards, _voice_places(shards.small), longest)
            case FromTeacher():
                kept = Shards(folder / VOICES, voice_schema(), ("mel",))
                voices = Voices(kept, range(kept.small.num_rows), longest)
        return cls(description, shards, sorted(range(len(ids)), key=ids.__getitem__), voices)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = self._places[index]
        small, large = self._shards.small.slice(place, 1).to_pylist()[0], self._shards.large(place)
        return MelRow(
            id=small["id"],
            text=small["text"],
            speaker=small["speaker"],
            split=small["split"],
            latents_LD=fp16_tensor(large["latents"], small["num_latents"]).float(),
            mel_TM=fp16_tensor(large["mel"], small["num_frames"]).float(),
            voice_PM=self.voices.of(small["id"], small["speaker"]),
        )

    def column(self, name: str) -> list[Any]:
        """One small column in row order."""
        values = self._shards.small.column(name).to_pylist()
        return [values[place] for place in self._places]

    def divided(self, held_out: int) -> tuple["MelSet", "MelSet"]:
        """The rows but for ``held_out``, and those: the ones whose ids hash lowest, which no order changes."""
        ids = self._shards.small.column("id").to_pylist()
        lowest = sorted(self._places, key=lambda place: hashlib.blake2b(ids[place].encode()).digest())[:held_out]
        kept = [place for place in self._places if place not in set(lowest)]
        made = [MelSet(self.description, self._shards, places, self.voices) for places in (kept, sorted(lowest))]
        return made[0], made[1]

    def split(self, name: str) -> "MelSet":
        """The rows of one split; their voices stay the same."""
        splits = self._shards.small.column("split").to_pylist()
        places = [place for place in self._places if splits[place] == name]
        return MelSet(self.description, self._shards, places, self.voices)


def _voice_places(small: Any) -> list[int]:
    """Rows that voices are cut from: the training rows, and all rows of speakers that have none."""
    splits, speakers = small.column("split").to_pylist(), small.column("speaker").to_pylist()
    trained = {speaker for speaker, split in zip(speakers, splits, strict=True) if split == "train"}
    return [i for i, split in enumerate(splits) if split == "train" or speakers[i] not in trained]
