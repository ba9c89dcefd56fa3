"""Corpus to token set: references, a codec fitted on some of them, then chunks of tokens on Ray Data."""

import functools
import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from retort.audio.codec import Codec, new_codec, open_codec
from retort.data.readers import corpus_here
from retort.data.references import ReferencePlan, forget_plan, plan_references, reader_rejects
from retort.data.tokens import TokenSetDescription, write_description
from retort.data.utterance import Reject
from retort.errors import DataError
from retort.evaluation.speaker import encoder_name
from retort.orchestration.after_finish import after_finish
from retort.orchestration.chunks import (
    ChunkFolder,
    ChunkRecord,
    open_work_folder,
    remove_work,
    run_chunks,
    sent,
    stream_through_actors,
    sum_numbers,
    write_rejects,
)
from retort.orchestration.demand import Demand
from retort.orchestration.outputs import job_output, run_once
from retort.orchestration.prepare.told import (
    first_rejects,
    told_corpus,
    told_end,
    told_languages,
    told_leaks,
    told_unread,
)
from retort.orchestration.prepare.worker import (
    AUDIO,
    CODEC,
    GIVEN,
    REFERENCES,
    TEXT,
    TOKENS,
    PrepareWorker,
    samples_for_fitting,
)
from retort.orchestration.progress import Progress
from retort.orchestration.workplace import workplace
from retort.run_config import PrepareConfig, SavedCodec, SavedText
from retort.store.artifact import Artifact, describe_artifact, name_for, write_artifact
from retort.store.commit import commit_folder, is_committed
from retort.store.place import drop
from retort.store.results import RESULT, folder_with
from retort.text.front_end import (
    FRONT_END_FILE,
    CharactersConfig,
    PhonemesConfig,
    TextFrontEnd,
    build_text_front_end,
    open_text_front_end,
)

REJECTS_FILE = "rejects.jsonl"
_UNREAD_KEPT = 100
"""Token sets keep codes as 16-bit integers."""


def run_prepare(config: PrepareConfig, progress: Progress) -> dict[str, Any]:
    """Prepare a corpus: ``result/`` gets token shards, held-out audio, codec, text front-end and rejects.

    A run that was cut short goes on with the chunks that are not done; a finished one returns at once. The content
    does not depend on the number of workers.

    Raises:
        DataError: the corpus is not there, more rows than ``max_reject_fraction`` cannot be used, or splits share what
            must be kept apart.
        ConfigError: the output is another configuration's.
    """
    artifact, _ = run_once(config, progress, lambda: _prepare(config, progress), after_finish(config))
    return _summary(artifact)


def _prepare(config: PrepareConfig, progress: Progress) -> Artifact:
    begin = time.monotonic()
    corpus, told = corpus_here(config.corpus)
    if told is not None:
        progress.log(f"corpus: {told}")
    given, config = config, config.replace(corpus=corpus)
    with job_output(config) as output:
        front_end = _front_end(config.text)
        folder = open_work_folder(output, _key(config, front_end))
        work = folder / GIVEN
        plan = plan_references(
            config.corpus,
            config.splits,
            work / REFERENCES,
            fit_utterances=config.codec_fit_utterances,
            on_rows=lambda count: progress.update(count, count + 1, "rows of the corpus read"),
        )
        for line in told_corpus(plan, config):
            progress.log(line)
        for line in told_languages(plan.languages, config, front_end.config.language):
            progress.log(line)
        _refuse_too_many(plan, None, config, output / REJECTS_FILE, work)
        _refuse_leak(plan, work, progress)
        _save_once(work / TEXT, front_end)
        with workplace(output, Demand.of_pool(config.pool), progress) as place:
            codec = place.run(lambda heard: _codec(config, plan, work, heard))
            chunks = ChunkFolder(folder / f"chunks-{plan.digest}-{codec.fingerprint()}", plan.num_chunks)
            arguments = {"tree": config.model_dump(mode="json"), "work": work}
            place.run(lambda heard: run_chunks(chunks, PrepareWorker, arguments, config.pool, heard, "chunks prepared"))
        rejects = _refuse_too_many(plan, chunks, config, output / REJECTS_FILE, work)
        records = chunks.records()
        summary = _figures(plan, records, rejects, time.monotonic() - begin)
        for line in (*told_unread(summary["unread_characters"], config), *told_end(summary, rejects)):
            progress.log(line)
        artifact = _write_result(given, output / RESULT, (chunks, records, rejects), (codec, front_end), summary)
        remove_work(folder)
    return artifact


