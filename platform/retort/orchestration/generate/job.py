"""Teacher to synthetic data on Ray Data: guided top-k of real tokens, and sequences sampled from the guided teacher."""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from retort.data.logit_cache import DEFAULT_ENCODING
from retort.data.prompts import PROMPT_MAX_FRAMES
from retort.data.synthetic import SAMPLED, SYNTHETIC_FILE, TARGETS, SyntheticDescription
from retort.data.tokens import TokenSet, refuse_mismatch
from retort.data.utterance import Reject
from retort.errors import ConfigError, DataError
from retort.methods.codec_lm_data import check_fits_tokens
from retort.models.weights import LoadedCodecLM, load_codec_lm
from retort.orchestration.after_finish import after_finish
from retort.orchestration.chunks import ChunkRecord, sum_numbers, write_rejects
from retort.orchestration.generate.chunked import REJECTS_FILE, Generated, Work, generate_chunks, summary
from retort.orchestration.generate.plan import plan_generation
from retort.orchestration.generate.worker import GenerateWorker
from retort.orchestration.outputs import absolute_paths, job_output, run_once, with_results
from retort.orchestration.progress import Progress
from retort.run_config import FileTexts, GenerateConfig
from retort.store.artifact import Artifact, code_version, describe_artifact, name_for, read_artifact, write_artifact
from retort.store.place import drop
from retort.store.results import RESULT


def run_generate(config: GenerateConfig, progress: Progress) -> dict[str, Any]:
    """Generate: ``result/`` gets ``targets/``, ``sampled/`` and the description, each id exactly once.

    A run that was cut short goes on with the chunks that are not done; a finished one returns at once. A sequence
    depends on its own id and the seed, not on its batch or the pool.

    Raises:
        ConfigError: the guidance is not valid for the teacher, or there is nothing to generate.
        DataError: teacher and token set do not belong together, or every sampled sequence was dropped.
    """
    artifact, _ = run_once(config, progress, lambda: _generate(config, progress), after_finish(config))
    return summary(artifact)


def _generate(config: GenerateConfig, progress: Progress) -> Artifact:
    begin = time.monotonic()
    with job_output(config) as output:
        resolved = with_results(config)
        tokens = TokenSet.open(resolved.data)
        description = _describe(resolved, _fitting_teacher(resolved, tokens), tokens)
        arguments = {
            "tree": absolute_paths(config).model_dump(mode="json"),
            "description": description.model_dump_json(),
        }

        def plan_in(work: Path) -> Work:
            plan = plan_generation(resolved, tokens)
            plan.write(work / "plan.json")
            return Work(plan.num_chunks, GenerateWorker, {**arguments, "plan": work / "plan.json"}, plan.rejects)

        made = generate_chunks(output, _key(resolved, description), plan_in, config.pool, progress)
        figures = _figures(config, made.records, made.rejects, time.monotonic() - begin)
        if config.num_sampled and not figures["sampled_kept"]:
            who = "the teacher longer, lower the guidance" if config.sampled_by is None else "sampled_by longer"
            raise DataError(
                f"all {config.num_sampled} sampled sequences were dropped ({figures['dropped']}); train {who}, or "
                f"loosen filters; see {output / REJECTS_FILE}"
            )
        artifact = _write_result(config, output / RESULT, made, description, figures)
        drop(made.folder)
    return artifact


def _fitting_teacher(config: GenerateConfig, tokens: TokenSet) -> LoadedCodecLM:
    """The teacher, if it may be guided so and was made for these tokens."""
    if not config.teacher_forced and not config.num_sampled:
        raise ConfigError("nothing to generate: set teacher_forced: true, or num_sampled above 0")
    teacher = load_codec_lm(config.teacher)
    teacher.lineage.check_guidance(config.guidance.build())
    check_fits_tokens(teacher, tokens.description, who=f"the teacher {config.teacher}", data=config.data)
    if teacher.model.config.guidance_scales:
        raise ConfigError(f"{config.teacher} takes its guidance scale as an input: it is a student, not a teacher")
    return teacher


