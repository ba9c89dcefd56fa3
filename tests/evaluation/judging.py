"""Token sets, recordings and scorers for the tests of the judge."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from retort.audio.files import wav_bytes
from retort.data.tokens import TokenRow, TokenSetDescription, write_description, write_shard
from retort.evaluation.hearing import SpeechRecogniser
from retort.evaluation.scoring import Scorers

RATE = 16_000


class Echo:
    """Hears one word, whatever is said."""

    name, smoke_tier = "echo", True

    def transcribe(self, samples_N: Tensor, sample_rate: int) -> str:
        """The word."""
        return "one"


class Loudness:
    """Tells recordings apart exactly: each loudness, in steps of .01, is a direction of its own."""

    name, smoke_tier = "loudness", True

    def embed(self, samples_N: Tensor, sample_rate: int) -> Tensor:
        """A unit vector."""
        return torch.nn.functional.one_hot((100 * samples_N.abs().max()).round().long(), 101).float()


def scorers(*, tells_voices: bool = False) -> Scorers:
    """For judges whose words are not what is tested."""
    echo: SpeechRecogniser = Echo()
    return Scorers(echo, Loudness() if tells_voices else None)


def row(name: str, speaker: str, split: str, codes_KT: Tensor) -> TokenRow:
    """One word."""
    return TokenRow(name, "one", (4,), speaker, split, codes_KT, codes_KT.shape[1] / 40)


def token_set(folder: Path, rows: Sequence[TokenRow], *, encoder: str | None = None) -> Path:
    """Without a codec, whose fingerprint is ``c-1``."""
    folder.mkdir(parents=True, exist_ok=True)
    write_shard(folder / "part-0.parquet", list(rows))
    description = TokenSetDescription(
        codec_fingerprint="c-1", text_fingerprint="t-1", text_vocabulary_size=10, num_codebooks=2, codebook_size=8,
        sample_rate=RATE, frame_rate=40.0, speaker_encoder=encoder,
    )  # fmt: skip
    write_description(folder, description)
    return folder


def add_recordings(folder: Path, loudness: dict[str, float]) -> None:
    """Recordings of a token set's rows, each of one loudness."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sounds = [{"id": name, "wav": wav_bytes(torch.full((RATE,), value), RATE)} for name, value in loudness.items()]
    (folder / "audio").mkdir()
    pq.write_table(pa.Table.from_pylist(sounds), folder / "audio" / "part-0.parquet")
