"""Mels with latents on Ray Data: of recordings, for training a denoiser, or of a guided denoiser, for distilling it."""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, assert_never

from retort.config import validate
from retort.data.mels import (
    MELS_FILE,
    ROWS,
    VOICES,
    FromRecordings,
    FromTeacher,
    MelSet,
    MelSetDescription,
    voice_schema,
)
from retort.data.readers import corpus_of
from retort.data.references import plan_references
from retort.data.tokens import TokenSet, refuse_mismatch
from retort.errors import ConfigError, DataError
from retort.inference.synthesizer import carry_speaking_model
from retort.methods.codec_lm_data import check_fits_tokens
from retort.methods.mel_data import refuse_other_mels
from retort.methods.trained_mel_diffusion import LM
from retort.models.weights import LoadedCodecLM, LoadedMelDiffusion, load_codec_lm, load_mel_diffusion
from retort.orchestration.after_finish import after_finish
from retort.orchestration.chunks import write_rejects
from retort.orchestration.generate.chunked import REJECTS_FILE, Generated, Work, generate_chunks, summary
from retort.orchestration.generate.mel_codec import open_mel_codec
from retort.orchestration.generate.mel_recordings import RecordedMelsWorker
from retort.orchestration.generate.mel_synthetic import SyntheticMelsWorker
from retort.orchestration.generate.plan import GenerationPlan, cut, plan_asks
from retort.orchestration.outputs import absolute_paths, job_output, run_once, with_results
from retort.orchestration.progress import Progress
from retort.run_config import FileTexts, GenerateMelsConfig, PrepareConfig, RecordedMels, SyntheticMels
from retort.store.artifact import Artifact, code_version, describe_artifact, name_for, read_artifact, write_artifact
from retort.store.place import drop
from retort.store.results import RESULT, result_of

_VOICES_PER_SHARD = 256


def run_generate_mels(config: GenerateMelsConfig, progress: Progress) -> dict[str, Any]:
    """Generate mels: ``result/`` gets ``rows/``, ``voices/`` where a teacher made them, and the description.

    A run that was cut short goes on with the chunks that are not done; a finished one returns at once. A row depends on
    its own id and the seed, not on its batch or the pool.

    Raises:
        ConfigError: a guidance, the solver or the codec is not valid for the models.
        DataError: LM, token set, denoiser and voices do not belong together, or no row is left.
    """
    artifact, _ = run_once(config, progress, lambda: _generate(config, progress), after_finish(config))
    return summary(artifact)


def _generate(config: GenerateMelsConfig, progress: Progress) -> Artifact:
    begin = time.monotonic()
    with job_output(config) as output:
        resolved = with_results(config)
        tokens = TokenSet.open(resolved.data)
        description = _describe(resolved, tokens)
        tree = absolute_paths(config).model_dump(mode="json")
        plan = partial(_plan, resolved, tree, tokens, description)
        made = generate_chunks(output, _key(resolved, description), plan, config.pool, progress)
        figures = _figures(resolved, tokens, made, time.monotonic() - begin)
        if not figures["rows"]:
            raise DataError(
                f"no row is left ({figures['dropped'] or 'none was asked for'}); mend what {output / REJECTS_FILE} "
                "names, train the models longer, or loosen filters"
            )
        artifact = _write_result(config, output / RESULT, made, description, figures)
        drop(made.folder)
    return artifact


def _fitting_lm(config: GenerateMelsConfig, tokens: TokenSet) -> LoadedCodecLM:
    """The codec LM, if it was made for these tokens."""
    lm = load_codec_lm(config.lm)
    check_fits_tokens(lm, tokens.description, who=f"the LM {config.lm}", data=config.data)
    if lm.model.config.guidance_scales:
        raise ConfigError(f"{config.lm} takes its guidance scale as an input; its latents would depend on the scale")
    return lm


