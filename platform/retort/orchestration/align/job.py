"""Corpus to durations: references, an aligner trained on some of them, then chunks of alignments on Ray Data."""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, assert_never

from retort.audio.codec_files import CONFIG_NAME
from retort.audio.files import AudioRejected
from retort.audio.mel import log_mel
from retort.data.digits import DigitsConfig, check_espeaks_own
from retort.data.durations import DURATIONS_FILE, ROWS, DurationsDescription
from retort.data.readers import corpus_here
from retort.data.references import ReferencePlan, forget_plan, plan_references, read_references, reader_rejects
from retort.data.utterance import Reject
from retort.errors import ConfigError, DataError
from retort.inference.text_grids import TextGrids
from retort.methods.phone_alignment import SpokenPhones, TrainAlignerConfig, train_aligner
from retort.models.aligner import Aligner, open_aligner
from retort.orchestration.after_finish import after_finish
from retort.orchestration.align.worker import ALIGNER, GIVEN, REFERENCES, AlignWorker, loader_of, phones_of
from retort.orchestration.chunks import (
    ChunkFolder,
    ChunkRecord,
    open_work_folder,
    remove_work,
    run_chunks,
    sum_numbers,
    write_rejects,
)
from retort.orchestration.demand import Demand
from retort.orchestration.outputs import absolute_paths, job_output, run_once
from retort.orchestration.progress import Progress
from retort.orchestration.workplace import workplace
from retort.run_config import AlignConfig, EspeakTimes, SavedAligner, TextGridTimes
from retort.store.artifact import Artifact, code_version, describe_artifact, name_for, write_artifact
from retort.store.commit import commit_folder, is_committed
from retort.store.results import RESULT, folder_with
from retort.text import espeak

REJECTS_FILE = "rejects.jsonl"


def run_align(config: AlignConfig, progress: Progress) -> dict[str, Any]:
    """Align a corpus: ``result/`` gets durations by the corpus' ids, the aligner and rejects.

    A run that was cut short goes on with the chunks that are not done; a training of the aligner that was cut short
    begins again, since it takes minutes. The content does not depend on the number of workers.

    Raises:
        ConfigError: the output is another configuration's, or the aligner is another voice's or mel's.
        DataError: the corpus is not there, or more rows than ``max_reject_fraction`` cannot be aligned.
    """
    artifact, _ = run_once(config, progress, lambda: _align(config, progress), after_finish(config))
    return {**artifact.info.metrics, "fingerprint": artifact.fingerprint, "result": str(artifact.path)}


def _align(config: AlignConfig, progress: Progress) -> Artifact:
    begin = time.monotonic()
    corpus, told = corpus_here(config.corpus)
    if told is not None:
        progress.log(f"corpus: {told}")
    given, config = config, config.replace(corpus=corpus)
    with job_output(config) as output:
        folder = open_work_folder(output, _key(config))
        work = folder / GIVEN
        fit = config.aligner.utterances if isinstance(config.aligner, TrainAlignerConfig) else 1
        plan = plan_references(config.corpus, config.splits, work / REFERENCES, fit_utterances=fit)
        if not plan.num_rows:
            raise DataError(
                f"the corpus holds no rows that can be used ({plan.rejects or 'none at all'}); check corpus"
            )
        known = _known_times(config)
        aligner = _aligner(config, plan, work, progress) if known is None else None
        fingerprint = aligner.fingerprint() if aligner is not None else str(known)
        trained_s = time.monotonic() - begin
        chunks = ChunkFolder(folder / f"chunks-{plan.digest}-{fingerprint}", plan.num_chunks)
        arguments = {"tree": absolute_paths(config).model_dump(mode="json"), "work": work}
        with workplace(output, Demand.of_pool(config.pool), progress) as place:
            place.run(lambda heard: run_chunks(chunks, AlignWorker, arguments, config.pool, heard, "chunks aligned"))
        records = chunks.records()
        rejects = [*reader_rejects(work / REFERENCES), *(reject for record in records for reject in record.rejects)]
        write_rejects(output / REJECTS_FILE, rejects)
        _refuse_too_many(plan, rejects, config, output / REJECTS_FILE, work)
        figures = _figures(plan, records, rejects, trained_s, time.monotonic() - begin)
        artifact = _write_result(given, output / RESULT, (chunks, records, rejects), fingerprint, aligner, figures)
        remove_work(folder)
    return artifact


def _key(config: AlignConfig) -> str:
    """Names what decides the content of the chunks."""
    tree = config.model_dump(mode="json", exclude={"output", "pool", "max_reject_fraction"})
    return hashlib.sha256(json.dumps([tree, espeak.version()], sort_keys=True).encode()).hexdigest()[:16]


def _known_times(config: AlignConfig) -> str | None:
    """A fingerprint of the times that are known; None where an aligner tells them.

    Raises:
        ConfigError: the corpus' voices have no times.
        DataError: there are no TextGrids.
        MissingRequirementError: what reads them is not installed.
    """
    match config.aligner:
        case TrainAlignerConfig() | SavedAligner():
            return None
        case TextGridTimes(folder=folder):
            return TextGrids(folder).fingerprint()
        case EspeakTimes():
            assert isinstance(config.corpus, DigitsConfig)
            check_espeaks_own(config.corpus)
            return f"espeak-{hashlib.sha256(espeak.version().encode()).hexdigest()[:16]}"
        case _:
            assert_never(config.aligner)


