"""The files of an evaluation: what was judged of each (system, strings) piece, with its sounds and mels."""

import dataclasses
from collections.abc import Collection, Sequence
from pathlib import Path

import torch

from retort.evaluation.items import ItemResult, read_results, write_results
from retort.evaluation.judge import Verdict
from retort.evaluation.mel_distance import mels_from_bytes, mels_to_bytes, with_distances
from retort.evaluation.sounds import AudioSample, read_any_sound
from retort.store.commit import write_bytes_atomic
from retort.store.file_names import file_name
from retort.store.place import push

SOUNDS = "audio"
"""Folder of the sounds that are kept, below the pieces and below a result."""


@dataclasses.dataclass(frozen=True)
class Piece:
    """Some strings of one system, in a folder of pieces."""

    folder: Path
    system: str
    number: int

    @property
    def lines(self) -> Path:
        """Its rows; they are written last."""
        return self._file(".jsonl")

    @property
    def mels(self) -> Path:
        """Its mels, where a network made some."""
        return self._file(".mels.safetensors")

    def _file(self, suffix: str) -> Path:
        return self.folder / f"{file_name(self.system)}-{self.number:04d}{suffix}"

    def write(self, verdicts: Sequence[Verdict], *, kept: Collection[str], keeps_mels: bool) -> None:
        """Write what was judged, here and in the store behind it: the sounds of the ids ``kept``, mels, and rows."""
        items = [self._with_sound(verdict) if verdict.item.id in kept else verdict.item for verdict in verdicts]
        mels = {verdict.item.id: verdict.mel_TM for verdict in verdicts if verdict.mel_TM is not None}
        if mels and keeps_mels:
            write_bytes_atomic(self.mels, mels_to_bytes(mels))
            push(self.mels)
        self.write_rows(items)

    def write_rows(self, items: Sequence[ItemResult]) -> None:
        """Write rows alone, here and in the store behind it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_results(self.lines, items)
        push(self.lines)

    def _with_sound(self, verdict: Verdict) -> ItemResult:
        item = verdict.item
        if not verdict.samples_N.numel():
            return item
        sound = AudioSample(item.id, item.system, verdict.samples_N, verdict.sample_rate)
        path = self.folder / SOUNDS / f"{file_name(item.system, item.id)}.wav"
        write_bytes_atomic(path, sound.wav())
        push(path)
        return dataclasses.replace(item, audio_path=f"{SOUNDS}/{path.name}")

    def read(self, reference: str | None) -> list[ItemResult]:
        """Its rows, with the distances of its mels to those of the system ``reference``.

        Raises:
            DataError: the reference has another length.
        """
        items = read_results(self.lines)
        if reference is None or self.system == reference or not self.mels.is_file():
            return items
        return with_distances(items, _read_mels(self), _read_mels(Piece(self.folder, reference, self.number)))


def _read_mels(piece: Piece) -> dict[str, torch.Tensor]:
    return mels_from_bytes(piece.mels.read_bytes()) if piece.mels.is_file() else {}


def sound_name(item: ItemResult) -> str:
    """File of a row's sound, if it was kept; rows from before they said it have it under their names."""
    return Path(item.audio_path).name if item.audio_path else f"{item.system}--{item.id}.wav"


def sounds_of(result: Path, items: Sequence[ItemResult]) -> list[AudioSample]:
    """The sounds that an evaluation kept, whatever is in them, in the order of its rows."""
    there = {path.name: path for path in (result / SOUNDS).glob("*.wav")}
    samples = []
    for item in items:
        name = sound_name(item)
        if name in there:
            audio = read_any_sound(there[name].read_bytes())
            samples.append(AudioSample(item.id, item.system, audio.samples_N, audio.sample_rate))
    return samples
