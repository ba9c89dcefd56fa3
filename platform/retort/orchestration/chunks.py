"""Work in numbered chunks on Ray Data, each chunk's result on disk exactly once.

The driver cuts the work into chunks by a rule that does not depend on the workers. An actor that finishes a chunk
writes its tables and then a record with their hashes; each file appears whole, by a rename, under a name that the
chunk's number decides. So whatever dies, and however often, there is one result for each number: a worker that Ray
restarts writes the same names again, and a later run skips the chunks whose record and hashes are right. The folder
must lie where every worker sees it.
"""

import functools
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from retort import errors
from retort.data.utterance import Reject
from retort.errors import ResourceError, RetortError
from retort.orchestration.cluster import worker_environment
from retort.orchestration.demand import Demand, Node, room
from retort.orchestration.progress import Progress
from retort.run_config import PoolConfig
from retort.store.commit import sha256_file, write_bytes_atomic, write_json_atomic
from retort.store.disk import fresh_name, full_disk_as_resource_error
from retort.store.place import behind, content_of, drop, pull, push, push_json, received, shipped

_MAX_ATTEMPTS = 4
"""A chunk that killed its worker this often in one run is given up."""
_GROUP_BYTES = 1 << 20


@dataclass(frozen=True)
class ChunkResult:
    """What one chunk gives: Arrow tables by name, rejected rows, and numbers that are summed over the chunks."""

    tables: Mapping[str, Any]
    rejects: Sequence[Reject]
    numbers: Mapping[str, float]


Make = Callable[[], Callable[[Mapping[str, Any]], list[Any]]]
"""Makes, inside an actor, the function that turns an item into values."""


class ChunkWorker(Protocol):
    """Lives in an actor and does chunks, in any order, perhaps one of them twice."""

    def work(self, number: int) -> ChunkResult:
        """Do one chunk; the result is a function of the number alone."""
        ...


@dataclass(frozen=True)
class ChunkRecord:
    """What is on disk for one finished chunk: rows and SHA-256 of each table, rejects, numbers."""

    number: int
    rows: Mapping[str, int]
    hashes: Mapping[str, str]
    rejects: tuple[Reject, ...]
    numbers: Mapping[str, float]


class ChunkFolder:
    """The results of numbered chunks."""

    def __init__(self, folder: Path, num_chunks: int) -> None:
        self.folder, self.num_chunks = folder, num_chunks

    def __reduce__(self) -> tuple[Any, ...]:
        """Workers on other nodes have folders of their own."""
        return _chunks_here, (shipped(self.folder), self.num_chunks)

    def write(self, number: int, result: ChunkResult) -> None:
        """Write a chunk's tables, then its record.

        Raises:
            ResourceError: the disk is full.
        """
        hashes, rows = {}, {}
        for name, table in result.tables.items():
            path = self._table(name, number)
            path.parent.mkdir(parents=True, exist_ok=True)
            with full_disk_as_resource_error(path, written=path):
                hashes[name] = _write_table(path, table)
            rows[name] = table.num_rows
            push(path)
        record = ChunkRecord(number, rows, hashes, tuple(result.rejects), dict(result.numbers))
        if behind(self.folder) is not None:
            push_json(self._record(number), asdict(record))
        write_json_atomic(self._record(number), asdict(record))

    def read(self, number: int) -> ChunkRecord | None:
        """The record of a chunk whose tables are on disk as they were written, else None.

        In a store they may have been written by another node: then they are fetched.
        """
        record = self._read(number)
        if record is None and behind(self.folder) is not None:
            pull(self._record(number))
            found = content_of(self._record(number)) or b'{"hashes": {}}'
            for name in json.loads(found)["hashes"]:
                pull(self._table(name, number))
            record = self._read(number)
        return record

    def _read(self, number: int) -> ChunkRecord | None:
        try:
            tree = json.loads(self._record(number).read_bytes())
            record = ChunkRecord(**{**tree, "rejects": tuple(Reject(**reject) for reject in tree["rejects"])})
            whole = all(sha256_file(self._table(name, number)) == digest for name, digest in record.hashes.items())
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return record if whole and record.number == number else None

    def missing(self) -> list[int]:
        """Numbers of the chunks that are still to be done."""
        return [number for number in range(self.num_chunks) if self.read(number) is None]

    def records(self) -> list[ChunkRecord]:
        """The records of all chunks in order; every chunk must be done."""
        found = [self.read(number) for number in range(self.num_chunks)]
        records = [record for record in found if record is not None]
        assert len(records) == self.num_chunks, "every chunk must be done before they are put together"
        return records

    def collect(self, records: Sequence[ChunkRecord], name: str, destination: Path) -> int:
        """Put one table of the chunks into ``destination`` as ``part-*.parquet``; returns the number of rows."""
        destination.mkdir(parents=True, exist_ok=True)
        for record in records:
            if record.rows.get(name):
                _link(self._table(name, record.number), destination / f"part-{record.number:05d}.parquet")
        return sum(record.rows.get(name, 0) for record in records)

    def table_rows(self, name: str) -> list[dict[str, Any]]:
        """One table of all chunks as plain rows, in the chunks' order; every chunk must be done."""
        import pyarrow.parquet as pq

        paths = [self._table(name, record.number) for record in self.records() if record.rows.get(name)]
        return [row for path in paths for row in pq.read_table(path).to_pylist()]

    def forget(self, number: int) -> None:
        """Have a chunk done again by the next run."""
        drop(self._record(number))

    def count_attempt(self, number: int) -> None:
        """Note that a worker begins a chunk.

        Raises:
            ResourceError: workers died over it too often.
        """
        path = self.folder / "attempts" / f"{number:05d}"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(b".")
            attempts = file.tell()
        if attempts > _MAX_ATTEMPTS:
            raise ResourceError(
                f"chunk {number} of {self.num_chunks} killed its worker {_MAX_ATTEMPTS} times; the machine is probably "
                "out of memory: lower pool.size or batch_size, or look into the worker's log"
            )

    def forget_attempts(self) -> None:
        """Start counting afresh; for the beginning of a run."""
        shutil.rmtree(self.folder / "attempts", ignore_errors=True)

    def _table(self, name: str, number: int) -> Path:
        return self.folder / name / f"{number:05d}.parquet"

    def _record(self, number: int) -> Path:
        return self.folder / "records" / f"{number:05d}.json"