def _front_end(config: CharactersConfig | PhonemesConfig | SavedText) -> TextFrontEnd:
    """A new front-end, or that of an earlier token set or model."""
    if not isinstance(config, SavedText):
        return build_text_front_end(config)
    path = config.path
    return open_text_front_end(folder_with(path, FRONT_END_FILE, TEXT))


def _key(config: PrepareConfig, front_end: TextFrontEnd) -> str:
    """Names what decides the content of the chunks."""
    tree = config.model_dump(mode="json", exclude={"output", "pool", "max_reject_fraction"})
    return hashlib.sha256(json.dumps([tree, front_end.fingerprint()], sort_keys=True).encode()).hexdigest()[:16]


def _save_once(folder: Path, part: Codec | TextFrontEnd) -> None:
    if not is_committed(folder):
        with commit_folder(folder) as temporary:
            part.save(temporary)


def _codec(config: PrepareConfig, plan: ReferencePlan, work: Path, progress: Progress) -> Codec:
    """The codec in the work folder; it is fitted, loaded or copied if it is not there yet."""
    if not is_committed(work / CODEC):
        codec = _new_codec(config, plan, work, progress)
        _save_once(work / CODEC, codec)
    return open_codec(work / CODEC)


def _new_codec(config: PrepareConfig, plan: ReferencePlan, work: Path, progress: Progress) -> Codec:
    match config.codec:
        case SavedCodec(path=path):
            return open_codec(folder_with(path, "model.safetensors", CODEC))
        case shape:
            return new_codec(shape, functools.partial(_fitting_recordings, config, plan, work, progress))


def _fitting_recordings(
    config: PrepareConfig, plan: ReferencePlan, work: Path, progress: Progress, sample_rate: int
) -> Iterator[torch.Tensor]:
    """Samples of the training rows that the codec is fitted on, decoded by the workers, in a fixed order."""
    items = [{"chunk": chunk, "places": places} for chunk, places in plan.fit.items()]
    given = sent({"work": work})["work"]
    make = functools.partial(samples_for_fitting, config.model_dump(mode="json"), given, sample_rate)
    total = sum(len(places) for places in plan.fit.values())
    progress.log(f"fitting the codec on {total} training utterances")
    for done, samples in enumerate(stream_through_actors(items, make, config.pool), start=1):
        progress.update(done, total, "recordings decoded for the codec")
        yield torch.from_numpy(np.frombuffer(samples, dtype="<f4").astype(np.float32))


def _refuse_too_many(
    plan: ReferencePlan, chunks: ChunkFolder | None, config: PrepareConfig, path: Path, work: Path
) -> list[Reject]:
    """Write the rejects so far beside the run; stop if they are too many or nothing is left to train on.

    A run that stops forgets what a person may mend before the next one: the plan, the codec, chunks with rejects.

    Raises:
        DataError: with the most frequent reasons.
    """
    records = [] if chunks is None else chunks.records()
    rejects = [*reader_rejects(work / REFERENCES), *(reject for record in records for reject in record.rejects)]
    fault = _fault(plan, records, config, write_rejects(path, rejects))
    if fault is None:
        return rejects
    forget_plan(work / REFERENCES)
    drop(work / CODEC)
    for record in records:
        if chunks is not None and record.rejects:
            chunks.forget(record.number)
    examples = "".join(f"\n  {line}" for line in first_rejects(rejects))
    raise DataError(f"{fault}; see {path}{examples}")


def _refuse_leak(plan: ReferencePlan, work: Path, progress: Progress) -> None:
    """Stop if splits share what must be kept apart; say so where they share speakers and may.

    Raises:
        DataError: with the speakers or texts, and the cure.
    """
    if plan.leak is not None:
        forget_plan(work / REFERENCES)
        raise DataError(plan.leak)
    for line in told_leaks(plan):
        progress.log(line)


