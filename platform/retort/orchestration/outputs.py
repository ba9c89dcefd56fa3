"""The layout of a job's output folder, and who may write it.

``OUTPUT/run.yaml`` (the resolved configuration), ``OUTPUT/metrics.jsonl``, ``OUTPUT/checkpoints/`` where the job
trains, and ``OUTPUT/result/``, the committed artifact that the next job reads.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import yaml

from retort.config import Config, validate
from retort.errors import ConfigError
from retort.location import RemotePath, local_only
from retort.orchestration.progress import Progress
from retort.store.artifact import Artifact, read_artifact
from retort.store.commit import is_committed, write_bytes_atomic
from retort.store.place import hold, is_finished, keep_result, local_of, localise, open_output, push, pushed_at_the_end
from retort.store.results import RESULT, RUN_FILE, result_of

C = TypeVar("C", bound=Config)

METRICS_FILE = "metrics.jsonl"
EVENTS_FILE = "train.log"
TENSORBOARD = "tensorboard"
CHECKPOINTS = "checkpoints"
_OF_RANK_ZERO = (METRICS_FILE, EVENTS_FILE, TENSORBOARD, CHECKPOINTS)
"""What a training worker writes and stores, on whichever node it is."""
_UNFINISHED = ("work", "pieces", "ray")
"""Folders in an output that a finished job has no use for."""


class JobConfig(Protocol):
    """What every job's configuration has."""

    @property
    def job(self) -> str:
        """The verb."""
        ...

    @property
    def output(self) -> Path:
        """Folder that the job writes."""
        ...

    def model_dump(self, *, mode: str) -> dict[str, Any]:
        """The configuration as a tree."""
        ...


@contextlib.contextmanager
def job_output(config: JobConfig, *, others: Sequence[str] = ()) -> Iterator[Path]:
    """Hold ``config.output`` against other runs and write ``run.yaml``; yields the folder as an absolute path.

    Of an output in a store it is this node's folder, with what an earlier run left in the store; what is written
    there as it is done goes to the store (:mod:`retort.store.place`), and small files beside the result at the end.

    Args:
        config: the job.
        others: names in its output under which other jobs' outputs lie, which hold themselves.

    Raises:
        StorageError: another run holds it, or it cannot be written.
    """
    where = config.output.absolute()
    with hold(where) as held:
        output = open_output(where, kept_apart=(RESULT, CHECKPOINTS), others=others)
        tree = config.model_dump(mode="json")
        text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, default_flow_style=False)
        write_bytes_atomic(output / RUN_FILE, text.encode())
        push(output / RUN_FILE)
        with pushed_at_the_end(output, except_for=(RESULT, *_OF_RANK_ZERO, *_UNFINISHED, *others)):
            yield output
            held.check()


def run_once(config: JobConfig, progress: Progress, work: Callable[[], Artifact]) -> tuple[Artifact, float]:
    """The result of a job, from an earlier run of this very configuration or else from ``work``.

    Args:
        config: the job.
        progress: told if there is nothing left to do.
        work: checks its inputs, does the job under :func:`job_output`, and commits the result.

    Returns:
        The committed artifact, and the seconds that ``work`` took: 0.0 if the result was there.

    Raises:
        ConfigError: the output holds the result of another configuration.
        StorageError: the result is damaged.
    """
    done = _finished_result(config)
    if done is not None:
        progress.log(f"{config.job}: {config.output} is finished")
        return done, 0.0
    began = time.monotonic()
    artifact = work()
    kept = replace(artifact, path=keep_result(artifact.path))
    return kept, time.monotonic() - began


def _finished_result(config: JobConfig) -> Artifact | None:
    """The verified artifact of an earlier run of this very configuration, or None if there is none yet.

    Where the output folder itself lies does not count.

    Raises:
        ConfigError: the output holds the result of another configuration; the first keys that differ are named.
        StorageError: the result is damaged.
    """
    where = config.output.absolute() / RESULT
    folder = localise(where) if isinstance(where, RemotePath) and is_finished(where) else local_of(where)
    if not is_committed(folder):
        return None
    artifact = read_artifact(folder)
    changed = differing_keys(
        _completed(artifact.info.config, type(config)), config.model_dump(mode="json"), ignore=("output",)
    )
    if changed:
        raise ConfigError(
            f"{config.output} holds the result of another configuration; it differs in {'; '.join(changed[:3])}. "
            "Choose another output, or delete that folder"
        )
    return artifact


def _completed(tree: Mapping[str, Any], kind: type[JobConfig]) -> Mapping[str, Any]:
    """A recorded configuration with the defaults of keys that were added since."""
    try:
        return validate(dict(tree), kind, where="the record").model_dump(mode="json")
    except ConfigError:
        return tree


def differing_keys(old: Mapping[str, Any], new: Mapping[str, Any], *, ignore: Sequence[str] = ()) -> list[str]:
    """Where two configuration trees differ, as ``a.b: 1 → 2``, in the order of the second tree.

    Args:
        old: the tree on record.
        new: the present tree.
        ignore: dotted keys that may differ, each with everything below it.
    """
    before, after = _flat(old), _flat(new)
    keys = [*after, *(key for key in before if key not in after)]
    return [
        f"{key}: {before.get(key, '(absent)')} → {after.get(key, '(absent)')}"
        for key in keys
        if before.get(key, "(absent)") != after.get(key, "(absent)")
        and not any(key == name or key.startswith(name + ".") for name in ignore)
    ]


def absolute_paths(config: C) -> C:
    """``config`` with every path in it made absolute, for workers that run in another folder; urls stay."""
    return with_paths(config, lambda _, path, __: path.absolute())


def with_results(config: C) -> C:
    """``config`` with every result that it reads as a folder of this node: each worker asks for its own.

    Raises:
        DataError: as :func:`retort.store.results.result_of`.
    """

    def found(name: str, path: Path, is_location: bool) -> Path:
        if name == "output":
            return path.absolute()
        return result_of(path) if is_location else path

    return with_paths(config, found)


def with_paths(config: C, change: Callable[[str, Path, bool], Path], prefix: str = "") -> C:
    """``config`` with every path in it changed.

    Args:
        config: of any kind.
        change: is given a path's dotted name, the path, and whether it may lie in a store.
        prefix: of the names.
    """

    def changed(name: str, value: Any, is_location: bool) -> Any:
        if isinstance(value, Path):
            return change(name, value, is_location)
        if isinstance(value, Config):
            return with_paths(value, change, f"{name}.")
        if isinstance(value, tuple):
            return [changed(f"{name}.{number}", item, is_location) for number, item in enumerate(value)]
        return value

    return config.replace(
        **{
            name: changed(f"{prefix}{name}", getattr(config, name), not local_only(field.annotation, field.metadata))
            for name, field in type(config).model_fields.items()
        }
    )


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    items = tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, list) else None
    if items is None or not tree:
        return {prefix.rstrip("."): tree}
    flat: dict[str, Any] = {}
    for key, value in items:
        flat.update(_flat(value, f"{prefix}{key}."))
    return flat