def _describe(config: GenerateMelsConfig, tokens: TokenSet) -> MelSetDescription:
    lm, codec = _fitting_lm(config, tokens), open_mel_codec(config.data)
    description = MelSetDescription(
        source=FromRecordings(),
        lm_fingerprint=lm.fingerprint,
        data_fingerprint=read_artifact(config.data, verify=False).fingerprint,
        codec_fingerprint=tokens.description.codec_fingerprint,
        text_fingerprint=tokens.description.text_fingerprint,
        latent_dim=lm.model.config.dim,
        frames_per_latent=codec.config.frames_per_token,
        mel=codec.config.mel,
        soft_floor=codec.config.soft_floor,
        voice_max_frames=config.voice_max_frames,
        precision=config.precision,
        seed=config.seed,
        code_version=code_version(),
    )
    match config.source:
        case RecordedMels():
            return description
        case SyntheticMels() as source:
            lm.lineage.check_guidance(source.lm_guidance.build())
            teacher = _fitting_teacher(source, load_mel_diffusion(source.teacher), description)
            return description.replace(source=_made_by(source, teacher.fingerprint))
        case _:
            assert_never(config.source)


def _fitting_teacher(
    source: SyntheticMels, teacher: LoadedMelDiffusion, wanted: MelSetDescription
) -> LoadedMelDiffusion:
    """The denoiser, if it reads this LM's latents, may be guided and sampled so, and the voices are of its kind."""
    lineage, model, voices = teacher.lineage, teacher.model.config, MelSet.open(source.voices).description
    cure = "use the LM and the token set that the denoiser was trained with"
    refuse_other_mels(lineage, model, wanted, who="the denoiser", other="this run", cure=cure)
    mine, needed = voices.codec_fingerprint, wanted.codec_fingerprint
    refuse_mismatch("codec", str(source.voices), mine, "this run", needed, "give voices of its codec")
    if not isinstance(voices.source, FromRecordings):
        raise ConfigError(f"{source.voices} was made by a denoiser; voices are a mel set of recordings")
    lineage.check_guidance(source.guidance)
    lineage.check_steps(source.solver.kind, source.solver.num_steps)
    return teacher


def _made_by(source: SyntheticMels, teacher_fingerprint: str) -> FromTeacher:
    return FromTeacher(
        teacher_fingerprint=teacher_fingerprint,
        guidance=source.guidance,
        solver=source.solver.model_dump(mode="json"),
        lm_guidance={str(name): value for name, value in source.lm_guidance.build().coefficients.items()},
        sampler=source.sampler.model_dump(mode="json"),
        voices_fingerprint=read_artifact(source.voices, verify=False).fingerprint,
    )


def _key(config: GenerateMelsConfig, description: MelSetDescription) -> str:
    """Names what decides the content of the chunks."""
    source = config.source.model_dump(mode="json", exclude={"teacher", "voices"})
    tree = config.model_dump(mode="json", exclude={"output", "pool", "lm", "data", "source"})
    made = description.model_dump(mode="json", exclude={"code_version"})
    texts = ""
    if isinstance(config.source, SyntheticMels) and isinstance(config.source.texts, FileTexts):
        path = config.source.texts.path
        texts = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
    return hashlib.sha256(json.dumps([tree, source, made, texts], sort_keys=True).encode()).hexdigest()[:16]


def _plan(
    config: GenerateMelsConfig,
    tree: Mapping[str, Any],
    tokens: TokenSet,
    description: MelSetDescription,
    folder: Path,
) -> Work:
    """The plan, on disk; workers get ``tree``, whose inputs each finds on its own node."""
    arguments: dict[str, Any] = {"tree": tree, "description": description.model_dump_json()}
    match config.source:
        case RecordedMels() as source:
            prepare = _prepared(config.data)
            prepare = prepare.replace(corpus=corpus_of(prepare.corpus, set(tokens.column("speaker"))))
            (folder / "chosen.json").write_text(json.dumps(chosen_rows(source, tokens, config.seed)))
            references = folder / "references"
            plan = plan_references(prepare.corpus, prepare.splits, references, fit_utterances=1)
            arguments |= {"prepare": prepare.model_dump(mode="json"), "references": references}
            arguments |= {"chosen": folder / "chosen.json"}
            return Work(plan.num_chunks, RecordedMelsWorker, arguments)
        case SyntheticMels() as source:
            asks, rejects = plan_asks(source.texts, tokens, config.data, count=source.num_rows, seed=config.seed)
            sampled = GenerationPlan([], cut(asks, config.batch_size), rejects)
            sampled.write(folder / "plan.json")
            return Work(sampled.num_chunks, SyntheticMelsWorker, {**arguments, "plan": folder / "plan.json"}, rejects)
        case _:
            assert_never(config.source)


