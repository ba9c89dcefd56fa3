"""A corpus that a black-box teacher spoke: parquet rows that ``retort prepare`` reads, each with its origin."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import JsonValue

from retort.config import Config
from retort.data.splits import Split

CORPUS = "corpus"
"""Folder of the shards in a result, for ``corpus: {kind: parquet, path: …/result/corpus}``."""
SPEECH_FILE = "speech.json"


@dataclass(frozen=True)
class SpokenRow:
    """One recording.

    Attributes:
        id: of the row.
        text: what was to be said.
        split: that it is in.
        voice: which said it.
        audio: the encoded recording.
        sample_rate: Hz.
        duration_s: seconds.
        loudness_lufs: as the teacher left it.
        wer: by the recogniser that filtered, where there was one.
        settings: with which it was said.
    """

    id: str
    text: str
    split: Split
    voice: str
    audio: bytes
    sample_rate: int
    duration_s: float
    loudness_lufs: float
    wer: float | None
    settings: Mapping[str, JsonValue]


class SpeechDescription(Config):
    """What all rows of a corpus have in common; it lies beside them."""

    schema_version: Literal[1] = 1
    teacher: str
    teacher_fingerprint: str
    licence: str
    """What the teacher's owner lets people do with what it says."""
    language: str
    voices: tuple[str, ...]
    audio_format: str
    recogniser: str | None
    """That filtered; figures by it say nothing new of what is learned from this corpus."""
    seed: int
    code_version: str


def spoken_schema() -> Any:
    """Columns of the shards: first those that the parquet reader knows, then where a row comes from."""
    import pyarrow as pa

    text = pa.string()
    return pa.schema(
        [
            *(pa.field(name, text, nullable=False) for name in ("id", "text", "speaker", "language", "split")),
            pa.field("audio_bytes", pa.binary(), nullable=False),
            pa.field("sample_rate", pa.int32(), nullable=False),
            pa.field("duration_s", pa.float64(), nullable=False),
            *(pa.field(name, text, nullable=False) for name in ("teacher", "teacher_fingerprint", "voice")),
            pa.field("settings", text, nullable=False),
            pa.field("licence", text, nullable=False),
            pa.field("loudness_lufs", pa.float64(), nullable=False),
            pa.field("filter_wer", pa.float64()),
        ]
    )


def spoken_record(row: SpokenRow, description: SpeechDescription) -> dict[str, Any]:
    """A row as :func:`spoken_schema` has it."""
    return {
        "id": row.id,
        "text": row.text,
        "speaker": row.voice,
        "language": description.language,
        "split": row.split,
        "audio_bytes": row.audio,
        "sample_rate": row.sample_rate,
        "duration_s": row.duration_s,
        "teacher": description.teacher,
        "teacher_fingerprint": description.teacher_fingerprint,
        "voice": row.voice,
        "settings": json.dumps(dict(row.settings), sort_keys=True),
        "licence": description.licence,
        "loudness_lufs": row.loudness_lufs,
        "filter_wer": row.wer,
    }
