"""Mels with phones on Ray Data: of aligned recordings, or of a zero-shot teacher that says them in other voices."""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, assert_never

from retort.config import validate
from retort.data.durations import read_description, read_durations
from retort.data.phone_mels import (
    PHONE_MELS_FILE,
    ROWS,
    FromRecordings,
    FromSwaps,
    PhoneMelSet,
    PhoneMelSetDescription,
)
from retort.data.readers import corpus_here
from retort.data.references import plan_references
from retort.data.tokens import refuse_mismatch
from retort.errors import ConfigError, DataError
from retort.models.weights import LoadedZeroShot, load_zero_shot
from retort.models.zero_shot.timbre import open_timbre_encoder, timbre_encoder_name
from retort.orchestration.after_finish import after_finish
from retort.orchestration.chunks import write_rejects
from retort.orchestration.generate.chunked import REJECTS_FILE, Generated, Work, generate_chunks, summary
from retort.orchestration.generate.phone_mel_recordings import RecordedPhoneMelsWorker
from retort.orchestration.generate.phone_mel_swaps import SwappedPhoneMelsWorker, plan_swaps, write_swaps
from retort.orchestration.outputs import absolute_paths, job_output, run_once, with_results
from retort.orchestration.progress import Progress
from retort.run_config import AlignConfig, GeneratePhoneMelsConfig, RecordedPhoneMels, SwappedPhoneMels
from retort.store.artifact import Artifact, code_version, describe_artifact, name_for, read_artifact, write_artifact
from retort.store.place import drop
from retort.store.results import RESULT


def run_generate_phone_mels(config: GeneratePhoneMelsConfig, progress: Progress) -> dict[str, Any]:
    """Generate phone mels: ``result/`` gets ``rows/`` and the description.

    A run that was cut short goes on with the chunks that are not done; a finished one returns at once. A row depends on
    its own id and the seed, not on its chunk or the pool.

    Raises:
        ConfigError: there are fewer other speakers than voices were asked for, or a mel does not fit.
        DataError: durations, teacher and mels do not belong together, or no row is left.
    """
    artifact, _ = run_once(config, progress, lambda: _generate(config, progress), after_finish(config))
    return summary(artifact)


def _generate(config: GeneratePhoneMelsConfig, progress: Progress) -> Artifact:
    begin = time.monotonic()
    with job_output(config) as output:
        resolved = with_results(config)
        description = _describe(resolved)
        tree = absolute_paths(config).model_dump(mode="json")
        plan = partial(_plan, resolved, tree, description)
        made = generate_chunks(output, _key(resolved, description), plan, config.pool, progress)
        figures = _figures(resolved, made, time.monotonic() - begin)
        if not figures["rows"]:
            raise DataError(
                f"no row is left ({figures['dropped'] or 'none was asked for'}); mend what {output / REJECTS_FILE} "
                "names, train the teacher longer, or loosen filters"
            )
        artifact = _write_result(config, output / RESULT, made, description, figures)
        drop(made.folder)
    return artifact


def _describe(config: GeneratePhoneMelsConfig) -> PhoneMelSetDescription:
    match config.source:
        case RecordedPhoneMels() as source:
            aligned, align = read_description(source.durations), _aligned(source)
            encoder = open_timbre_encoder(source.timbre_encoder, aligned.mel)
            phones = {phone for row in read_durations(source.durations) for phone in row.phones if phone}
            return PhoneMelSetDescription(
                source=FromRecordings(),
                mel=aligned.mel,
                phones=tuple(sorted(phones)),
                voice=aligned.voice,
                language=align.language,
                phonemizer=aligned.phonemizer,
                timbre_encoder=encoder.name,
                timbre_dim=encoder.dim,
                durations_fingerprint=read_artifact(source.durations, verify=False).fingerprint,
                target_lufs=align.audio.target_lufs,
                seed=config.seed,
                code_version=code_version(),
            )
        case SwappedPhoneMels() as source:
            mels = PhoneMelSet.open(source.mels).description
            teacher = _fitting_teacher(source, load_zero_shot(source.teacher), mels)
            made_by = FromSwaps(
                teacher_fingerprint=teacher.fingerprint,
                mels_fingerprint=read_artifact(source.mels, verify=False).fingerprint,
                pairs_per_row=source.pairs_per_row,
                noise_scale=source.noise_scale,
                filters=source.filters.model_dump(mode="json"),
            )
            return mels.replace(source=made_by, seed=config.seed, code_version=code_version())
        case _:
            assert_never(config.source)


def _aligned(source: RecordedPhoneMels) -> AlignConfig:
    """The run file that the durations were made with, its corpus as it is here.

    Raises:
        DataError: they were not made by ``retort align``.
    """
    try:
        found = validate(
            dict(read_artifact(source.durations, verify=False).info.config), AlignConfig, where="artifact.json"
        )
    except ConfigError as error:
        raise DataError(
            f"{source.durations} does not say which recordings were aligned: {error}; run `retort align`"
        ) from None
    corpus, _ = corpus_here(found.corpus if source.corpus is None else source.corpus)
    return found.replace(corpus=corpus)


