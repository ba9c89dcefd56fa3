"""Token sets: utterances as codec codes and text ids, in parquet shards with the fingerprints they were made with.

The rows are kept as an Arrow table, memory-mapped where the files are local, so a large set costs no memory until a
batch asks for its rows.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retort.config import Config, read_record
from retort.errors import DataError

DESCRIPTION_FILE = "tokens.json"


class TokenSetDescription(Config):
    """What a token set was made with; it lies beside the shards."""

    codec_fingerprint: str
    text_fingerprint: str
    text_vocabulary_size: int
    num_codebooks: int
    codebook_size: int
    sample_rate: int
    frame_rate: float
    speaker_encoder: str | None = None
    """Name of what made the rows' embeddings; ``None`` where there are none, or nobody wrote it down."""

    @property
    def vocabularies(self) -> tuple[int, int, int]:
        """Text vocabulary, number of codebooks, codes per codebook."""
        return self.text_vocabulary_size, self.num_codebooks, self.codebook_size


@dataclass(frozen=True)
class TokenRow:
    """One utterance as tokens.

    Attributes:
        id: unique in its set.
        text: as spoken; for synthetic rows the text that was asked for.
        text_ids: the text front-end's ids.
        speaker: speaker id.
        split: ``train``, ``validation`` or ``test``.
        codes_KT: int64 codes without delay.
        duration_s: seconds of the original audio.
        speaker_embedding: embedding by the evaluation's speaker encoder, or None.
    """

    id: str
    text: str
    text_ids: tuple[int, ...]
    speaker: str
    split: str
    codes_KT: Tensor
    duration_s: float
    speaker_embedding: tuple[float, ...] | None = None

    @property
    def num_frames(self) -> int:
        """T."""
        return int(self.codes_KT.shape[1])


def row_to_record(row: TokenRow) -> dict[str, Any]:
    """The parquet record of a row; codes are little-endian in [K, T] order, int16 or, where one needs it, int32."""
    is_narrow = not row.codes_KT.numel() or int(row.codes_KT.max()) <= np.iinfo(np.int16).max
    return {
        "id": row.id,
        "text": row.text,
        "text_ids": list(row.text_ids),
        "speaker": row.speaker,
        "split": row.split,
        "num_codebooks": int(row.codes_KT.shape[0]),
        "num_frames": row.num_frames,
        "codes": row.codes_KT.numpy().astype("<i2" if is_narrow else "<i4").tobytes(),
        "duration_s": row.duration_s,
        "speaker_embedding": None if row.speaker_embedding is None else list(row.speaker_embedding),
    }


def record_to_row(record: Mapping[str, Any]) -> TokenRow:
    """Inverse of :func:`row_to_record`."""
    K, T = record["num_codebooks"], record["num_frames"]
    codes = np.frombuffer(record["codes"], dtype="<i4" if len(record["codes"]) == 4 * K * T > 0 else "<i2").reshape(
        K, T
    )
    embedding = record.get("speaker_embedding")
    return TokenRow(
        id=record["id"],
        text=record["text"],
        text_ids=tuple(int(i) for i in record["text_ids"]),
        speaker=record["speaker"],
        split=record["split"],
        codes_KT=torch.from_numpy(codes.astype(np.int64)),
        duration_s=float(record["duration_s"]),
        speaker_embedding=None if embedding is None else tuple(float(x) for x in embedding),
    )


def token_schema() -> Any:
    """The Arrow schema of a shard."""
    import pyarrow as pa

    return pa.schema(
        [
            ("id", pa.string()),
            ("text", pa.string()),
            ("text_ids", pa.list_(pa.int32())),
            ("speaker", pa.string()),
            ("split", pa.string()),
            ("num_codebooks", pa.int32()),
            ("num_frames", pa.int32()),
            ("codes", pa.binary()),
            ("duration_s", pa.float64()),
            ("speaker_embedding", pa.list_(pa.float32())),
        ]
    )


def write_shard(path: Path, rows: Iterable[TokenRow]) -> None:
    """Write one shard."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist([row_to_record(r) for r in rows], schema=token_schema()), path)


def write_description(folder: Path, description: TokenSetDescription) -> None:
    """Write the description beside the shards."""
    (folder / DESCRIPTION_FILE).write_text(description.model_dump_json(indent=2) + "\n")


class TokenSet(Sequence[TokenRow]):
    """A token set opened for reading: rows in order of their ids, so that the order never depends on the writers."""

    def __init__(self, description: TokenSetDescription, table: Any, indices: Sequence[int] | None = None) -> None:
        self.description = description
        self._table = table
        if indices is None:
            ids = table.column("id").to_pylist()
            indices = sorted(range(len(ids)), key=ids.__getitem__)
        self._indices = list(indices)

    @classmethod
    def open(cls, folder: Path) -> "TokenSet":
        """Open the shards of ``folder``.

        Raises:
            DataError: the folder is missing, is not a token set, or an id appears twice; the message names it and the
                cure.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not (folder / DESCRIPTION_FILE).is_file():
            raise DataError(f"{folder} is not a token set (no {DESCRIPTION_FILE}); make one with `retort prepare`")
        description = read_record(folder / DESCRIPTION_FILE, TokenSetDescription, cure="run `retort prepare` again")
        shards = sorted(folder.glob("*.parquet"))
        if not shards:
            raise DataError(f"{folder} holds no rows; run `retort prepare` again")
        tables = [pq.read_table(shard, memory_map=True, schema=token_schema()) for shard in shards]
        table = pa.concat_tables(tables)
        ids = table.column("id").to_pylist()
        if len(set(ids)) < len(ids):
            doubled = [name for name, count in Counter(ids).most_common(3) if count > 1]
            raise DataError(
                f"{folder}: {len(ids) - len(set(ids))} of {len(ids)} rows have the id of another "
                f"({', '.join(doubled)}); ids must differ: was a shard copied? Run `retort prepare` again"
            )
        return cls(description, table)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return record_to_row(self._table.slice(self._indices[index], 1).to_pylist()[0])

    def column(self, name: str) -> list[Any]:
        """One column in row order, without decoding the codes."""
        values = self._table.column(name).to_pylist()
        return [values[i] for i in self._indices]

    def split(self, name: str) -> "TokenSet":
        """The rows of one split."""
        splits = self._table.column("split").to_pylist()
        return TokenSet(self.description, self._table, [i for i in self._indices if splits[i] == name])


def refuse_mismatch(part: str, what: str, ours: str, other: str, theirs: str, cure: str) -> None:
    """Refuse two things that were made with different codecs, text front-ends or whatever ``part`` is called.

    Raises:
        DataError: the fingerprints differ; the part and both are shown.
    """
    if ours != theirs:
        raise DataError(f"the {part} differs: {what} was made with {ours}, {other} with {theirs}; {cure}")
