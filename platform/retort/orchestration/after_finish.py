"""What may change in the run file of a job that is finished, and what happens then: one table for all jobs.

A key may change if the result does not depend on it (the job stays finished), or if the job can go on from what is
there to what one unbroken run would have given. Whatever else changes is refused, with both values and the way.
docs/reliability.md has the same table for a person.
"""

from typing import assert_never

from retort.orchestration.outputs import CHECKPOINTS, AfterFinish
from retort.orchestration.train.task import TrainJob
from retort.run_config import (
    AlignConfig,
    BundleConfig,
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
    TuneConfig,
)
from retort.store.artifact import Artifact
from retort.store.checkpoints import steps_at
from retort.training.schedule import keeps_learning_rates
from retort.tuning.search import num_trials

FinishingJob = (
    TrainJob
    | PrepareConfig
    | AlignConfig
    | ImportConfig
    | GenerateConfig
    | GenerateMelsConfig
    | GeneratePhoneMelsConfig
    | GenerateSpeechConfig
    | PruneConfig
    | TuneConfig
    | EvaluateConfig
    | ExportConfig
    | BundleConfig
)

TRAINING_MAY_CHANGE = (
    "training.workers",
    "training.optimizer.accumulation",
    "training.checkpoint_every",
    "training.keep_checkpoints",
    "training.log_every",
    "training.max_bad_steps",
    "training.tracker",
)
"""What may differ when a training goes on: none of it changes what is learned (workers and accumulation are checked
against the checkpoint, so that a step stays the same step)."""
SWEEP_MAY_CHANGE = ("before", "num_trials", "early_stopping", "max_concurrent", "max_failures", "gate", "objectives")
"""What may differ when a sweep goes on: none of it changes what a finished trial measured."""
EVALUATION_MAY_CHANGE = (
    "systems", "comparisons", "margins", "confidence_teacher", "temperatures", "slices", "long_text", "leakage",
    "num_resamples", "cluster_by_speaker", "speed",
)  # fmt: skip
"""What may differ when an evaluation goes on: none of it changes what was judged of the systems that it has."""
_IDLE_IN_SWEEPS = ("max_concurrent", "max_failures")

_MADE_ANEW = "the work of a finished generation is gone; another output makes all of it, the rows of this one included"


def after_finish(config: FinishingJob) -> AfterFinish:
    """What may differ from the configuration of a finished job.

    ``report`` is not here, since it is always written again, and neither is a tour, whose jobs are asked one by one.
    """
    match config:
        case (
            PretrainConfig()
            | PretrainMelsConfig()
            | PretrainZeroShotConfig()
            | PretrainVocoderConfig()
            | DistillConfig()
            | DistillMelsConfig()
            | DistillZeroShotConfig()
        ):
            return AfterFinish(
                same=TRAINING_MAY_CHANGE,
                more=("training.steps",),
                lacks=_training_lacks,
                ways={"training.workers.precision": "what was learned in another precision is another model"},
            )
        case TuneConfig():
            more = tuple(key for key in SWEEP_MAY_CHANGE if key not in _IDLE_IN_SWEEPS)
            return AfterFinish(same=_IDLE_IN_SWEEPS, more=more, lacks=_sweep_lacks)
        case EvaluateConfig():
            return AfterFinish(
                same=("max_missing_fraction", "pool"),
                more=EVALUATION_MAY_CHANGE,
                lacks=_evaluation_lacks,
                ways={
                    "num_strings": "all systems are judged on the same strings, and voices by recordings among them",
                    "pool.gpus_per_worker": "figures of another device do not compare with these",
                },
            )
        case PrepareConfig() | AlignConfig():
            return AfterFinish(same=("pool", "max_reject_fraction"), lacks=_corpus_lacks)
        case GenerateConfig() | GenerateMelsConfig() | GeneratePhoneMelsConfig() | GenerateSpeechConfig():
            return _after_generation(config)
        case PruneConfig():
            return AfterFinish(
                same=("pool",),
                ways={
                    "method.keep_ratio": (
                        "its layers.json already says what stays of other numbers of layers: a student of kind: pruned "
                        "takes this output as `layers` and its own num_layers"
                    ),
                    "method": "what was measured is gone; another output measures it again",
                    "num_strings": "what was measured is gone; another output measures it again",
                },
            )
        case ImportConfig() | ExportConfig() | BundleConfig():
            return AfterFinish()
        case _:
            assert_never(config)