def _prepared(data: Path) -> PrepareConfig:
    """The run file that a token set was made with: it says where its recordings are.

    Raises:
        DataError: it was not made by ``retort prepare``.
    """
    try:
        return validate(dict(read_artifact(data, verify=False).info.config), PrepareConfig, where="artifact.json")
    except ConfigError as error:
        raise DataError(
            f"{data} does not say which recordings it was made from: {error}; run `retort prepare`"
        ) from None


def chosen_rows(source: RecordedMels, tokens: TokenSet, seed: int) -> list[str]:
    """Ids of the rows that are asked for: those whose ids hash lowest, so that a larger sample holds a smaller one."""
    pairs = zip(tokens.column("id"), tokens.column("split"), strict=True)
    ids = [row_id for row_id, split in pairs if split in source.splits]
    ids.sort(key=lambda row_id: hashlib.blake2b(f"{seed} {row_id}".encode()).digest())
    return sorted(ids[: source.max_rows])


def _figures(config: GenerateMelsConfig, tokens: TokenSet, made: Generated, wall_s: float) -> dict[str, Any]:
    rows, frames = int(made.total("rows")), made.total("mel_frames")
    dropped = dict(Counter(reject.code for reject in made.rejects).most_common())
    match config.source:
        case RecordedMels() as source:
            asked = len(chosen_rows(source, tokens, config.seed))
            gone = asked - rows - len(made.rejects)
            dropped |= {"not_in_corpus": gone} if gone else {}
        case SyntheticMels(num_rows=asked):
            pass
        case _:
            assert_never(config.source)
    return {
        "asked": asked,
        "rows": rows,
        "mel_frames": int(frames),
        "dropped": dropped,
        "wall_seconds": round(wall_s, 2),
        "mel_frames_per_second": round(frames / wall_s, 1),
    }


def _write_result(
    config: GenerateMelsConfig,
    result: Path,
    made: Generated,
    description: MelSetDescription,
    figures: Mapping[str, Any],
) -> Artifact:
    """Put the chunks together and commit the artifact."""
    description = description.replace(precision=made.precision or description.precision)
    inputs = {"lm": description.lm_fingerprint, "data": description.data_fingerprint}
    if isinstance(description.source, FromTeacher):
        inputs |= {"teacher": description.source.teacher_fingerprint, "voices": description.source.voices_fingerprint}

    def fill(target: Path) -> None:
        made.chunks.collect(made.records, ROWS, target / ROWS)
        if isinstance(config.source, SyntheticMels):
            _copy_voices(MelSet.open(result_of(config.source.voices)), target / VOICES)
        carry_speaking_model(result_of(config.lm), target / LM)
        (target / MELS_FILE).write_text(description.model_dump_json(indent=2) + "\n", encoding="utf-8")
        write_rejects(target / REJECTS_FILE, made.rejects)

    info = describe_artifact(
        "mels", name_for(config.output), "1", inputs=inputs, config=config.model_dump(mode="json"), metrics=figures
    )
    return write_artifact(result, info, fill)


def _copy_voices(recordings: MelSet, folder: Path) -> None:
    """The recordings that voices are cut from, without what else their set holds."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    voices = recordings.voices
    for number, part in enumerate(cut(range(len(voices.places)), _VOICES_PER_SHARD)):
        table = pa.Table.from_pylist([voices.record(index) for index in part], schema=voice_schema())
        pq.write_table(table, folder / f"part-{number:05d}.parquet", compression="zstd", row_group_size=8)