def _aligner(config: AlignConfig, plan: ReferencePlan, work: Path, progress: Progress) -> Aligner:
    """The aligner in the work folder; it is trained or copied if it is not there yet."""
    if not is_committed(work / ALIGNER):
        match config.aligner:
            case TrainAlignerConfig() as training:
                aligner = _trained(config, training, plan, work, progress)
            case SavedAligner(path=path):
                aligner = open_aligner(folder_with(path, CONFIG_NAME, ALIGNER))
            case TextGridTimes() | EspeakTimes():
                raise AssertionError("known times need no aligner")
        with commit_folder(work / ALIGNER) as temporary:
            aligner.save(temporary)
    found = open_aligner(work / ALIGNER)
    for name, ours, theirs in (
        ("voice", config.voice, found.config.voice),
        ("mel", config.mel, found.config.mel),
    ):
        if ours != theirs:
            raise ConfigError(f"{name}: this run has {ours}, the aligner was trained with {theirs}; give the same")
    return found


def _trained(
    config: AlignConfig, training: TrainAlignerConfig, plan: ReferencePlan, work: Path, progress: Progress
) -> Aligner:
    loader, rows = loader_of(config), list[SpokenPhones]()
    total = sum(len(places) for places in plan.fit.values())
    for chunk, places in plan.fit.items():
        references = read_references(work / REFERENCES, chunk)
        utterances = [references[place] for place in places]
        for utterance, phones in zip(utterances, phones_of(utterances, config), strict=True):
            try:
                samples_N = loader.load(utterance)
            except AudioRejected:
                continue  # it is counted when its chunk is done
            rows.append(SpokenPhones(log_mel(samples_N, config.mel).T, phones))
        progress.update(len(rows), total, "recordings read for the aligner")

    def told(done: int, steps: int, loss: float) -> None:
        if done % 10 == 0 or done == steps:
            progress.update(done, steps, f"steps of the aligner, loss {loss:.2f}")

    return train_aligner(rows, training, voice=config.voice, mel=config.mel, on_step=told)


def _refuse_too_many(
    plan: ReferencePlan, rejects: Sequence[Reject], config: AlignConfig, path: Path, work: Path
) -> None:
    """Stop if more rows cannot be aligned than may be.

    Raises:
        DataError: with the most frequent reasons.
    """
    total = plan.num_rows + plan.num_rejected
    if len(rejects) <= config.max_reject_fraction * total:
        return
    forget_plan(work / REFERENCES)
    reasons = ", ".join(f"{code}: {count}" for code, count in Counter(r.code for r in rejects).most_common(3))
    raise DataError(
        f"{len(rejects)} of {total} rows cannot be aligned ({reasons}), more than max_reject_fraction "
        f"{config.max_reject_fraction:g} allows; train the aligner longer or on more utterances, mend the corpus, or "
        f"raise max_reject_fraction; see {path}"
    )


def _figures(
    plan: ReferencePlan,
    records: Sequence[ChunkRecord],
    rejects: Sequence[Reject],
    trained_s: float,
    wall_s: float,
) -> dict[str, Any]:
    numbers = sum_numbers(records)
    rows = numbers.get("rows", 0.0)
    return {
        "rows_read": plan.num_rows + plan.num_rejected,
        "rows_kept": int(rows),
        "frames": int(numbers.get("frames", 0.0)),
        "log_prob": round(numbers.get("log_prob", 0.0) / max(rows, 1.0), 4),
        "rejected": dict(Counter(reject.code for reject in rejects).most_common()),
        "training_seconds": round(trained_s, 2),
        "wall_seconds": round(wall_s, 2),
    }


def _write_result(
    config: AlignConfig,
    result: Path,
    work: tuple[ChunkFolder, Sequence[ChunkRecord], Sequence[Reject]],
    fingerprint: str,
    aligner: Aligner | None,
    figures: Mapping[str, Any],
) -> Artifact:
    """Put the chunks together and commit the artifact."""
    chunks, records, rejects = work
    description = DurationsDescription(
        voice=config.voice,
        phonemizer=espeak.version(),
        aligner_fingerprint=fingerprint,
        mel=config.mel,
        code_version=code_version(),
    )

    def fill(target: Path) -> None:
        chunks.collect(records, ROWS, target / ROWS)
        if aligner is not None:
            aligner.save(target / ALIGNER)
        (target / DURATIONS_FILE).write_text(description.model_dump_json(indent=2) + "\n", encoding="utf-8")
        write_rejects(target / REJECTS_FILE, rejects)

    info = describe_artifact(
        "durations",
        name_for(config.output),
        "1",
        inputs={"aligner": fingerprint},
        config=config.model_dump(mode="json"),
        metrics=figures,
    )
    return write_artifact(result, info, fill)
