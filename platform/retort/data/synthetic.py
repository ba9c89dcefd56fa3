"""The synthetic set: what a guided teacher says of real tokens, and sequences that it made up itself.

A folder with ``synthetic.json`` (how everything in it was made), ``targets/*.parquet`` (kind ``teacher_forced``: the
guided top-k of the training rows' own tokens) and ``sampled/*.parquet`` (kind ``sampled``: token rows with the guided
top-k of each token). Every row repeats what it was made with, so that a shard alone still tells (METHODS.md, trap 45).

The distribution of step s predicts ``targets_BKS[..., s]`` of :func:`retort.data.batches.lay_out`, for
``num_steps(T)`` steps.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from retort.config import Config, read_record
from retort.data.logit_cache import CacheEncoding, decode_top_k
from retort.data.prompts import Prompt
from retort.data.tokens import TokenRow, TokenSet, TokenSetDescription, row_to_record, token_schema
from retort.errors import DataError
from retort.nn.guidance import GuidanceConfig
from retort.nn.top_k import TopK

SYNTHETIC_FILE = "synthetic.json"
TARGETS, SAMPLED = "targets", "sampled"
KEPT_BYTES = 1 << 30
"""Decoded targets that one rank keeps in memory."""


class SyntheticDescription(Config):
    """How a synthetic set was made."""

    teacher_fingerprint: str
    data_fingerprint: str
    """Of the token set's result folder."""
    tokens: TokenSetDescription
    """Codec, text front-end and shape, as in the token set."""
    delays: tuple[int, ...]
    guidance: GuidanceConfig
    coefficients: dict[str, float]
    """The same guidance, canonically: condition to coefficient."""
    temperature: float
    """Temperature of the stored distributions."""
    top_k: int
    encoding: CacheEncoding
    sampler: dict[str, JsonValue]
    prompt_max_frames: int
    precision: str
    """Number format of the teacher's forward pass."""
    seed: int
    code_version: str


def provenance(description: SyntheticDescription, kind: str) -> dict[str, Any]:
    """What every row repeats."""
    return {
        "kind": kind,
        "teacher_fingerprint": description.teacher_fingerprint,
        "guidance": json.dumps(description.coefficients, sort_keys=True),
        "temperature": description.temperature,
        "sampler": json.dumps(description.sampler, sort_keys=True),
        "code_version": description.code_version,
    }


def forced_record(
    row_id: str, prompt: Prompt | None, top_k: bytes, description: SyntheticDescription
) -> dict[str, Any]:
    """Record of a real row's targets; ``top_k`` as :func:`retort.data.logit_cache.encode_top_k` gives it."""
    shared = provenance(description, "teacher_forced")
    return {"id": row_id, **_prompt(prompt), "top_k": top_k, "seed": description.seed, **shared}


def sampled_record(
    row: TokenRow, prompt: Prompt | None, top_k: bytes, seed: int, description: SyntheticDescription
) -> dict[str, Any]:
    """Record of a sampled sequence; ``seed`` is its own."""
    shared = provenance(description, "sampled")
    return {**row_to_record(row), **_prompt(prompt), "top_k": top_k, "seed": seed, **shared}


def _prompt(prompt: Prompt | None) -> dict[str, Any]:
    return {
        "prompt_id": None if prompt is None else prompt.id,
        "prompt_position": None if prompt is None else prompt.position,
    }


def forced_schema() -> Any:
    """The Arrow schema of the teacher-forced targets."""
    import pyarrow as pa

    return pa.schema([("id", pa.string()), *_shared_fields()])


def sampled_schema() -> Any:
    """The Arrow schema of the sampled sequences: that of a token set, and the targets."""
    import pyarrow as pa

    return pa.schema([*token_schema(), *_shared_fields()])


def _shared_fields() -> list[tuple[str, Any]]:
    import pyarrow as pa

    return [
        ("prompt_id", pa.string()),
        ("prompt_position", pa.float64()),
        ("top_k", pa.binary()),
        ("seed", pa.int64()),
        ("kind", pa.string()),
        ("teacher_fingerprint", pa.string()),
        ("guidance", pa.string()),
        ("temperature", pa.float64()),
        ("sampler", pa.string()),
        ("code_version", pa.string()),
    ]


