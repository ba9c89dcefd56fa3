"""Parquet shards whose rows hold large cells, such as log-mels as fp16 bytes: what mel sets of any kind are read by."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retort.errors import DataError

_KEPT_BYTES = 1 << 30
"""Large cells that one reader keeps in memory."""


def fp16_bytes(values: Tensor) -> bytes:
    """A tensor's numbers in order, as little-endian fp16."""
    return values.detach().cpu().to(torch.float16).numpy().astype("<f2").tobytes()


def fp16_tensor(data: bytes, rows: int) -> Tensor:
    """What :func:`fp16_bytes` wrote, fp16 of so many rows."""
    return torch.from_numpy(np.frombuffer(data, dtype="<f2").astype(np.float16)).view(rows, -1)


def fp32_bytes(values: Tensor) -> bytes:
    """A tensor's numbers in order, as little-endian fp32."""
    return values.detach().cpu().float().numpy().astype("<f4").tobytes()


def fp32_tensor(data: bytes) -> Tensor:
    """What :func:`fp32_bytes` wrote, flat."""
    return torch.from_numpy(np.frombuffer(data, dtype="<f4").astype(np.float32))


class Shards:
    """Parquet shards whose large columns are read row by row, when they are asked for, and then kept.

    Args:
        folder: of the shards.
        schema: Arrow schema that each of them must have.
        large: names of the columns that are not read at once.

    Raises:
        DataError: a shard has another schema.
    """

    def __init__(self, folder: Path, schema: Any, large: Sequence[str]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._large = tuple(large)
        small = [name for name in schema.names if name not in self._large]
        self._places: list[tuple[Path, int, int]] = []
        tables = []
        for path in sorted(folder.glob("*.parquet")):
            with pq.ParquetFile(path, memory_map=True) as file:
                if file.schema_arrow.names != schema.names:
                    raise DataError(f"{path}: not of this version; make it again")
                tables.append(file.read(columns=small))
                for group in range(file.num_row_groups):
                    count = file.metadata.row_group(group).num_rows
                    self._places.extend((path, group, place) for place in range(count))
        self.small = pa.concat_tables(tables) if tables else schema.empty_table().select(small)
        self._kept: dict[int, dict[str, Any]] = {}
        self._kept_bytes = 0

    def large(self, place: int) -> dict[str, Any]:
        """The large cells of one row."""
        if place in self._kept:
            return self._kept[place]
        import pyarrow.parquet as pq

        path, group, within = self._places[place]
        # Opened anew: a large set has more shards than a process may hold open.
        with pq.ParquetFile(path, memory_map=True) as file:
            table = file.read_row_group(group, columns=list(self._large))
        cells, size = table.to_pylist(), table.nbytes // max(1, table.num_rows)
        for other, cell in enumerate(cells, start=place - within):
            if other not in self._kept and self._kept_bytes + size <= _KEPT_BYTES:
                self._kept[other] = cell
                self._kept_bytes += size
        return cells[within]  # type: ignore[no-any-return]
