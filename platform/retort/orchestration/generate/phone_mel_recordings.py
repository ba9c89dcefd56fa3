"""What an actor of ``retort generate`` does for phone mels of recordings: mels, melody, loudness and timbre."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from retort.audio.files import AudioRejected
from retort.audio.mel import log_mel
from retort.audio.pitch import f0_track
from retort.config import validate
from retort.data import durations
from retort.data.durations import DurationRow
from retort.data.phone_features import phone_energy, phone_melody
from retort.data.phone_mels import ROWS, PhoneMelRow, PhoneMelSetDescription, phone_mel_record, phone_mel_schema
from retort.data.recordings import RecordingLoader
from retort.data.references import read_references
from retort.data.shards import Shards
from retort.data.utterance import Reject, Utterance
from retort.errors import DataError
from retort.models.zero_shot.timbre import open_timbre_encoder
from retort.nn.random import seed_of
from retort.orchestration.chunks import ChunkResult
from retort.orchestration.outputs import with_results
from retort.run_config import AlignConfig, GeneratePhoneMelsConfig, RecordedPhoneMels


class RecordedPhoneMelsWorker:
    """Does chunks of references.

    Args:
        tree: the run file; its inputs are found, and fetched from a store, on the worker's node.
        aligned: the run file of the alignment, with the corpus as it is here.
        references: folder of the chunks of references.
        description: JSON of the :class:`PhoneMelSetDescription` that every row repeats.
    """

    def __init__(self, tree: Mapping[str, Any], aligned: Mapping[str, Any], references: Path, description: str) -> None:
        config = with_results(validate(dict(tree), GeneratePhoneMelsConfig, where="generate"))
        assert isinstance(config.source, RecordedPhoneMels)
        align = validate(dict(aligned), AlignConfig, where="align")
        torch.set_num_threads(config.pool.threads_per_worker)
        self.config, self.source, self.references = config, config.source, references
        self.description = PhoneMelSetDescription.model_validate_json(description)
        device = "cuda" if config.pool.gpus_per_worker > 0 else "cpu"
        self.encoder = open_timbre_encoder(config.source.timbre_encoder, align.mel, device=device)
        self.loader = RecordingLoader(align.audio, align.mel.sample_rate, align.corpus)
        self.durations = AlignedRows(config.source.durations)

    def work(self, number: int) -> ChunkResult:
        """One chunk; a row without durations, or whose recording is not what it was, becomes a reject."""
        import pyarrow as pa

        records: list[dict[str, Any]] = []
        rejects: list[Reject] = []
        numbers = {"asked": 0.0, "aligned": 0.0, "rows": 0.0, "mel_frames": 0.0, "phones": 0.0}
        for utterance in sorted(read_references(self.references, number), key=lambda row: row.id):
            if utterance.split not in self.source.splits:
                continue
            numbers["asked"] += 1
            where = str(utterance.audio) if isinstance(utterance.audio, Path) else ""
            aligned = self.durations.of(utterance.id)
            if aligned is None:
                rejects.append(
                    Reject(utterance.id, "no_durations", "`retort align` rejected it or had no such id", where)
                )
                continue
            numbers["aligned"] += 1
            try:
                row = self.row(utterance, aligned)
            except AudioRejected as fault:
                rejects.append(Reject(utterance.id, fault.code, fault.detail, where))
                continue
            records.append(phone_mel_record(row, seed_of(self.config.seed, row.id), self.description))
            numbers["rows"] += 1
            numbers["mel_frames"] += len(row.mel_TM)
            numbers["phones"] += len(row.phones)
        return ChunkResult({ROWS: pa.Table.from_pylist(records, schema=phone_mel_schema())}, rejects, numbers)

    def row(self, utterance: Utterance, aligned: DurationRow) -> PhoneMelRow:
        """The row of a recording.

        Raises:
            AudioRejected: it cannot be read any more, has another length than it was aligned with
                (``changed_recording``), or no voice is heard in it (``no_voice``).
        """
        samples_N, mel = self.loader.load(utterance), self.description.mel
        mel_TM, frames_P = log_mel(samples_N, mel).T, torch.tensor(aligned.frames)
        if len(mel_TM) != int(frames_P.sum()):
            detail = f"{len(mel_TM)} frames, it was aligned with {int(frames_P.sum())}"
            raise AudioRejected("changed_recording", detail)
        log_f0_P, voiced_P = phone_melody(f0_track(samples_N, mel.sample_rate, hop_samples=mel.hop_samples), frames_P)
        return PhoneMelRow(
            id=utterance.id,
            text=utterance.text,
            speaker=utterance.speaker,
            split=aligned.split,
            phones=aligned.phones,
            frames_P=frames_P,
            mel_TM=mel_TM,
            log_f0_P=log_f0_P,
            voiced_P=voiced_P,
            energy_P=phone_energy(mel_TM, frames_P),
            timbre_E=self._timbre(samples_N),
        )

    def _timbre(self, samples_N: Tensor) -> Tensor:
        try:
            return self.encoder.embed(samples_N, self.description.mel.sample_rate)
        except DataError as fault:
            raise AudioRejected("no_voice", str(fault)) from fault


class AlignedRows:
    """Durations by the corpus' ids; the phones are read when they are asked for.

    Args:
        folder: the result of ``retort align``.
    """

    def __init__(self, folder: Path) -> None:
        self._shards = Shards(folder / durations.ROWS, durations.duration_schema(), ("phones", "frames"))
        self._places = {name: place for place, name in enumerate(self._shards.small.column("id").to_pylist())}

    def of(self, row_id: str) -> DurationRow | None:
        """The row of a recording; None where it was not aligned."""
        place = self._places.get(row_id)
        if place is None:
            return None
        small, large = self._shards.small.slice(place, 1).to_pylist()[0], self._shards.large(place)
        return DurationRow(row_id, small["split"], tuple(large["phones"]), tuple(large["frames"]), small["log_prob"])