class CachedTargets(Mapping[str, TopK]):
    """Row id → guided top-k [S, K, k], decoded when it is asked for and then kept, up to ``KEPT_BYTES``.

    Decoding took a fifth of a small student's step; from the second epoch on it costs nothing. Kept ids are 32-bit.
    """

    def __init__(self, table: Any, where: Path) -> None:
        self._cells = table.column("top_k")
        ids = table.column("id").to_pylist()
        self._places = {name: place for place, name in enumerate(ids)}
        if len(self._places) != len(ids):
            raise DataError(f"{where}: {len(ids) - len(self._places)} ids appear twice; run `retort generate` again")
        self._kept: dict[str, TopK] = {}
        self._kept_bytes = 0

    def __getitem__(self, row_id: str) -> TopK:
        if row_id in self._kept:
            return self._kept[row_id]
        top = decode_top_k(self._cells[self._places[row_id]].as_py())
        top = TopK(top.ids.int(), top.log_probs, top.log_tail)
        size = sum(part.numel() * part.element_size() for part in (top.ids, top.log_probs, top.log_tail))
        if self._kept_bytes + size <= KEPT_BYTES:
            self._kept[row_id] = top
            self._kept_bytes += size
        return top

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


class SyntheticSet:
    """A synthetic set opened for reading.

    Attributes:
        description: how it was made.
        teacher_forced: targets of real rows, by their id in the token set.
        sampled: the sampled sequences as training rows, in order of their ids.
        sampled_targets: their targets, by id.
    """

    def __init__(self, description: SyntheticDescription, forced: Any, sampled: Any, where: Path) -> None:
        self.description = description
        self.teacher_forced = CachedTargets(forced, where / TARGETS)
        self.sampled: Sequence[TokenRow] = TokenSet(description.tokens, sampled.select(token_schema().names))
        self.sampled_targets = CachedTargets(sampled, where / SAMPLED)
        self._where = where

    @classmethod
    def open(cls, folder: Path) -> "SyntheticSet":
        """Open the result folder of ``retort generate``.

        Raises:
            DataError: it is not one, or an id appears twice.
        """
        path = folder / SYNTHETIC_FILE
        if not path.is_file():
            raise DataError(f"{folder} is not a synthetic set (no {SYNTHETIC_FILE}); make one with `retort generate`")
        description = read_record(path, SyntheticDescription, cure="run `retort generate` again")
        forced, sampled = _read(folder / TARGETS, forced_schema()), _read(folder / SAMPLED, sampled_schema())
        return cls(description, forced, sampled, folder)

    def lookup(self, rows: Sequence[TokenRow]) -> Mapping[int, TopK]:
        """Index of each row → its targets, for real and sampled rows alike.

        Raises:
            DataError: a row has no targets here.
        """
        missing = [row.id for row in rows if row.id not in self.teacher_forced and row.id not in self.sampled_targets]
        if missing:
            raise DataError(
                f"{self._where} holds no targets for {len(missing)} of {len(rows)} rows, the first is {missing[0]!r}; "
                "run `retort generate` with teacher_forced: true on this token set"
            )
        return _ByIndex([row.id for row in rows], self.teacher_forced, self.sampled_targets)

    def refuse_unfit(
        self, *, data_fingerprint: str, guidance: GuidanceConfig, temperature: float, prompt_max_frames: int
    ) -> None:
        """Refuse to train a student on targets that were made for something else.

        Args:
            data_fingerprint: of the token set that the student trains on.
            guidance: what the student is to have baked in.
            temperature: of its loss.
            prompt_max_frames: of its batches.

        Raises:
            DataError: one of them differs; both values are shown.
        """
        made = self.description
        coefficients = {name: value for name, value in guidance.build().coefficients.items() if value}
        cached = {name: value for name, value in made.coefficients.items() if value}
        for what, ours, theirs in (
            ("the token set", data_fingerprint, made.data_fingerprint),
            ("guidance", json.dumps(coefficients, sort_keys=True), json.dumps(cached, sort_keys=True)),
            ("temperature", temperature, made.temperature),
            ("prompt_max_frames", prompt_max_frames, made.prompt_max_frames),
        ):
            if ours != theirs:
                raise DataError(
                    f"{self._where} was made with {what} {theirs}, this run asks for {ours}; "
                    "make the two equal, or run `retort generate` for this one"
                )


class _ByIndex(Mapping[int, TopK]):
    def __init__(self, ids: Sequence[str], forced: Mapping[str, TopK], sampled: Mapping[str, TopK]) -> None:
        self._ids, self._forced, self._sampled = ids, forced, sampled

    def __getitem__(self, index: int) -> TopK:
        if not 0 <= index < len(self._ids):
            raise KeyError(index)
        row_id = self._ids[index]
        return self._forced[row_id] if row_id in self._forced else self._sampled[row_id]

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self._ids)))

    def __len__(self) -> int:
        return len(self._ids)


def _read(folder: Path, schema: Any) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = [pq.read_table(shard, memory_map=True, schema=schema) for shard in sorted(folder.glob("*.parquet"))]
    return pa.concat_tables(tables) if tables else schema.empty_table()
