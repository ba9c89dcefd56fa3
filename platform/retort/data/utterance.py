"""The utterance: what every reader yields and every later step takes; the rejected row; their parquet file."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retort.errors import DataError

_ROWS_PER_GROUP = 1000


@dataclass(frozen=True)
class Utterance:
    """One recording, or one segment of it, with its text.

    ``audio`` is a path or the encoded bytes of a file; nothing is decoded before it is needed.
    ``start_s`` and ``end_s`` cut a segment out of a longer recording; ``None`` means from the start, to the end.
    """

    id: str
    text: str
    speaker: str
    language: str
    audio: Path | bytes
    split: str | None = None
    sample_rate: int | None = None
    duration_s: float | None = None
    start_s: float | None = None
    end_s: float | None = None


@dataclass(frozen=True)
class Reject:
    """A row that cannot be used: its reason as a code for counting, as words for people, and where it stands."""

    id: str
    code: str
    detail: str
    where: str


def write_utterances(path: Path, rows: Iterable[Utterance]) -> int:
    """Write utterances to one parquet file, group by group, and return how many there were.

    The file appears under its name only when it is whole.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _schema()
    partial = path.with_name(f"{path.name}.partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    group: list[dict[str, Any]] = []
    with pq.ParquetWriter(partial, schema) as writer:
        for row in rows:
            group.append(_record(row))
            count += 1
            if len(group) == _ROWS_PER_GROUP:
                writer.write_table(pa.Table.from_pylist(group, schema=schema))
                group = []
        if group:
            writer.write_table(pa.Table.from_pylist(group, schema=schema))
    partial.replace(path)
    return count


def read_utterances(path: Path) -> Iterator[Utterance]:
    """Yield the utterances of a file that :func:`write_utterances` wrote, in order, one group in memory at a time.

    Raises:
        DataError: the file is missing, is not parquet, or lacks a column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise DataError(f"{path}: no such file; run `retort prepare` to write it")
    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: not a parquet file: {error}") from None
    with file:
        missing = [name for name in _schema().names if name not in file.schema_arrow.names]
        if missing:
            raise DataError(
                f"{path}: has no column {missing[0]!r}; it is not a file of utterances, run `retort prepare`"
            )
        for batch in file.iter_batches(_ROWS_PER_GROUP, columns=_schema().names):
            for record in batch.to_pylist():
                yield _utterance(record)


def _schema() -> Any:
    import pyarrow as pa

    text, real = pa.string(), pa.float64()
    return pa.schema(
        [
            pa.field("id", text, nullable=False),
            pa.field("text", text, nullable=False),
            pa.field("speaker", text, nullable=False),
            pa.field("language", text, nullable=False),
            pa.field("audio_path", text),
            pa.field("audio_bytes", pa.binary()),
            pa.field("sample_rate", pa.int32()),
            pa.field("duration_s", real),
            pa.field("split", text),
            pa.field("start_s", real),
            pa.field("end_s", real),
        ]
    )


def _record(row: Utterance) -> dict[str, Any]:
    inline = isinstance(row.audio, bytes)
    return {
        "id": row.id,
        "text": row.text,
        "speaker": row.speaker,
        "language": row.language,
        "audio_path": None if inline else str(row.audio),
        "audio_bytes": row.audio if inline else None,
        "sample_rate": row.sample_rate,
        "duration_s": row.duration_s,
        "split": row.split,
        "start_s": row.start_s,
        "end_s": row.end_s,
    }


def _utterance(record: dict[str, Any]) -> Utterance:
    inline, path = record.pop("audio_bytes"), record.pop("audio_path")
    if inline is None and path is None:
        raise DataError(
            f"utterance {record['id']!r} has neither audio_path nor audio_bytes; run `retort prepare` again"
        )
    return Utterance(audio=Path(path) if inline is None else inline, **record)