def _after_generation(
    config: GenerateConfig | GenerateMelsConfig | GeneratePhoneMelsConfig | GenerateSpeechConfig,
) -> AfterFinish:
    match config:
        case GenerateConfig():
            return AfterFinish(same=("pool",), ways={"num_sampled": _MADE_ANEW, "teacher_forced": _MADE_ANEW})
        case GenerateMelsConfig():
            return AfterFinish(same=("pool",), ways={"source.num_rows": _MADE_ANEW, "source.max_rows": _MADE_ANEW})
        case GeneratePhoneMelsConfig():
            return AfterFinish(
                same=("pool", "source.chunk_size"),
                ways={"source.pairs_per_row": _MADE_ANEW, "source.splits": _MADE_ANEW, "source.filters": _MADE_ANEW},
            )
        case GenerateSpeechConfig():
            return AfterFinish(same=("pool", "chunk_size"))


def why_no_other_steps(was: int, config: TrainJob, done: int) -> str | None:
    """Why a training of ``was`` steps, ``done`` of which are done, does not go on to the number that the file has now.

    None if it does: if one unbroken run would have made the same first steps, at the same learning rates.
    """
    steps = config.training.steps
    if steps < done:
        return f"{done} steps are done, and none is taken back"
    if not keeps_learning_rates(done, was, steps, config.training.optimizer):
        return (
            f"the learning rates of the {done} steps that are done led down to the end of {was}, and one run of "
            f"{steps} would have had others; only where training.optimizer.final_fraction is 1 do they not depend on "
            "steps"
        )
    return None


def _training_lacks(done: Artifact, before: TrainJob, config: TrainJob) -> str | None:
    was, training = before.training, config.training
    per_step, workers = was.micro_batches_per_step, training.workers.max_workers
    is_as_before = was.optimizer.accumulation == training.optimizer.accumulation
    # As when a run goes on from a checkpoint: other workers alone make the same step if it can be dealt out to them.
    if per_step % workers or not (training.micro_batches_per_step == per_step or is_as_before):
        return (
            f"a step was made of {per_step} micro-batches, and {workers} workers with accumulation "
            f"{training.optimizer.accumulation} would make another; change training.workers and "
            "training.optimizer.accumulation together"
        )
    left_out = done.info.metrics.get("steps_left_out", 0)
    if isinstance(left_out, int) and left_out > training.max_bad_steps:
        return f"{left_out} bad steps were left out, more than training.max_bad_steps {training.max_bad_steps} allows"
    if was.steps == training.steps:
        return None
    why = why_no_other_steps(was.steps, config, was.steps)
    if why is None and was.steps not in steps_at(config.output / CHECKPOINTS):
        return f"{config.output / CHECKPOINTS} has no checkpoint of step {was.steps} to go on from"
    return why


def _sweep_lacks(done: Artifact, before: TuneConfig, config: TuneConfig) -> str | None:
    there, asked = done.info.metrics.get("trials", 0), num_trials(config)
    if isinstance(there, int) and asked < min(there, num_trials(before)):
        return f"{there} trials are measured, and none is forgotten; raise num_trials, or leave it at {there}"
    return None


def _evaluation_lacks(done: Artifact, before: EvaluateConfig, config: EvaluateConfig) -> str | None:
    del done
    present = {system.name: system for system in config.systems}
    for system in before.systems:
        other = present.get(system.name)
        if other is None:
            return f"system {system.name!r} is in its report; systems can be added, and none can be left out"
        if other.said_by != system.said_by:
            return f"system {system.name!r} was judged otherwise; add the changed one under another name"
    return None


def _corpus_lacks(
    done: Artifact, before: PrepareConfig | AlignConfig, config: PrepareConfig | AlignConfig
) -> str | None:
    del before
    read, kept = done.info.metrics.get("rows_read"), done.info.metrics.get("rows_kept")
    if not isinstance(read, int) or not isinstance(kept, int):
        return None
    if read - kept > config.max_reject_fraction * read:
        return (
            f"{read - kept} of {read} rows were rejected, more than max_reject_fraction {config.max_reject_fraction:g} "
            "allows; mend the corpus"
        )
    return None
