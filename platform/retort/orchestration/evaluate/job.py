"""Evaluation on Ray: a pool of judges shares the (system, strings) pieces; what is judged is kept if the run dies."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retort.config import validate
from retort.data.phone_mels import PhoneMelSet
from retort.errors import ConfigError
from retort.evaluation.items import ItemResult, read_results, write_results
from retort.evaluation.judge import TestStrings
from retort.evaluation.leakage import Leak, check_set, leakage_findings, leakage_tree, sources_of
from retort.evaluation.listening import pairs_of, trials_of
from retort.evaluation.lm_confidence import Sureness
from retort.evaluation.metrics import METRICS, TARGET_KL
from retort.evaluation.report import write_report
from retort.evaluation.results import Pair, Summary, SystemInfo, read_summary, summarise, write_summary
from retort.evaluation.sounds import fingerprint_of
from retort.evaluation.speaker import encoder_name
from retort.evaluation.speed import Measured
from retort.evaluation.temperatures import Choice
from retort.evaluation.unseen_voices import by_voices
from retort.evaluation.votes import preferences, read_votes
from retort.models.weights import SavedZeroShot, read_saved
from retort.nn.random import seed_of
from retort.orchestration.after_finish import after_finish
from retort.orchestration.cluster import ray_session
from retort.orchestration.demand import Demand
from retort.orchestration.evaluate.actors import actors_of, each_on_one_actor, on_one_actor
from retort.orchestration.evaluate.kept import drop_what_changed, models_of
from retort.orchestration.evaluate.missing import missing_of, refuse_missing
from retort.orchestration.evaluate.pieces import SOUNDS, sound_name, sounds_of
from retort.orchestration.evaluate.scorers import with_installed
from retort.orchestration.evaluate.system_facts import check_shared_codes, describe_system, environment_of, note_of
from retort.orchestration.evaluate.tasks import BestTask, ChoosingTask, Judged, PlainTask, Task, read_judged, tasks_of
from retort.orchestration.evaluate.temperatures import (
    best_tasks,
    bootstrap_of,
    choosing_tasks,
    chosen,
    with_best_infos,
    with_best_items,
    with_best_pairs,
)
from retort.orchestration.outputs import job_output, run_once, with_results
from retort.orchestration.progress import Progress
from retort.orchestration.workplace import workers_for, workplace
from retort.run_config import EvaluateConfig, ReportConfig
from retort.store.artifact import Artifact, describe_artifact, name_for, read_artifact, write_artifact
from retort.store.commit import is_committed, write_json_atomic
from retort.store.place import local_of, pull, push, shipped
from retort.store.results import result_of

_PIECES = "pieces"
_FIRST_MARGINS = "first_margins"


def run_evaluate(config: EvaluateConfig, progress: Progress) -> dict[str, Any]:
    """Judge every system, and write ``results.jsonl``, ``summary.json``, ``report.html`` and audio.

    A run that was cut short goes on with the pieces that are not judged, a finished one with systems that were added.

    Raises:
        DataError: a model or the token set is missing, or they do not belong together; or, after the report is written,
            a system did not deliver more strings than ``max_missing_fraction`` allows.
        ConfigError: a guidance is not valid for its model, ``mel_reference`` shares no codes with a denoiser, or
            ``leakage`` is asked for and no system is a zero-shot model.
    """
    artifact, _ = run_once(config, progress, lambda: _evaluate(config, progress), after_finish(config))
    refuse_missing(artifact, config)
    return dict(artifact.info.metrics)


@dataclass(frozen=True)
class Found:
    """What was found out of the systems, and what must be said beside it."""

    infos: Sequence[SystemInfo]
    judged: Judged
    sureness: Sureness
    note: str | None
    choice: Choice | None = None
    leaks: Sequence[Leak] = ()
    first_margins: Mapping[str, float] = field(default_factory=dict)
    """Those that were stated when the first report was written."""


def _evaluate(config: EvaluateConfig, progress: Progress) -> Artifact:
    with job_output(config) as output:
        config, absent = with_installed(config)
        for reason in absent:
            progress.log(reason)
        given, config = config, with_results(config)
        strings = TestStrings(config.data, split=config.split, count=config.num_strings)
        check_shared_codes(config)
        if config.speaker_encoder is not None:
            strings.refuse_other_encoder(encoder_name(config.speaker_encoder))
        infos = [describe_system(system, config, strings) for system in config.systems]
        leaking = _leaking(config)
        tasks, choosing = tasks_of(config, strings), choosing_tasks(config, infos)
        if config.temperatures is not None and not choosing:
            progress.log("no system has a temperature, so that there is none to choose")
        pieces = output / _PIECES
        drop_what_changed(pieces, config)
        with workplace(output, Demand.of_pool(config.pool), progress) as place:
            place.run(lambda heard: _judge_all(given, pieces, choosing, heard, kept=[]))
            choice = chosen(config, infos, pieces, choosing)
            tasks = [*tasks, *best_tasks(choice, infos, tasks)]
            place.run(lambda heard: _judge_all(given, pieces, tasks, heard, kept=kept_of(config, tasks)))
            threads = config.pool.threads_per_worker
            sureness = place.run(lambda _: on_one_actor(given, "confidence", threads))
            leaks = place.run(lambda heard: _leaks(given, leaking, heard))
            measured, memory = place.run(lambda heard: _measure(given, heard))
        infos = [_with_speed(info, measured, memory) for info in infos]
        judged = read_judged(config, pieces, tasks)
        first_margins = _first_margins(output, config)
        found = Found(infos, judged, sureness, note_of(config, infos, absent), choice, leaks, first_margins)
        folders = dict.fromkeys(task.piece(pieces).folder for task in tasks if isinstance(task, PlainTask | BestTask))
        return _write(config, output, strings, found, sounds=[folder / SOUNDS for folder in folders])


def run_report(config: ReportConfig, progress: Progress) -> dict[str, Any]:
    """Write the report of a finished evaluation again, into ``output``, with what listeners voted.

    Raises:
        DataError: the evaluation is missing, or votes are damaged, of another report, or given twice.
    """
    source = result_of(config.evaluation)
    items, summary = read_results(source / "results.jsonl"), read_summary(source / "summary.json")
    samples = sounds_of(source, items)
    pairs = pairs_of(summary)
    votes = read_votes(config.votes, report=fingerprint_of(samples), trials=trials_of(pairs, samples))
    summary["preferences"] = preferences(votes, pairs)
    output = local_of(config.output)
    page = write_report(output, summary, items, samples=samples, title="Retort")
    write_json_atomic(output / "summary.json", summary)
    push(output)
    progress.log(f"report: {page}")
    return {"report": str(shipped(page))}


def measure_speeds(config: EvaluateConfig, told: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """Speed of every model of an evaluation, in turns, in one process: keys of its summary, by name of the system.

    ``told`` hears how far it is.
    """
    assert config.speed is not None
    with ray_session():
        measured = _speed(config, told)
    found: dict[str, dict[str, Any]] = {}
    for name, figures in measured.figures.items():
        found[name] = {METRICS[key].field: figure.value for key, figure in figures.items()}
        found[name] |= {
            interval: figure.interval for key, figure in figures.items() if (interval := METRICS[key].interval)
        }
    return found


def _judge_all(
    config: EvaluateConfig,
    folder: Path,
    tasks: Sequence[Task | ChoosingTask],
    progress: Progress,
    *,
    kept: Sequence[str],
) -> None:
    """Judge all pieces that no earlier run has judged."""
    import ray

    (folder / SOUNDS).mkdir(parents=True, exist_ok=True)
    missing = [task for task in tasks if not task.piece(folder).lines.is_file()]
    if missing:
        actors = actors_of(config, workers_for(config.pool, len(missing)), config.pool.threads_per_worker)
        pool = ray.util.ActorPool(actors)
        work = pool.map_unordered(
            lambda actor, task: actor.judge.remote(task, str(shipped(folder)), list(kept)), missing
        )
        for done, name in enumerate(work, start=1):
            progress.update(done, len(missing), f"judging {name}")
        for actor in actors:
            ray.kill(actor)
        pull(folder)


def kept_of(config: EvaluateConfig, tasks: Sequence[Task]) -> list[str]:
    """Ids whose sounds are kept for the report."""
    ids = {name for task in tasks if isinstance(task, PlainTask) for name in task.ids}
    return sorted(ids, key=lambda name: (seed_of(config.seed, name), name))[: config.num_samples]


def _speed(config: EvaluateConfig, told: Callable[[str], None]) -> Measured:
    """Speed of all models in turns, measured in a process of its own, which says how far it is."""
    assert config.speed is not None
    measured: Measured | None = None
    told("a process starts")
    for each in each_on_one_actor(config, "speed", config.speed.threads):
        match each:
            case str(how_far):
                told(how_far)
            case Measured():
                measured = each
    assert measured is not None, "it is what comes last"
    return measured


def _leaking(config: EvaluateConfig) -> list[str]:
    """Systems whose content is probed; whatever is wrong with what they are to be probed by is told now."""
    if config.leakage is None:
        return []
    saved = {system.name: read_saved(system.model) for system in config.systems if system.model is not None}
    lineages = {name: model.lineage for name, model in saved.items() if isinstance(model, SavedZeroShot)}
    if not lineages:
        raise ConfigError("leakage is for zero-shot models, and no system is one; leave it out")
    mels = PhoneMelSet.open(config.leakage.mels)
    for name, lineage in lineages.items():
        check_set(name, lineage, mels.description)
    sources_of(mels, config.leakage)
    return list(lineages)


def _leaks(config: EvaluateConfig, names: Sequence[str], progress: Progress) -> list[Leak]:
    leaks: list[Leak] = []
    with ThreadPoolExecutor(config.pool.size) as pool:
        threads = config.pool.threads_per_worker
        for leak in pool.map(lambda name: on_one_actor(config, "leakage", threads, name), names):
            leaks.append(leak)
            progress.update(len(leaks), len(names), f"probing the content of {leak.system}")
    return leaks


def _measure(config: EvaluateConfig, progress: Progress) -> tuple[Measured, dict[str, float]]:
    """Speed of all models in turns, and the peak memory of each in a process of its own."""
    if config.speed is None:
        return Measured(), {}
    models = [system.name for system in config.systems if system.model is not None]
    measured = _speed(config, lambda how_far: progress.update(0, 1 + len(models), f"measuring speed: {how_far}"))
    memory: dict[str, float] = {}
    # Memory does not mind company, and most of each process's time is its start.
    with ThreadPoolExecutor(config.pool.size) as pool:
        peaks = pool.map(lambda name: on_one_actor(config, "memory", config.pool.threads_per_worker, name), models)
        for done, (name, peak_mb) in enumerate(zip(models, peaks, strict=True), start=1):
            memory[name] = peak_mb
            progress.update(1 + done, 1 + len(models), f"measuring memory of {name}")
    return measured, memory


def _with_speed(info: SystemInfo, measured: Measured, memory: Mapping[str, float]) -> SystemInfo:
    figures = measured.figures.get(info.name, {})
    known = {name: figure.value for name, figure in figures.items()}
    return dataclasses.replace(
        info,
        facts={**info.facts, "memory": memory.get(info.name), **known},
        intervals={name: figure.interval for name, figure in figures.items() if METRICS[name].interval},
        noise=measured.noise if info.name == measured.opened_twice else {},
    )


def summary_of(
    config: EvaluateConfig,
    strings: TestStrings,
    found: Found,
) -> Summary:
    """What was judged and measured, summed up as the run file asks."""
    bootstrap = bootstrap_of(config)
    late = frozenset(name for name, margin in config.margins.items() if found.first_margins.get(name) != margin)
    asked = [Pair(pair.a, pair.b, pair.metric, config.margins, late) for pair in config.comparisons]
    plain = summarise(
        found.sureness.told_of(with_best_items(found.choice, found.judged.items)),
        with_best_infos(found.choice, found.infos),
        [*with_best_pairs(found.choice, asked), *_with_untouched(found)],
        expected=strings.expected,
        environment=environment_of(config, strings),
        note=found.note,
        confidence=found.sureness.confidence,
        bootstrap=bootstrap,
    )
    chosen_findings = () if found.choice is None else found.choice.findings
    draws = {"num_resamples": bootstrap.num_resamples, "seed": bootstrap.seed}
    leakage = leakage_tree(found.leaks, [(pair.a, pair.b) for pair in config.comparisons], **draws)
    return dataclasses.replace(
        plain,
        findings=(*plain.findings, *chosen_findings, *leakage_findings(leakage)),
        leakage=leakage,
        slices=found.judged.summary_of_slices(bootstrap),
        voices=by_voices(plain.items, with_best_infos(found.choice, found.infos), strings.trained_speakers, bootstrap),
        long_text=found.judged.summary_of_long_text(),
        temperatures=None if found.choice is None else found.choice.tree(),
    )


def _first_margins(output: Path, config: EvaluateConfig) -> dict[str, float]:
    """The margins of before there was a report: a finished evaluation may go on with others."""
    if not is_committed(output / "result"):
        return dict(config.margins)
    before = read_artifact(output / "result", verify=False).info
    margins: Any = before.metrics.get(_FIRST_MARGINS, before.config.get("margins", {}))
    return dict(margins)


def _with_untouched(found: Found) -> list[Pair]:
    """Every student that gives tokens a probability, beside the target's model as it was before any distillation."""
    untouched = found.sureness.untouched
    students = [i.name for i in found.infos if i.role == "student" and i.name in found.sureness.from_target]
    return [] if untouched is None else [Pair(untouched, name, TARGET_KL, told_as="untouched") for name in students]


