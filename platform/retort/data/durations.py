"""Durations of phones beside a corpus: parquet rows by the corpus' own ids, in frames of one mel."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from retort.audio.mel import MelConfig
from retort.config import Config
from retort.errors import DataError

ROWS = "durations"
DURATIONS_FILE = "durations.json"


class DurationsDescription(Config):
    """What all rows have in common; it lies beside them."""

    schema_version: Literal[1] = 1
    voice: str
    """Of espeak-ng, that read the texts."""
    phonemizer: str
    """The program with its version."""
    aligner_fingerprint: str
    mel: MelConfig
    """Whose frames are counted."""
    code_version: str


@dataclass(frozen=True)
class DurationRow:
    """The phones of one recording.

    Attributes:
        id: of the corpus' row.
        split: of the row.
        phones: IPA with stress; empty for a pause.
        frames: how long each lasts; together they are the recording's ``1 + N // hop`` frames.
        log_prob: of a frame's phone on the path, on average.
    """

    id: str
    split: str
    phones: tuple[str, ...]
    frames: tuple[int, ...]
    log_prob: float


def duration_schema() -> Any:
    """Columns of the shards."""
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("split", pa.string(), nullable=False),
            pa.field("phones", pa.list_(pa.string()), nullable=False),
            pa.field("frames", pa.list_(pa.int32()), nullable=False),
            pa.field("log_prob", pa.float64(), nullable=False),
        ]
    )


def duration_record(row: DurationRow) -> dict[str, Any]:
    """A row as :func:`duration_schema` has it."""
    return {
        "id": row.id,
        "split": row.split,
        "phones": list(row.phones),
        "frames": list(row.frames),
        "log_prob": row.log_prob,
    }


def read_description(folder: Path) -> DurationsDescription:
    """What the rows of a result have in common.

    Raises:
        DataError: the folder holds no durations of this version.
    """
    path = folder / DURATIONS_FILE
    try:
        return DurationsDescription.model_validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: no durations of this version ({str(error)[:200]}); run `retort align`") from None


def read_durations(folder: Path) -> Iterator[DurationRow]:
    """The rows of a result, in order.

    Raises:
        DataError: the folder holds no durations.
    """
    import pyarrow.parquet as pq

    read_description(folder)
    for file in sorted((folder / ROWS).glob("part-*.parquet")):
        for record in pq.read_table(file).to_pylist():
            frames: Sequence[int] = record.pop("frames")
            yield DurationRow(**{**record, "phones": tuple(record["phones"])}, frames=tuple(frames))