def _fault(
    plan: ReferencePlan, records: Sequence[ChunkRecord], config: PrepareConfig, codes: Counter[str]
) -> str | None:
    rejected, total = sum(codes.values()), plan.num_rows + plan.num_rejected
    reasons = ", ".join(f"{code}: {count}" for code, count in codes.most_common(3))
    if total == 0:
        return "the corpus holds no rows; check corpus.path"
    if rejected > config.max_reject_fraction * total:
        return (
            f"{rejected} of {total} rows cannot be used ({reasons}), more than max_reject_fraction "
            f"{config.max_reject_fraction:g} allows; mend the corpus or raise max_reject_fraction"
        )
    if records and not sum_numbers(records).get("rows/train"):
        return f"no training rows are left of {total} ({reasons or 'check the splits'})"
    return None


def _figures(
    plan: ReferencePlan, records: Sequence[ChunkRecord], rejects: Sequence[Reject], wall_s: float
) -> dict[str, Any]:
    numbers = sum_numbers(records)
    splits = {name: int(count) for name, count in sorted(_below("rows/", numbers).items())}
    unread = Counter({char: int(count) for char, count in _below("unread/", numbers).items()})
    return {
        "rows_read": plan.num_rows + plan.num_rejected,
        "rows_kept": sum(splits.values()),
        "splits": splits,
        "shared_speakers": plan.num_shared_speakers,
        "shared_texts": plan.num_shared_texts,
        "shared_recordings": plan.num_shared_recordings,
        "rejected": dict(Counter(reject.code for reject in rejects).most_common()),
        "unread_characters": dict(unread.most_common(_UNREAD_KEPT)),
        "audio_seconds": round(numbers["audio_seconds"], 3),
        "tokens": int(numbers["tokens"]),
        "wall_seconds": round(wall_s, 2),
        "tokens_per_second": round(numbers["tokens"] / wall_s, 1),
        "audio_seconds_per_second": round(numbers["audio_seconds"] / wall_s, 2),
    }


def _below(prefix: str, numbers: Mapping[str, float]) -> dict[str, float]:
    return {name.removeprefix(prefix): value for name, value in numbers.items() if name.startswith(prefix)}


def _write_result(
    config: PrepareConfig,
    result: Path,
    work: tuple[ChunkFolder, Sequence[ChunkRecord], Sequence[Reject]],
    parts: tuple[Codec, TextFrontEnd],
    figures: Mapping[str, Any],
) -> Artifact:
    """Put the chunks together and commit the artifact."""
    (chunks, records, rejects), (codec, front_end) = work, parts
    description = TokenSetDescription(
        codec_fingerprint=codec.fingerprint(),
        text_fingerprint=front_end.fingerprint(),
        text_vocabulary_size=front_end.vocabulary_size,
        num_codebooks=codec.num_codebooks,
        codebook_size=codec.codebook_size,
        sample_rate=codec.sample_rate,
        frame_rate=codec.frame_rate,
        speaker_encoder=None if config.speaker_encoder is None else encoder_name(config.speaker_encoder),
    )

    def fill(target: Path) -> None:
        chunks.collect(records, TOKENS, target)
        chunks.collect(records, AUDIO, target / AUDIO)
        write_description(target, description)
        codec.save(target / CODEC)
        front_end.save(target / TEXT)
        write_rejects(target / REJECTS_FILE, rejects)

    fingerprints = {"codec": codec.fingerprint(), "text": front_end.fingerprint()}
    info = describe_artifact(
        "tokens",
        name_for(config.output),
        "1",
        inputs=fingerprints,
        config=config.model_dump(mode="json"),
        metrics={**figures, "fingerprints": fingerprints},
    )
    return write_artifact(result, info, fill)


def _summary(artifact: Artifact) -> dict[str, Any]:
    return {**artifact.info.metrics, "fingerprint": artifact.fingerprint, "result": str(artifact.path)}
