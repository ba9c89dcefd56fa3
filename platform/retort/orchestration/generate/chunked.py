"""What all generations share: chunks of work done exactly once, their rejects, and the folder that they are kept in."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from retort.data.utterance import Reject
from retort.orchestration.chunks import (
    ChunkFolder,
    ChunkRecord,
    ChunkWorker,
    open_work_folder,
    run_chunks,
    sum_numbers,
    write_rejects,
)
from retort.orchestration.demand import Demand
from retort.orchestration.progress import Progress
from retort.orchestration.workplace import workplace
from retort.run_config import PoolConfig
from retort.store.artifact import Artifact

REJECTS_FILE = "rejects.jsonl"
PRECISION = "precision/"
"""Prefix of the number of :func:`computed_in`."""


@dataclass(frozen=True)
class Work:
    """What is to be done, once its plan is on disk.

    Attributes:
        num_chunks: chunks are numbered from 0.
        worker: makes the worker inside an actor.
        arguments: its keyword arguments.
        rejects: what the plan itself refused.
    """

    num_chunks: int
    worker: Callable[..., ChunkWorker]
    arguments: Mapping[str, Any]
    rejects: Sequence[Reject] = ()


@dataclass(frozen=True)
class Generated:
    """What the chunks gave.

    Attributes:
        chunks: their tables on disk.
        records: their records, in order.
        rejects: of the plan and of all chunks.
        folder: holds all unfinished work; it goes when the result is committed.
    """

    chunks: ChunkFolder
    records: Sequence[ChunkRecord]
    rejects: Sequence[Reject]
    folder: Path

    def total(self, name: str) -> float:
        """One of the chunks' numbers, added up."""
        return sum_numbers(self.records).get(name, 0.0)

    @property
    def precision(self) -> str | None:
        """The number format that the workers computed in; what ``auto`` came to is known to them alone."""
        names = sorted(name for name in sum_numbers(self.records) if name.startswith(PRECISION))
        return "+".join(name.removeprefix(PRECISION) for name in names) or None


def generate_chunks(
    output: Path, key: str, plan: Callable[[Path], Work], pool: PoolConfig, progress: Progress
) -> Generated:
    """Plan the work, do what is not done yet, and write ``rejects.jsonl``.

    Args:
        output: the job's output folder, whose lock is held.
        key: names what decides the content of the chunks.
        plan: writes what the workers need into the folder that it is given; the same for every run with this key.
        pool: the actors.
        progress: told after each chunk.
    """
    folder = open_work_folder(output, key)
    work = plan(folder)
    chunks = ChunkFolder(folder / "chunks", work.num_chunks)
    with workplace(output, Demand.of_pool(pool), progress) as place:
        place.run(lambda heard: run_chunks(chunks, work.worker, work.arguments, pool, heard, "chunks generated"))
    records = chunks.records()
    rejects = [*work.rejects, *(reject for record in records for reject in record.rejects)]
    write_rejects(output / REJECTS_FILE, rejects)
    return Generated(chunks, records, rejects, folder.parent)


def computed_in(dtype: torch.dtype) -> dict[str, float]:
    """The number by which a chunk says which format it was computed in."""
    return {f"{PRECISION}{str(dtype).removeprefix('torch.')}": 1.0}


def summary(artifact: Artifact) -> dict[str, Any]:
    """The figures of a finished generation, and where it lies."""
    return {**artifact.info.metrics, "fingerprint": artifact.fingerprint, "result": str(artifact.path)}