def run_chunks(
    chunks: ChunkFolder,
    worker: Callable[..., ChunkWorker],
    arguments: Mapping[str, Any],
    pool: PoolConfig,
    progress: Progress,
    note: str,
) -> int:
    """Do all chunks that are not done, in a pool of Ray Data actors; Ray must be up. Returns how many were to do.

    Args:
        chunks: where the results go.
        worker: makes the worker inside the actor.
        arguments: its keyword arguments.
        pool: size and resources of the pool.
        progress: told after each chunk.
        note: what the work is called.

    Raises:
        RetortError: as a worker raised it.
    """
    missing = chunks.missing()
    chunks.forget_attempts()
    done = chunks.num_chunks - len(missing)
    if done:
        progress.log(f"{note}: {done} of {chunks.num_chunks} chunks are done already")
    items = [{"chunk": number} for number in missing]
    make = functools.partial(_chunk_actor, chunks, worker, sent(arguments))
    for _ in stream_through_actors(items, make, pool):
        done += 1
        progress.update(done, chunks.num_chunks, note)
    return len(missing)


def stream_through_actors(items: Sequence[Mapping[str, Any]], make: Make, pool: PoolConfig) -> Iterator[Any]:
    """Stream items one by one through a pool of Ray Data actors, and yield what they return, in the items' order.

    Args:
        items: plain rows.
        make: called in each actor once; what it returns is called with each item and returns a list of values.
        pool: size and resources of the pool.

    Raises:
        RetortError: as it was raised in an actor.
    """
    if not items:
        return
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    DataContext.get_current().enable_progress_bars = False
    size = min(pool.size, len(items))
    use_gpu = pool.gpus_per_worker > 0
    dataset = ray.data.from_items([{"item": item} for item in items], override_num_blocks=len(items)).map_batches(
        _Actor,
        fn_constructor_kwargs={"make": make},
        batch_size=1,
        # One to start with, so that a cluster that has room for fewer than all still begins.
        compute=ActorPoolStrategy(min_size=1, max_size=size, initial_size=_fitting(size, pool)),
        **Demand.of_pool(pool).options,
        runtime_env={"env_vars": worker_environment(pool.threads_per_worker, use_gpu=use_gpu)},
    )
    dataset.context.execution_options.preserve_order = True
    for row in dataset.iter_rows():
        if row["error"]:
            name, _, message = row["error"].partition("\n")
            raise getattr(errors, name)(message)
        yield row["value"]


