"""Texts to a corpus on Ray Data: a black-box teacher says them, and what it says well is kept."""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retort.data.spoken import CORPUS, SPEECH_FILE, SpeechDescription
from retort.errors import DataError
from retort.inference.black_box.endpoint import EndpointTeacherConfig
from retort.inference.black_box.opening import facts_of
from retort.inference.black_box.teacher import TeacherFacts
from retort.orchestration.after_finish import after_finish
from retort.orchestration.api_key import api_key_of
from retort.orchestration.chunks import write_rejects
from retort.orchestration.generate.chunked import REJECTS_FILE, Generated, Work, generate_chunks, summary
from retort.orchestration.generate.speech_plan import PlannedLine, plan_lines, write_plan
from retort.orchestration.generate.speech_worker import SpeechWorker
from retort.orchestration.outputs import absolute_paths, job_output, run_once
from retort.orchestration.progress import Progress
from retort.run_config import GenerateSpeechConfig
from retort.store.artifact import Artifact, code_version, describe_artifact, name_for, write_artifact
from retort.store.place import drop
from retort.store.results import RESULT


def run_generate_speech(config: GenerateSpeechConfig, progress: Progress) -> dict[str, Any]:
    """Generate speech: ``result/corpus/`` gets the recordings with their texts, each id exactly once.

    A run that was cut short goes on with the chunks that are not done; a finished one returns at once. What a teacher
    in this process says of a line depends on the line and the seed, not on the chunk or the pool.

    Raises:
        ConfigError: the teacher is not as the run file says, or a service refuses the key.
        DataError: there is nothing to say, or no recording is left.
        MissingRequirementError: the teacher is not installed.
        StorageError: a service does not answer.
    """
    artifact, _ = run_once(config, progress, lambda: _generate(config, progress), after_finish(config))
    return summary(artifact)


def _generate(config: GenerateSpeechConfig, progress: Progress) -> Artifact:
    begin = time.monotonic()
    facts = facts_of(config.teacher)
    if isinstance(config.teacher, EndpointTeacherConfig):
        api_key_of(config.teacher)  # a missing key is told before anything starts
    with job_output(config) as output:
        lines, rejects = plan_lines(config.texts, facts.voices, config.seed, config.held_out_voices)
        description = _describe(config, facts)
        arguments = {
            "tree": absolute_paths(config).model_dump(mode="json"),
            "description": description.model_dump_json(),
        }

        def plan_in(work: Path) -> Work:
            write_plan(work / "plan.json", lines)
            num_chunks = -(-len(lines) // config.chunk_size)
            return Work(num_chunks, SpeechWorker, {**arguments, "plan": work / "plan.json"}, rejects)

        made = generate_chunks(output, _key(config, facts, lines), plan_in, config.pool, progress)
        figures = _figures(lines, made, time.monotonic() - begin)
        if not figures["rows"]:
            raise DataError(
                f"none of {len(lines)} recordings is left ({figures['dropped']}); see {output / REJECTS_FILE}, then "
                "mend the teacher or loosen filters"
            )
        artifact = _write_result(config, output / RESULT, made, description, figures)
        drop(made.folder)
    return artifact


def _describe(config: GenerateSpeechConfig, facts: TeacherFacts) -> SpeechDescription:
    recogniser = config.filters.recogniser
    return SpeechDescription(
        teacher=facts.name,
        teacher_fingerprint=facts.fingerprint,
        licence=facts.licence,
        language=facts.language,
        voices=facts.voices,
        audio_format=config.audio_format,
        recogniser=None if recogniser is None else recogniser.kind,
        seed=config.seed,
        code_version=code_version(),
    )


def _key(config: GenerateSpeechConfig, facts: TeacherFacts, lines: list[PlannedLine]) -> str:
    """Names what decides the content of the chunks: how fast, or with which key, a teacher is asked does not.

    What the lines are, voices held out included, is told by the lines.
    """
    tree = config.model_dump(mode="json", exclude={"output", "pool", "teacher", "texts", "held_out_voices"})
    said = [(line.id, line.text, line.voice) for line in lines]
    return hashlib.sha256(json.dumps([tree, facts.fingerprint, facts.licence, said]).encode()).hexdigest()[:16]


def _figures(lines: list[PlannedLine], made: Generated, wall_s: float) -> dict[str, Any]:
    seconds = made.total("seconds")
    return {
        "asked": len(lines),
        "rows": int(made.total("rows")),
        "rows_by_split": {split: int(made.total(f"rows/{split}")) for split in ("train", "validation", "test")},
        "hours": round(seconds / 3600, 3),
        "dropped": dict(Counter(reject.code for reject in made.rejects).most_common()),
        "wall_seconds": round(wall_s, 2),
        "speech_seconds_per_second": round(seconds / wall_s, 1),
    }


def _write_result(
    config: GenerateSpeechConfig,
    result: Path,
    made: Generated,
    description: SpeechDescription,
    figures: Mapping[str, Any],
) -> Artifact:
    """Put the chunks together and commit the artifact."""

    def fill(target: Path) -> None:
        made.chunks.collect(made.records, CORPUS, target / CORPUS)
        (target / SPEECH_FILE).write_text(description.model_dump_json(indent=2) + "\n", encoding="utf-8")
        write_rejects(target / REJECTS_FILE, made.rejects)

    info = describe_artifact(
        "speech",
        name_for(config.output),
        "1",
        inputs={"teacher": description.teacher_fingerprint},
        config=config.model_dump(mode="json"),
        metrics=figures,
    )
    return write_artifact(result, info, fill)
