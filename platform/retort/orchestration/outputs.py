"""The layout of a job's output folder, and who may write it.

``OUTPUT/run.yaml`` (the resolved configuration), ``OUTPUT/metrics.jsonl``, ``OUTPUT/checkpoints/`` where the job
trains, and ``OUTPUT/result/``, the committed artifact that the next job reads.
"""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
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


@dataclass(frozen=True)
class AfterFinish:
    """Which keys of a finished job's file may change, and what happens then; any other change is refused.

    Keys are dotted and stand for all that is below them. ``output`` may always change: it is where the job looks.

    Attributes:
        same: the result does not depend on them: the job stays finished.
        more: with them the job goes on from what is there, and ends as one unbroken run would have ended.
        lacks: why such a change is refused all the same, or None; it is given the result, the configuration that made
            it, and the present one.
        ways: keys that are refused, below one of the others too, to the reason and what to do instead.
    """

    same: tuple[str, ...] = ()
    more: tuple[str, ...] = ()
    lacks: Callable[[Artifact, Any, Any], str | None] | None = None
    ways: Mapping[str, str] = field(default_factory=dict)

    def allows(self, key: str) -> bool:
        """Whether a key may change at all."""
        return _is_below(key, (*self.same, *self.more)) and not _is_below(key, self.ways)

    def way_of(self, keys: Iterable[str]) -> str | None:
        """Why the first of these keys that has a reason is refused, and what to do instead."""
        return next((way for key in keys for name, way in self.ways.items() if _is_below(key, (name,))), None)

    @property
    def told(self) -> str:
        """For a person."""
        if not self.same and not self.more:
            return ""
        return f" (what may change after the finish: {', '.join(sorted({*self.same, *self.more}))})"


_NOTHING = AfterFinish()


def run_once(
    config: JobConfig, progress: Progress, work: Callable[[], Artifact], after: AfterFinish = _NOTHING
) -> tuple[Artifact, float]:
    """The result of a job, from an earlier run of this very configuration or else from ``work``.

    Args:
        config: the job.
        progress: told if there is nothing left to do, or what a finished job goes on with.
        work: checks its inputs, does the job under :func:`job_output`, and commits the result; where ``after`` lets a
            finished job go on, in place of the one that is there.
        after: what may differ from the configuration of a finished job.

    Returns:
        The committed artifact, and the seconds that ``work`` took: 0.0 if the result was there.

    Raises:
        ConfigError: the output holds the result of another configuration.
        StorageError: the result is damaged.
    """
    done = _finished_result(config)
    if done is not None:
        changed = _changes_after_the_finish(config, done, after)
        more = [told for key, told in changed.items() if _is_below(key, after.more)]
        if not more:
            unmoved = f"; without effect on its result: {'; '.join(changed.values())}" if changed else ""
            progress.log(f"{config.job}: {config.output} is finished{unmoved}")
            return done, 0.0
        progress.log(f"{config.job}: {config.output} is finished, and goes on with {'; '.join(more)}")
    began = time.monotonic()
    artifact = work()
    kept = replace(artifact, path=keep_result(artifact.path))
    return kept, time.monotonic() - began


def _finished_result(config: JobConfig) -> Artifact | None:
    """The verified artifact of an earlier run, or None if there is none yet.

    Raises:
        StorageError: the result is damaged.
    """
    where = config.output.absolute() / RESULT
    folder = localise(where) if isinstance(where, RemotePath) and is_finished(where) else local_of(where)
    return read_artifact(folder) if is_committed(folder) else None


def _changes_after_the_finish(config: JobConfig, done: Artifact, after: AfterFinish) -> dict[str, str]:
    """What differs from the configuration that made a result, by key; where the output itself lies does not count.

    Raises:
        ConfigError: a key may not change so; the first ones are named, with both values and the way.
    """
    before = _completed(done.info.config, type(config))
    tree = done.info.config if before is None else before.model_dump(mode="json")
    changed = _differences(tree, config.model_dump(mode="json"))
    changed.pop("output", None)
    refused = [key for key in changed if before is None or not after.allows(key)]
    why = after.way_of(refused) if refused else None
    if changed and not refused:
        why = _why_not(config, (done, before), after, changed)
    if refused or why is not None:
        named = [changed[key] for key in refused or changed]
        raise ConfigError(
            f"{config.output} holds the result of another configuration; it differs in {'; '.join(named[:3])}. "
            + (f"It cannot go on there: {why}. " if why else "")
            + f"Choose another output, or delete that folder{after.told}"
        )
    return changed


def _why_not(
    config: JobConfig, found: tuple[Artifact, JobConfig | None], after: AfterFinish, changed: Iterable[str]
) -> str | None:
    """Why keys that may change may not change so."""
    if isinstance(config.output, RemotePath) and any(_is_below(key, after.more) for key in changed):
        return "a result in a store is written once"
    return None if after.lacks is None else after.lacks(*found, config)


def _completed(tree: Mapping[str, Any], kind: type[JobConfig]) -> JobConfig | None:
    """A recorded configuration with the defaults of keys that were added since; None if it is not valid any more."""
    try:
        return validate(dict(tree), kind, where="the record")
    except ConfigError:
        return None


def differing_keys(old: Mapping[str, Any], new: Mapping[str, Any], *, ignore: Sequence[str] = ()) -> list[str]:
    """Where two configuration trees differ, as ``a.b: 1 → 2``, in the order of the second tree.

    Args:
        old: the tree on record.
        new: the present tree.
        ignore: dotted keys that may differ, each with everything below it.
    """
    return [told for key, told in _differences(old, new).items() if not _is_below(key, ignore)]


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    before, after = _flat(old), _flat(new)
    keys = [*after, *(key for key in before if key not in after)]
    return {
        key: f"{key}: {before.get(key, '(absent)')} → {after.get(key, '(absent)')}"
        for key in keys
        if before.get(key, "(absent)") != after.get(key, "(absent)")
    }


def _is_below(key: str, names: Iterable[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


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