def _fitting(size: int, pool: PoolConfig) -> int:
    """How many actors the cluster has room for now, at least one."""
    import ray

    return max(1, min(size, room([Node.from_ray(entry) for entry in ray.nodes()], Demand.of_pool(pool))))


class _Actor:
    """What Ray Data makes in each actor process.

    Errors of ours travel as values: Ray would wrap them in its own, keep the text and lose the class.
    """

    def __init__(self, make: Make) -> None:
        self._error = ""
        try:
            self._call = make()
        except RetortError as error:
            self._error = _as_text(error)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        import numpy as np

        values: list[Any] = []
        try:
            if not self._error:
                for item in batch["item"]:
                    values.extend(self._call(item))
        except RetortError as error:
            self._error = _as_text(error)
        if self._error:
            values = [values[0] if values else None]
        cells = np.empty(len(values), dtype=object)
        cells[:] = values
        return {"value": cells, "error": np.array([self._error] * len(values), dtype=object)}


def _as_text(error: RetortError) -> str:
    """The nearest class of :mod:`retort.errors`, then the message."""
    kind = next(kind for kind in type(error).__mro__ if getattr(errors, kind.__name__, None) is kind)
    return f"{kind.__name__}\n{error}"


def _chunk_actor(
    chunks: ChunkFolder, worker: Callable[..., ChunkWorker], arguments: dict[str, Any]
) -> Callable[[Mapping[str, Any]], list[Any]]:
    made = worker(**arrived(arguments))

    def call(item: Mapping[str, Any]) -> list[Any]:
        number = int(item["chunk"])
        # A worker may have died between finishing a chunk and saying so.
        if chunks.read(number) is None:
            chunks.count_attempt(number)
            chunks.write(number, made.work(number))
        return [number]

    return call


def write_rejects(path: Path, rejects: Iterable[Reject]) -> Counter[str]:
    """Write ``rejects.jsonl`` and count the codes."""
    codes: Counter[str] = Counter()
    lines = []
    for reject in rejects:
        codes[reject.code] += 1
        lines.append(json.dumps(asdict(reject), ensure_ascii=False))
    write_bytes_atomic(path, "".join(line + "\n" for line in lines).encode("utf-8", errors="backslashreplace"))
    return codes


def sum_numbers(records: Sequence[ChunkRecord]) -> dict[str, float]:
    """The chunks' numbers, added up by name."""
    totals: dict[str, float] = {}
    for record in records:
        for name, value in record.numbers.items():
            totals[name] = totals.get(name, 0.0) + value
    return totals


def open_work_folder(output: Path, key: str) -> Path:
    """The folder for unfinished work of this configuration; that of any other is removed.

    Args:
        output: the job's output folder, whose lock is held.
        key: names everything that decides the chunks' content.
    """
    work = output / "work"
    folder = work / key
    folder.mkdir(parents=True, exist_ok=True)
    for other in work.iterdir():
        if other != folder:
            drop(other)
    return folder


def remove_work(folder: Path) -> None:
    """Remove the unfinished work of a job that is done, which :func:`open_work_folder` gave."""
    drop(folder.parent)


def sent(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments for workers on any node: the files that paths in them name go to the output's store, if it has one."""
    for value in arguments.values():
        if isinstance(value, Path):
            push(value)
    return {name: shipped(value) if isinstance(value, Path) else value for name, value in arguments.items()}


def arrived(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What :func:`sent` sent, on this node."""
    here = {name: received(value) if isinstance(value, Path) else value for name, value in arguments.items()}
    for value in here.values():
        if isinstance(value, Path):
            pull(value)
    return here


def _chunks_here(folder: Path, num_chunks: int) -> ChunkFolder:
    return ChunkFolder(received(folder), num_chunks)


def _write_table(path: Path, table: Any) -> str:
    import pyarrow.parquet as pq

    partial = fresh_name(path, "tmp")
    try:
        # Small groups, so that one row of a table of long rows can be read without the others.
        rows = max(1, table.num_rows * _GROUP_BYTES // max(1, table.nbytes))
        pq.write_table(table, partial, compression="zstd", row_group_size=rows)
        digest = sha256_file(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return digest


def _link(source: Path, target: Path) -> None:
    """A second name for a file that nobody changes any more, or a copy where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