def _write(
    config: EvaluateConfig,
    output: Path,
    strings: TestStrings,
    found: Found,
    *,
    sounds: Sequence[Path],
) -> Artifact:
    summary = summary_of(config, strings, found)
    tree = summary.tree()

    def fill(folder: Path) -> None:
        write_results(folder / "results.jsonl", summary.items)
        long_text = [row for rows in found.judged.long_text.values() for row in rows]
        more: list[tuple[str, Sequence[ItemResult]]] = [*found.judged.slices.items(), ("long_text", long_text)]
        for name, rows in more:
            if rows:
                write_results(folder / f"{name}.jsonl", rows)
        write_summary(folder / "summary.json", summary)
        (folder / SOUNDS).mkdir()
        kept = {sound_name(item) for item in summary.items}
        for sound in sorted(path for place in sounds for path in place.glob("*.wav") if path.name in kept):
            (folder / SOUNDS / sound.name).write_bytes(sound.read_bytes())
        samples = sounds_of(folder, summary.items)
        write_report(folder, tree, summary.items, samples=samples, title="Retort: teacher and students")

    metrics = {system["name"]: _headline(system) for system in tree["systems"]}
    info = describe_artifact(
        "evaluation",
        name_for(config.output),
        "1",
        inputs={"data": strings.description.codec_fingerprint, **models_of(config)},
        config=validate(_recorded(output), EvaluateConfig, where="run.yaml").model_dump(mode="json"),
        metrics={
            "systems": metrics,
            "findings": [finding.line for finding in summary.findings],
            "missing": missing_of(tree),
            _FIRST_MARGINS: dict(found.first_margins),
        },
    )
    return write_artifact(output / "result", info, fill, replace=True)


def _recorded(output: Path) -> dict[str, Any]:
    import yaml

    tree: dict[str, Any] = yaml.safe_load((output / "run.yaml").read_text())
    return tree


def _headline(system: Mapping[str, Any]) -> dict[str, Any]:
    names = ("parameters", "wer_corpus", "wer_ci95", "failure_rate", "speaker_similarity", "tokens_per_second", "rtf")
    return {name: system[name] for name in names}
