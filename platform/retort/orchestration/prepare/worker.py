"""What an actor of ``retort prepare`` does: recordings to samples for fitting, and chunks of references to tokens."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from retort.audio.codec import open_codec
from retort.audio.files import AudioRejected, wav_bytes
from retort.config import validate
from retort.data.recordings import RecordingLoader
from retort.data.references import read_references
from retort.data.tokens import TokenRow, row_to_record, token_schema
from retort.data.utterance import Reject, Utterance
from retort.errors import DataError
from retort.evaluation.speaker import SpeakerEncoder, embed, open_speaker_encoder
from retort.orchestration.chunks import ChunkResult, arrived
from retort.orchestration.prepare.told import unread_cure
from retort.run_config import PrepareConfig
from retort.text.front_end import open_text_front_end
from retort.text.reading import Reading, shown

TOKENS, AUDIO = "tokens", "audio"
"""Tables of a chunk."""
REFERENCES, CODEC, TEXT = "references", "codec", "text"
"""Folders of what the workers are given."""
GIVEN = "given"
"""Folder of those, in the job's work."""


def audio_schema() -> Any:
    """The Arrow schema of the held-out recordings: 16-bit WAV files as the codec saw them."""
    import pyarrow as pa

    return pa.schema([("id", pa.string()), ("wav", pa.binary())])


def samples_for_fitting(
    tree: Mapping[str, Any], work: Path, sample_rate: int
) -> Callable[[Mapping[str, Any]], list[Any]]:
    """A function for :func:`retort.orchestration.chunks.stream_through_actors`: (chunk, places) → their samples.

    Samples are little-endian float32. Recordings that cannot be used are left out; they are counted when their chunk
    is done.
    """
    config = validate(dict(tree), PrepareConfig, where="prepare")
    work = arrived({"work": work})["work"]
    torch.set_num_threads(config.pool.threads_per_worker)
    loader = RecordingLoader(config.audio, sample_rate, config.corpus)

    def call(item: Mapping[str, Any]) -> list[Any]:
        recordings = []
        references = read_references(work / REFERENCES, int(item["chunk"]))
        for place in item["places"]:
            try:
                recordings.append(loader.load(references[place]).numpy().astype("<f4").tobytes())
            except AudioRejected:
                continue
        return recordings

    return call


class PrepareWorker:
    """Turns chunks of references into token rows, and held-out recordings into WAV bytes."""

    def __init__(self, tree: Mapping[str, Any], work: Path) -> None:
        self.config = validate(dict(tree), PrepareConfig, where="prepare")
        torch.set_num_threads(self.config.pool.threads_per_worker)
        self.work_folder = work
        self.codec = open_codec(work / CODEC)
        self.front_end = open_text_front_end(work / TEXT)
        self.loader = RecordingLoader(self.config.audio, self.codec.sample_rate, self.config.corpus)
        encoder = self.config.speaker_encoder
        self.speaker_encoder: SpeakerEncoder | None = None if encoder is None else open_speaker_encoder(encoder)

    @torch.inference_mode()
    def work(self, number: int) -> ChunkResult:
        """One chunk; a row that cannot be used becomes a reject."""
        import pyarrow as pa

        tokens: list[dict[str, Any]] = []
        audio: list[dict[str, Any]] = []
        rejects: list[Reject] = []
        numbers = {"audio_seconds": 0.0, "tokens": 0.0}
        for utterance in sorted(read_references(self.work_folder / REFERENCES, number), key=lambda row: row.id):
            try:
                row, wav, unread = self._row(utterance)
            except AudioRejected as error:
                rejects.append(Reject(utterance.id, error.code, error.detail, _where(utterance)))
                continue
            tokens.append(row_to_record(row))
            numbers["audio_seconds"] += row.duration_s
            numbers["tokens"] += row.codes_KT.numel()
            numbers[f"rows/{row.split}"] = numbers.get(f"rows/{row.split}", 0.0) + 1
            for char in unread:
                numbers[f"unread/{char}"] = numbers.get(f"unread/{char}", 0.0) + 1
            if wav is not None:
                audio.append({"id": row.id, "wav": wav})
        tables = {
            TOKENS: pa.Table.from_pylist(tokens, schema=token_schema()),
            AUDIO: pa.Table.from_pylist(audio, schema=audio_schema()),
        }
        return ChunkResult(tables, rejects, numbers)

    def _row(self, utterance: Utterance) -> tuple[TokenRow, bytes | None, str]:
        """Its tokens, its sound if it is held out, and the characters of its text that cannot be read."""
        reading = self._reading(utterance.text)
        samples_N = self.loader.load(utterance)
        codes_KT = self.codec.encode(samples_N)
        row = TokenRow(
            id=utterance.id,
            text=utterance.text,
            text_ids=reading.ids,
            speaker=utterance.speaker,
            split=utterance.split or "train",
            codes_KT=codes_KT,
            duration_s=samples_N.numel() / self.codec.sample_rate,
            speaker_embedding=self._embedding(samples_N),
        )
        held_out = row.split != "train"
        return row, wav_bytes(samples_N, self.codec.sample_rate) if held_out else None, reading.unread

    def _reading(self, text: str) -> Reading:
        try:
            reading = self.front_end.read(text)
        except DataError as error:
            raise AudioRejected("unspeakable_text", str(error)) from error
        if not reading.num_letters:
            raise AudioRejected("unspeakable_text", f"there is nothing to speak in {text[:80]!r}")
        if reading.unread_fraction > self.config.max_unread_fraction:
            raise AudioRejected(
                "unread_characters",
                f"the text front-end cannot read {reading.unread_fraction:.0%} of the letters of {text[:80]!r} "
                f"({shown(reading.unread)}), more than max_unread_fraction {self.config.max_unread_fraction:g}; "
                f"{unread_cure(self.config)}",
            )
        return reading

    def _embedding(self, samples_N: torch.Tensor) -> tuple[float, ...] | None:
        if self.speaker_encoder is None:
            return None
        try:
            return tuple(embed(self.speaker_encoder, samples_N, self.codec.sample_rate).tolist())
        except DataError:
            return None  # no voice in it that the encoder hears; the row is still good to train on


def _where(utterance: Utterance) -> str:
    return str(utterance.audio) if isinstance(utterance.audio, Path) else ""
