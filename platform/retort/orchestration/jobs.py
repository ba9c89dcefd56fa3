"""From a run file to the job that it describes."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import yaml

from retort.config import load_config
from retort.errors import ConfigError
from retort.models.student_shape import PrunedTeacher
from retort.orchestration.progress import Progress
from retort.run_config import (
    AlignConfig,
    AnyConfig,
    BundleConfig,
    DemoConfig,
    DistillConfig,
    DistillMelsConfig,
    DistillZeroShotConfig,
    EvaluateConfig,
    ExportConfig,
    GenerateConfig,
    GenerateMelsConfig,
    GeneratePhoneMelsConfig,
    GenerateSpeechConfig,
    ImportConfig,
    PrepareConfig,
    PretrainConfig,
    PretrainMelsConfig,
    PretrainVocoderConfig,
    PretrainZeroShotConfig,
    PruneConfig,
    RecordedPhoneMels,
    ReportConfig,
    RunConfig,
    SwappedPhoneMels,
    SyntheticMels,
    TuneConfig,
)
from retort.store.place import is_used
from retort.tuning.search import num_trials


def _kinds(union: Any) -> Iterator[Any]:
    """The classes of a union, which may hold others."""
    if get_origin(union) is Annotated:
        union = get_args(union)[0]
    parts = get_args(union)
    yield from [kind for part in parts for kind in _kinds(part)] if parts else [union]


JOBS: tuple[str, ...] = tuple(dict.fromkeys(kind.model_fields["job"].default for kind in _kinds(AnyConfig)))
"""The values of ``job``, in the order in which a person uses them."""


def load_job(path: Path, *, expected: str, overrides: Sequence[str] = ()) -> AnyConfig:
    """Load a run file and check that it describes the job that was asked for.

    Raises:
        ConfigError: the file is faulty (see :func:`retort.config.load_config`) or is another job's; or two jobs of a
            tour write to one output.
    """
    config: AnyConfig = load_config(path, RunConfig, overrides=overrides)  # type: ignore[arg-type]
    if config.job != expected:
        raise ConfigError(f"{path}: this file says `job: {config.job}`; run it with `retort {config.job} {path}`")
    if isinstance(config, DemoConfig):
        _refuse_shared_outputs(config, path)
    return config


def _refuse_shared_outputs(config: DemoConfig, path: Path) -> None:
    """The second job would be refused by the result of the first one, after its work."""
    first: dict[Path, AnyConfig] = {}
    for job in config.jobs:  # a report may be written beside an evaluation, and what is finished is not done again
        if not isinstance(job, ReportConfig) and first.setdefault(job.output.absolute(), job) != job:
            raise ConfigError(f"{path}: two jobs write to {job.output}, which holds one result; give each its own")


def run_job(config: AnyConfig, progress: Progress) -> dict[str, Any]:
    """Run one job to its end, or go on where it stopped; returns its summary, which JSON can hold."""
    return _runner_of(config)(progress)


def _runner_of(config: AnyConfig) -> Callable[[Progress], dict[str, Any]]:  # noqa: C901 - one case a job
    """The job's function; its libraries are imported when it runs."""
    match config:
        case PrepareConfig():
            from retort.orchestration.prepare.job import run_prepare

            return partial(run_prepare, config)
        case AlignConfig():
            from retort.orchestration.align.job import run_align

            return partial(run_align, config)
        case PretrainConfig() | PretrainMelsConfig() | PretrainZeroShotConfig() | PretrainVocoderConfig():
            from retort.orchestration.train.job import run_pretrain

            return partial(run_pretrain, config)
        case ImportConfig() | ExportConfig() | BundleConfig():
            return _between_formats(config)
        case GenerateConfig() | GenerateMelsConfig() | GeneratePhoneMelsConfig() | GenerateSpeechConfig():
            return _generator_of(config)
        case PruneConfig():
            from retort.orchestration.prune.job import run_prune

            return partial(run_prune, config)
        case DistillConfig() | DistillMelsConfig() | DistillZeroShotConfig():
            from retort.orchestration.train.job import run_distill

            return partial(run_distill, config)
        case TuneConfig():
            from retort.orchestration.tune.job import run_tune

            return partial(run_tune, config)
        case EvaluateConfig():
            from retort.orchestration.evaluate.job import run_evaluate

            return partial(run_evaluate, config)
        case ReportConfig():
            from retort.orchestration.evaluate.job import run_report

            return partial(run_report, config)
        case DemoConfig():
            from retort.orchestration.tour import run_demo

            return partial(run_demo, config)