def _fitting_teacher(source: SwappedPhoneMels, teacher: LoadedZeroShot, mels: PhoneMelSetDescription) -> LoadedZeroShot:
    """The teacher, if it knows the set's phones, mels and timbres."""
    if not isinstance(mels.source, FromRecordings):
        raise ConfigError(f"{source.mels} was made by a teacher; give the phone mel set of recordings")
    lineage, cure = teacher.lineage, "train the teacher on this set, or give the set that it was trained on"
    for name, theirs, ours in (
        ("mel", lineage.mel, mels.mel),
        ("timbre encoder", lineage.timbre_encoder, mels.timbre_encoder),
        ("voice of espeak-ng", lineage.voice, mels.voice),
    ):
        refuse_mismatch(name, f"the teacher {source.teacher}", str(theirs), str(source.mels), str(ours), cure)
    given, same = timbre_encoder_name(source.timbre_encoder), "name the same encoder in source.timbre_encoder"
    refuse_mismatch("timbre encoder", "this run", given, str(source.mels), mels.timbre_encoder, same)
    unknown = sorted(set(mels.phones) - set(lineage.phones))
    if unknown:
        raise DataError(f"the teacher {source.teacher} does not know the phones {' '.join(unknown)}; {cure}")
    return teacher


def _key(config: GeneratePhoneMelsConfig, description: PhoneMelSetDescription) -> str:
    """Names what decides the content of the chunks."""
    source = config.source.model_dump(mode="json", exclude={"teacher", "mels", "durations"})
    # The durations' fingerprint decides the loudness.
    made = description.model_dump(mode="json", exclude={"code_version", "target_lufs"})
    return hashlib.sha256(json.dumps([source, made], sort_keys=True).encode()).hexdigest()[:16]


def _plan(
    config: GeneratePhoneMelsConfig, tree: Mapping[str, Any], description: PhoneMelSetDescription, folder: Path
) -> Work:
    """The plan, on disk; workers get ``tree``, whose inputs each finds on its own node."""
    arguments: dict[str, Any] = {"tree": tree, "description": description.model_dump_json()}
    match config.source:
        case RecordedPhoneMels() as source:
            align = _aligned(source)
            references = folder / "references"
            plan = plan_references(align.corpus, align.splits, references, fit_utterances=1)
            arguments |= {"aligned": absolute_paths(align).model_dump(mode="json"), "references": references}
            return Work(plan.num_chunks, RecordedPhoneMelsWorker, arguments)
        case SwappedPhoneMels() as source:
            swaps = plan_swaps(PhoneMelSet.open(source.mels), source, seed=config.seed)
            write_swaps(folder / "plan.json", swaps)
            num_chunks = -(-len(swaps) // source.chunk_size)
            return Work(num_chunks, SwappedPhoneMelsWorker, {**arguments, "plan": folder / "plan.json"})
        case _:
            assert_never(config.source)


def _figures(config: GeneratePhoneMelsConfig, made: Generated, wall_s: float) -> dict[str, Any]:
    rows, frames = int(made.total("rows")), made.total("mel_frames")
    dropped = dict(Counter(reject.code for reject in made.rejects).most_common())
    figures: dict[str, Any] = {
        "asked": int(made.total("asked")),
        "rows": rows,
        "mel_frames": int(frames),
        "phones": int(made.total("phones")),
        "dropped": dropped,
        "wall_seconds": round(wall_s, 2),
        "mel_frames_per_second": round(frames / wall_s, 1),
    }
    match config.source:
        case RecordedPhoneMels() as source:
            aligned = sum(row.split in source.splits for row in read_durations(source.durations))
            gone = aligned - int(made.total("aligned"))
            return figures | ({"dropped": {**dropped, "not_in_corpus": gone}} if gone else {})
        case SwappedPhoneMels():
            return figures | {"similarity_gain": round(made.total("similarity_gain") / max(rows, 1), 4)}
        case _:
            assert_never(config.source)


def _write_result(
    config: GeneratePhoneMelsConfig,
    result: Path,
    made: Generated,
    description: PhoneMelSetDescription,
    figures: Mapping[str, Any],
) -> Artifact:
    """Put the chunks together and commit the artifact."""
    inputs = {"durations": description.durations_fingerprint}
    if isinstance(description.source, FromSwaps):
        inputs |= {"teacher": description.source.teacher_fingerprint, "mels": description.source.mels_fingerprint}

    def fill(target: Path) -> None:
        made.chunks.collect(made.records, ROWS, target / ROWS)
        (target / PHONE_MELS_FILE).write_text(description.model_dump_json(indent=2) + "\n", encoding="utf-8")
        write_rejects(target / REJECTS_FILE, made.rejects)

    info = describe_artifact(
        "phone_mels",
        name_for(config.output),
        "1",
        inputs=inputs,
        config=config.model_dump(mode="json"),
        metrics=figures,
    )
    return write_artifact(result, info, fill)