def _sampler_of(config: GenerateConfig, teacher: LoadedCodecLM, tokens: TokenSet) -> dict[str, JsonValue]:
    """How sequences are sampled, and by whom, if it is not the teacher.

    Raises:
        ConfigError: there is nothing that it would sample, or it takes its guidance scale as an input.
        DataError: it was made for other tokens, or lays them out otherwise.
    """
    sampler: dict[str, JsonValue] = config.sampler.model_dump(mode="json")
    if config.sampled_by is None:
        return sampler
    if not config.num_sampled:
        raise ConfigError("sampled_by samples sequences, and num_sampled is 0; set it, or leave sampled_by out")
    student, who = load_codec_lm(config.sampled_by), f"sampled_by {config.sampled_by}"
    check_fits_tokens(student, tokens.description, who=who, data=config.data)
    delays = [list(model.model.config.codebook_delays) for model in (student, teacher)]
    refuse_mismatch(
        "delay of the codebooks", who, str(delays[0]), f"the teacher {config.teacher}", str(delays[1]),
        "name a student of this teacher",
    )  # fmt: skip
    if student.model.config.guidance_scales:
        raise ConfigError(f"{who} takes its guidance scale as an input; name a student of a fixed guidance")
    return {**sampler, "sampled_by": student.fingerprint}


def _describe(config: GenerateConfig, teacher: LoadedCodecLM, tokens: TokenSet) -> SyntheticDescription:
    return SyntheticDescription(
        teacher_fingerprint=teacher.fingerprint,
        data_fingerprint=read_artifact(config.data, verify=False).fingerprint,
        tokens=tokens.description,
        delays=teacher.model.config.codebook_delays,
        guidance=config.guidance,
        coefficients={str(name): value for name, value in config.guidance.build().coefficients.items()},
        temperature=config.temperature,
        top_k=min(config.top_k, tokens.description.codebook_size),
        encoding=DEFAULT_ENCODING,
        sampler=_sampler_of(config, teacher, tokens),
        prompt_max_frames=PROMPT_MAX_FRAMES,
        precision=config.precision,
        seed=config.seed,
        code_version=code_version(),
    )


def _key(config: GenerateConfig, description: SyntheticDescription) -> str:
    """Names what decides the content of the chunks."""
    tree: dict[str, Any] = config.model_dump(mode="json", exclude={"output", "pool", "teacher", "data", "sampled_by"})
    made = description.model_dump(mode="json", exclude={"code_version"})
    texts = ""
    if isinstance(config.texts, FileTexts) and config.texts.path.is_file():
        texts = hashlib.sha256(config.texts.path.read_bytes()).hexdigest()
    return hashlib.sha256(json.dumps([tree, made, texts], sort_keys=True).encode()).hexdigest()[:16]


def _figures(
    config: GenerateConfig, records: Sequence[ChunkRecord], rejects: Sequence[Reject], wall_s: float
) -> dict[str, Any]:
    numbers = sum_numbers(records)
    tokens = numbers.get("tokens", 0.0)
    return {
        "teacher_forced_rows": int(numbers.get("forced_rows", 0)),
        "sampled_asked": config.num_sampled,
        "sampled_kept": int(numbers.get("sampled_rows", 0)),
        "sampled_seconds": round(numbers.get("sampled_seconds", 0.0), 2),
        "dropped": dict(Counter(reject.code for reject in rejects).most_common()),
        "tokens": int(tokens),
        "cache_bytes_per_token": round(numbers.get("bytes", 0.0) / max(tokens, 1.0), 2),
        "wall_seconds": round(wall_s, 2),
        "tokens_per_second": round(tokens / wall_s, 1),
    }


def _write_result(
    config: GenerateConfig,
    result: Path,
    made: Generated,
    description: SyntheticDescription,
    figures: Mapping[str, Any],
) -> Artifact:
    """Put the chunks together and commit the artifact."""
    description = description.replace(precision=made.precision or description.precision)

    def fill(target: Path) -> None:
        made.chunks.collect(made.records, TARGETS, target / TARGETS)
        made.chunks.collect(made.records, SAMPLED, target / SAMPLED)
        (target / SYNTHETIC_FILE).write_text(description.model_dump_json(indent=2) + "\n", encoding="utf-8")
        write_rejects(target / REJECTS_FILE, made.rejects)

    info = describe_artifact(
        "synthetic",
        name_for(config.output),
        "1",
        inputs={
            "teacher": description.teacher_fingerprint,
            "data": description.data_fingerprint,
            **({"sampled_by": str(description.sampler["sampled_by"])} if config.sampled_by is not None else {}),
        },
        config=config.model_dump(mode="json"),
        metrics=figures,
    )
    return write_artifact(result, info, fill)
