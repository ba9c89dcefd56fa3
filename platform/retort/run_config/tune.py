"""A sweep: the jobs of one trial, a search space over their keys, and what the trials are compared by."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, JsonValue, ValidationInfo, field_validator, model_validator

from retort.config import Config, faults_of, put, validate
from retort.errors import ConfigError
from retort.evaluation.metrics import OBJECTIVES, TARGET_KL, find_metric
from retort.evaluation.preference import DEFAULT_GATE, parse_gate
from retort.run_config.evaluate import EvaluateConfig, SystemConfig
from retort.run_config.job import JobConfig
from retort.run_config.metric_names import ObjectiveName
from retort.run_config.output import LocalOutput
from retort.run_config.space import Axis, Parameters, changes, values_of

TRIALS = "trials"
_NO_TEST = "split: test must not choose the winner; evaluate on validation, or on train"


class RandomSearch(Config):
    """Points drawn independently; trial n is the same in every run of the file."""

    kind: Literal["random"] = "random"


class GridSearch(Config):
    """Every combination, in the order of the file, the last axis fastest."""

    kind: Literal["grid"] = "grid"


class OptunaSearch(Config):
    """Multi-objective TPE (Ozaki et al. 2020, doi:10.1145/3377930.3389817) after some random points."""

    kind: Literal["optuna"] = "optuna"
    startup_trials: int = Field(default=10, ge=1)


class HalvingConfig(Config):
    """Asynchronous successive halving (Li et al. 2020, arXiv:1810.05934) on a figure of the training log.

    A trial is compared only with trials that are no larger than it: otherwise every small student, whose loss is
    always above that of a large one, would be stopped before its speed could count.
    """

    job: str
    """Output of the training job that is watched."""
    metric: str = "loss"
    """Of ``metrics.jsonl``, lower is better. Where the space changes the loss itself, choose a part that it does not
    change, such as ``kl``."""
    first_rung: int = Field(ge=1)
    """Steps before a trial may be stopped; the next rungs are ``reduction`` times later, each."""
    reduction: float = Field(default=3.0, gt=1)
    """The best 1/reduction of a rung go on."""
    min_peers: int = Field(default=2, ge=1)
    """Earlier trials that a rung needs before anything is stopped there."""


class TuneConfig(Config):
    """Many short runs of the same jobs with different settings → a Pareto front.

    The jobs of ``trial`` write below ``output``: ``OUTPUT/student`` stands for ``OUTPUT/trials/0007/student`` in trial
    7. The last one evaluates the one model that the trial makes.
    """

    job: Literal["tune"] = "tune"
    output: LocalOutput
    before: tuple[JobConfig, ...] = ()
    """Jobs whose results all trials read; what is finished is not done again."""
    trial: tuple[JobConfig, ...] = Field(min_length=2)
    space: dict[str, Axis] = Field(min_length=1)
    """Dotted key to its values. The first part of the key is the output of a job, the rest a key of that job:
    ``student.training.steps``."""
    search: Annotated[RandomSearch | GridSearch | OptunaSearch, Field(discriminator="kind")] = RandomSearch()
    num_trials: int | None = Field(default=None, ge=1)
    """``None`` is the whole grid."""
    early_stopping: HalvingConfig | None = None
    objectives: tuple[ObjectiveName, ...] = Field(default=("wer", "tokens_per_second", "parameters"), min_length=1)
    max_concurrent: int = Field(default=2, ge=1)
    """Trials at once; fewer where the machines have no room for them."""
    max_failures: int = Field(default=1, ge=0)
    """How often a trial is taken up again whose process died."""
    gate: str = DEFAULT_GATE
    """What a winner must satisfy to be promoted, at the worse end of its 95 % intervals."""
    seed: int = Field(default=0, ge=0)

    @field_validator("trial")
    @classmethod
    def _trial_is_whole(cls, trial: tuple[Any, ...], info: ValidationInfo) -> tuple[Any, ...]:
        output = info.data.get("output")
        if output is None:
            return trial
        names = [job.output.name for job in trial]
        outside = next((job.output for job in trial if job.output.parent != output), None)
        if outside is not None:
            raise ValueError(f"a trial's jobs write to folders of {output} itself, such as {output}/student: {outside}")
        if len(set(names)) != len(names) or TRIALS in names:
            raise ValueError(f"the outputs must differ from each other and from {TRIALS}; they are {', '.join(names)}")
        if any(isinstance(job, EvaluateConfig) and job.split == "test" for job in trial):
            raise ValueError(_NO_TEST)
        if not isinstance(trial[-1], EvaluateConfig):
            raise ValueError(f"the last job must be an evaluation, it is {trial[-1].job}")
        made = [s for s in trial[-1].systems if s.model in [job.output for job in trial[:-1]]]
        if len(made) != 1:
            raise ValueError(f"the evaluation must have one system whose model the trial makes, it has {len(made)}")
        return trial

    @field_validator("space")
    @classmethod
    def _keys_exist(cls, space: dict[str, Axis], info: ValidationInfo) -> dict[str, Axis]:
        if "trial" in info.data:
            faults = [fault for name in space for fault in _axis_faults(name, space, info.data["trial"])]
            if faults:
                raise ValueError("; ".join(dict.fromkeys(faults)))
        return space

    @field_validator("gate")
    @classmethod
    def _gate_is_readable(cls, gate: str) -> str:
        try:
            parse_gate(gate)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return gate

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        endless = [name for name, axis in self.space.items() if values_of(axis) is None]
        if isinstance(self.search, GridSearch) and endless:
            raise ValueError(f"a grid needs choices or integers; {', '.join(endless)} has no end of values")
        if not isinstance(self.search, GridSearch) and self.num_trials is None:
            raise ValueError(f"num_trials is needed with search: {self.search.kind}")
        watched = self.early_stopping and self.early_stopping.job
        trained = [job.output.name for job in self.trial if hasattr(job, "training")]
        if watched and watched not in trained:
            raise ValueError(f"early_stopping.job {watched!r} is no training job of the trial; {', '.join(trained)} is")
        timed = [name for name in self.objectives if find_metric(name, OBJECTIVES).is_of_speed]
        self.evaluation.check_labels(self.objectives)
        if timed and self.evaluation.speed is None:
            raise ValueError(f"objectives {', '.join(timed)} need {self.evaluation.output.name}.speed")
        if TARGET_KL in self.objectives and self.evaluation.confidence_teacher is None:
            raise ValueError(
                f"objective {TARGET_KL} needs {self.evaluation.output.name}.confidence_teacher, the target"
            )
        return self

    @property
    def evaluation(self) -> EvaluateConfig:
        """The last job of a trial."""
        last = self.trial[-1]
        assert isinstance(last, EvaluateConfig)
        return last

    @property
    def candidate(self) -> SystemConfig:
        """The system that the trials are about."""
        made = [job.output for job in self.trial]
        return next(system for system in self.evaluation.systems if system.model in made)

    def folder_of(self, number: int) -> Path:
        """What trial ``number`` writes."""
        return self.output / TRIALS / f"{number:04d}"

    def trial_jobs(self, number: int, parameters: Parameters) -> tuple[JobConfig, ...]:
        """The jobs of one trial, with its settings and its folders.

        Raises:
            ConfigError: the settings do not go together.
        """
        trees = {job.output.name: job.model_dump(mode="json") for job in self.trial}
        for key, value in changes(self.space, parameters).items():
            name, _, inner = key.partition(".")
            put(trees[name], inner, value, said=key)
        jobs = [validate(tree, JobConfig, where=f"trial {number}, {name}") for name, tree in trees.items()]  # type: ignore[arg-type, var-annotated]
        return tuple(_moved(job, self.output, self.folder_of(number)) for job in jobs)


def _moved(job: Any, source: Path, target: Path) -> Any:
    """``job`` with every path below ``source`` moved to ``target``."""

    def move(value: Any) -> Any:
        if isinstance(value, Path):
            return str(target / value.relative_to(source) if value.is_relative_to(source) else value)
        if isinstance(value, Mapping):
            return {key: move(item) for key, item in value.items()}
        return [move(item) for item in value] if isinstance(value, list | tuple) else value

    return validate(move(job.model_dump(mode="python")), type(job), where=str(target))


def _axis_faults(name: str, space: Mapping[str, Axis], trial: tuple[Any, ...]) -> Iterator[str]:
    """What is wrong with the keys of an axis, or with its values where each stands alone.

    Whether values of several axes go together shows in the trial that has them: it fails, and says why.
    """
    jobs = {job.output.name: job for job in trial}
    others = {key for other, axis in space.items() if other != name for key in _keys_of(other, axis)}
    for item_by_key in _points_of(name, space[name]):
        by_job: dict[str, dict[str, JsonValue]] = {}
        for key, item in item_by_key.items():
            job, _, inner = key.partition(".")
            if job not in jobs or not inner:
                yield _unknown_job(key, list(jobs))
            else:
                by_job.setdefault(job, {})[inner] = item
        for job, items in by_job.items():
            if isinstance(jobs[job], EvaluateConfig) and items.get("split") == "test":
                yield f"{job}.{_NO_TEST}"
            set_by_others = [tuple(key.split(".")[1:]) for key in others if key.split(".")[0] == job]
            yield from (f"{job}.{fault}" for fault in _faults_in(jobs[job], items, set_by_others))


def _points_of(name: str, axis: Axis) -> Iterator[dict[str, JsonValue]]:
    """What each value of an axis changes; of a range, its ends."""
    values = values_of(axis)
    for value in (getattr(axis, "low", None), getattr(axis, "high", None)) if values is None else values:
        yield changes({name: axis}, {name: value})


def _keys_of(name: str, axis: Axis) -> set[str]:
    return {key for point in _points_of(name, axis) for key in point}


def _unknown_job(key: str, jobs: list[str]) -> str:
    near = difflib.get_close_matches(key.partition(".")[0], jobs, n=1, cutoff=0.5)
    hint = f"did you mean {near[0] + '.' + key.partition('.')[2]!r}? " if near else ""
    return f"{key!r} does not start with a job of the trial; {hint}The jobs are {', '.join(jobs)}"


def _faults_in(job: Any, items: Mapping[str, JsonValue], set_by_others: Sequence[tuple[str, ...]]) -> Iterator[str]:
    tree, before = job.model_dump(mode="json"), job.model_dump(mode="json")
    try:
        for inner, item in items.items():
            put(tree, inner, item, said=inner)
    except ConfigError as error:
        yield str(error)
        return
    keys = [tuple(inner.split(".")) for inner in items]
    for place, text in faults_of(tree, type(job)):
        parts = tuple(str(part) for part in place)
        # Faults at a key or below it; and above it, where the file has nothing that could hold a key.
        holds_keys = _has_keys(before, parts)
        if any(parts[: len(key)] == key or (parts == key[: len(parts)] and not holds_keys) for key in keys):
            yield text
        elif _is_lacking(parts, keys, before) and not any(parts[: len(key)] == key for key in set_by_others):
            yield f"{text}; the file has no {'.'.join(parts[:-1])}, so give it this key there, or in the space"


def _is_lacking(parts: tuple[str, ...], keys: Sequence[tuple[str, ...]], before: Any) -> bool:
    """Whether a key is wanted beside those of an axis, in a mapping that the axis makes."""
    inside = parts[:-1]
    return any(inside == key[: len(inside)] for key in keys) and not _has_keys(before, inside)


def _has_keys(tree: Any, parts: tuple[str, ...]) -> bool:
    for part in parts:
        if isinstance(tree, list) and part.isdigit() and int(part) < len(tree):
            tree = tree[int(part)]
        elif isinstance(tree, dict) and part in tree:
            tree = tree[part]
        else:
            return False
    return isinstance(tree, list | dict)