def _generator_of(
    config: GenerateConfig | GenerateMelsConfig | GeneratePhoneMelsConfig | GenerateSpeechConfig,
) -> Callable[[Progress], dict[str, Any]]:
    """The same of what makes data."""
    match config:
        case GenerateConfig():
            from retort.orchestration.generate.job import run_generate

            return partial(run_generate, config)
        case GenerateMelsConfig():
            from retort.orchestration.generate.mel_job import run_generate_mels

            return partial(run_generate_mels, config)
        case GeneratePhoneMelsConfig():
            from retort.orchestration.generate.phone_mel_job import run_generate_phone_mels

            return partial(run_generate_phone_mels, config)
        case GenerateSpeechConfig():
            from retort.orchestration.generate.speech_job import run_generate_speech

            return partial(run_generate_speech, config)


def _between_formats(config: ImportConfig | ExportConfig | BundleConfig) -> Callable[[Progress], dict[str, Any]]:
    match config:
        case ImportConfig():
            from retort.orchestration.outside import run_import

            return partial(run_import, config)
        case ExportConfig():
            from retort.orchestration.outside import run_export

            return partial(run_export, config)
        case BundleConfig():
            from retort.orchestration.bundle import run_bundle

            return partial(run_bundle, config)


def plan_of(config: AnyConfig) -> str:
    """What a dry run shows: the resolved configuration as YAML; of a tour a line for each job, of a sweep its axes."""
    if isinstance(config, DemoConfig):
        lines = [f"{config.output}: a tour of {len(config.jobs)} jobs"]
        return "\n".join(lines + [f"{number:2d} {_line(job)}" for number, job in enumerate(config.jobs, start=1)])
    if isinstance(config, TuneConfig):
        names = ", ".join(job.job for job in config.trial)
        lines = [f"{config.output}: {num_trials(config)} trials of {names}, by {config.search.kind} search"]
        lines += [f" {name}: {axis.model_dump_json()}" for name, axis in config.space.items()]
        return "\n".join(lines + [f" before them: {_line(job)}" for job in config.before])
    tree = config.model_dump(mode="json")
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, default_flow_style=False).rstrip("\n")


def _line(job: AnyConfig) -> str:
    reads = [f"{name} {path}" for name, path in _inputs(job)]
    return f"{job.job:9s} → {job.output}" + (f" (reads {', '.join(reads)})" if reads else "")


def _inputs(job: AnyConfig) -> Iterator[tuple[str, Path]]:
    for name in type(job).model_fields:
        value = getattr(job, name)
        if isinstance(value, Path) and name != "output":
            yield name, value
    if (
        isinstance(job, DistillConfig)
        and isinstance(job.student, PrunedTeacher)
        and isinstance(job.student.layers, Path)
    ):
        yield "layers", job.student.layers
    if isinstance(job, GenerateMelsConfig) and isinstance(job.source, SyntheticMels):
        yield from (("teacher", job.source.teacher), ("voices", job.source.voices))
    if isinstance(job, GeneratePhoneMelsConfig):
        yield from _of_phone_mels(job.source)
    if isinstance(job, EvaluateConfig):
        yield from ((system.name, system.model) for system in job.systems if system.model is not None)


def _of_phone_mels(source: RecordedPhoneMels | SwappedPhoneMels) -> Iterator[tuple[str, Path]]:
    match source:
        case RecordedPhoneMels():
            yield "durations", source.durations
        case SwappedPhoneMels():
            yield from (("teacher", source.teacher), ("mels", source.mels))


def refuse_existing_output(config: AnyConfig) -> None:
    """For a run that must start afresh: refuse an output folder that holds something, and delete nothing.

    Raises:
        ConfigError: with the three cures.
    """
    output = config.output
    if is_used(output):
        raise ConfigError(
            f"{output} exists and --no-resume was given; leave --no-resume out to go on where that run stopped, "
            f"or choose another folder with --set output=…, or delete {output} yourself"
        )
