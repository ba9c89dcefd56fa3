"""WER-guided layer pruning on Ray Data: every layer left out in turn, every string said without it, nothing dropped."""

import copy
import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retort.data.tokens import TokenSet, TokenSetDescription
from retort.errors import ConfigError
from retort.evaluation.asr import open_recogniser
from retort.evaluation.judge import TestStrings
from retort.inference.synthesizer import save_speaking_model
from retort.methods.codec_lm_data import check_fits_tokens
from retort.methods.layer_pruning import WHOLE, kept_by_count, removal_order, unmeasured_choices
from retort.methods.layer_table import Measured, Selection, describe
from retort.models.codec_lm import CodecLM, count_parameters
from retort.models.codec_lm_lineage import CodecLMLineage
from retort.models.initialise import bypass
from retort.models.layer_choice import LAYERS_FILE, Criterion, LayerChoice
from retort.models.outside.beside import carry_outside
from retort.models.weights import LoadedCodecLM, fingerprint_of, load_codec_lm
from retort.orchestration.after_finish import after_finish
from retort.orchestration.chunks import ChunkFolder, open_work_folder, remove_work, run_chunks
from retort.orchestration.demand import Demand
from retort.orchestration.outputs import absolute_paths, job_output, run_once, with_results
from retort.orchestration.progress import Progress
from retort.orchestration.prune.worker import INFLUENCE, SCORES, PruneWorker, Sweep
from retort.orchestration.workplace import workplace
from retort.run_config import PruneConfig
from retort.store.artifact import Artifact, describe_artifact, read_artifact, write_artifact
from retort.store.commit import write_json_atomic
from retort.store.place import local_of
from retort.store.results import RESULT

IMPORTANCE_FILE = "importance.json"


@dataclass(frozen=True)
class _Removal:
    """The layers in the order in which they go, and what was measured on the way, the first sweep first."""

    order: tuple[int, ...]
    sweeps: tuple[Measured, ...]


def run_prune(config: PruneConfig, progress: Progress) -> dict[str, Any]:
    """Rank the teacher's layers, and write the pruned, untrained model as a model folder that can speak.

    ``result/`` holds the model, ``importance.json`` (every layer by every criterion, with intervals and the ranking's
    stability) and ``layers.json`` (what stays, by criterion and number). A run that was cut short goes on with the
    strings that were not said; a finished one returns at once.

    Raises:
        ConfigError: there are no such layers to keep, or the guidance is not valid for the teacher.
        DataError: teacher and token set do not belong together, or the split has too few strings.
    """
    artifact, _ = run_once(config, progress, lambda: _prune(config, progress), after_finish(config))
    return _summary(artifact)


def _prune(config: PruneConfig, progress: Progress) -> Artifact:
    began = time.monotonic()
    with job_output(config) as output:
        resolved = with_results(config)
        tokens = TokenSet.open(resolved.data).description
        teacher = _fitting_teacher(resolved, tokens)
        strings = TestStrings(resolved.data, split=config.split, count=config.num_strings)
        work = open_work_folder(output, _key(resolved, teacher.fingerprint))
        with workplace(output, Demand.of_pool(config.pool), progress) as place:
            num_layers = teacher.model.config.num_layers
            removal = place.run(lambda heard: _remove(absolute_paths(config), num_layers, strings, work, heard))
        choice = _choose(resolved, teacher, removal)
        kept = choice.layers()
        progress.log(f"prune: keeps the layers {', '.join(map(str, kept))} of {choice.num_layers}")
        pruned = copy.deepcopy(bypass(teacher.model, kept))
        selection = Selection(config.method, config.split, config.num_resamples, config.seed)
        table = describe(selection, choice, removal.sweeps)
        metrics = _figures(table, teacher.model, pruned, time.monotonic() - began)
        lineage = teacher.lineage.replace(
            method="layer_pruning",
            teacher_fingerprint=teacher.fingerprint,
            kept_layers=kept,
            selected_by=choice.recogniser if choice.criterion == "wer" else None,
        )
        artifact = _write_result(config, resolved, (pruned, lineage), (choice, table), metrics)
        remove_work(work)
    return artifact


def _fitting_teacher(config: PruneConfig, tokens: TokenSetDescription) -> LoadedCodecLM:
    teacher = load_codec_lm(config.teacher)
    if config.decoding is not None:
        teacher.lineage.check_guidance(config.decoding.guidance.build())
    check_fits_tokens(teacher, tokens, who=f"the teacher {config.teacher}", data=config.data)
    if teacher.model.config.guidance_scales:
        raise ConfigError(f"{config.teacher} takes its guidance scale as an input; prune the teacher that it came from")
    config.method.num_kept(teacher.model.config.num_layers)
    return teacher


def _key(config: PruneConfig, teacher_fingerprint: str) -> str:
    """Names what decides the content of the chunks."""
    told = config.replace(output=Path(), teacher=Path(), data=Path(), num_resamples=100, pool={}).model_dump_json()
    data = read_artifact(config.data, verify=False).fingerprint
    return hashlib.sha256(f"{told} {teacher_fingerprint} {data}".encode()).hexdigest()[:16]


def _remove(config: PruneConfig, num_layers: int, strings: TestStrings, work: Path, progress: Progress) -> _Removal:
    """Measure, remove, and measure what is left again, until as many layers are gone as should go."""
    method = config.method
    forced, num_removed = method.forced(num_layers), num_layers - method.num_kept(num_layers)
    per_round = method.removed_per_round(num_removed)
    order: list[int] = []
    sweeps: list[Measured] = []
    while not sweeps or len(order) < num_removed:
        present = tuple(layer for layer in range(num_layers) if layer not in order)
        # The first sweep is the table of all layers; later ones ask only which goes next.
        asked = present if not sweeps else tuple(layer for layer in present if layer not in forced)
        sweep = Sweep(present=present, left_out=(WHOLE, *asked), pieces=_pieces(strings, config.batch_size))
        sweeps.append(_measure(config, sweep, work / ("chunks" if not sweeps else f"chunks-{len(sweeps)}"), progress))
        if method.criterion not in sweeps[-1].scores:
            break
        ranked = removal_order(sweeps[-1].scores[method.criterion], forced)
        if method.removal == "one_shot":
            order = ranked
            break
        order += ranked[: min(per_round, num_removed - len(order))]
    return _Removal(tuple(order), tuple(sweeps))


def _pieces(strings: TestStrings, size: int) -> tuple[tuple[str, ...], ...]:
    """Strings of similar length share a batch."""
    ids = sorted(strings.rows, key=lambda name: (strings.rows[name].num_frames, name))
    return tuple(tuple(ids[begin : begin + size]) for begin in range(0, len(ids), size))


def _measure(config: PruneConfig, sweep: Sweep, folder: Path, progress: Progress) -> Measured:
    chunks = ChunkFolder(folder, sweep.num_chunks)
    arguments = {"tree": config.model_dump(mode="json"), "sweep": sweep.model_dump_json()}
    note = f"strings said without one of {len(sweep.present)} layers"
    run_chunks(chunks, PruneWorker, arguments, config.pool, progress, note)
    return Measured.gather(sweep.present, chunks.table_rows(SCORES), chunks.table_rows(INFLUENCE))


def _choose(config: PruneConfig, teacher: LoadedCodecLM, removal: _Removal) -> LayerChoice:
    """What each criterion keeps; the one that was asked for by its own removal, the others in one shot."""
    method, num_layers = config.method, teacher.model.config.num_layers
    forced = method.forced(num_layers)
    kept: dict[Criterion, dict[int, tuple[int, ...]]] = {
        criterion: kept_by_count(removal_order(scores, forced), num_layers)
        for criterion, scores in removal.sweeps[0].scores.items()
    }
    kept |= unmeasured_choices(num_layers, forced, config.seed)
    if removal.order:
        kept[method.criterion] = kept_by_count(removal.order, num_layers)
    return LayerChoice(
        teacher_fingerprint=teacher.fingerprint,
        num_layers=num_layers,
        criterion=method.criterion,
        num_kept=method.num_kept(num_layers),
        kept=kept,
        recogniser=open_recogniser(config.recogniser).name,
    )


def _figures(table: Mapping[str, Any], teacher: CodecLM, pruned: CodecLM, seconds: float) -> dict[str, Any]:
    return {
        "kept": table["kept"],
        "wer_of_teacher": table["teacher"]["wer"],
        "stability": table["stability"],
        "parameters": count_parameters(pruned),
        "parameters_of_teacher": count_parameters(teacher),
        "seconds": round(seconds, 1),
    }


def _write_result(
    config: PruneConfig,
    resolved: PruneConfig,
    model: tuple[CodecLM, CodecLMLineage],
    found: tuple[LayerChoice, Mapping[str, Any]],
    metrics: Mapping[str, Any],
) -> Artifact:
    (pruned, lineage), (choice, table) = model, found

    def fill(folder: Path) -> None:
        save_speaking_model(folder, pruned, lineage, resolved.data)
        carry_outside(resolved.teacher, folder)
        write_json_atomic(folder / LAYERS_FILE, choice.model_dump(mode="json"))
        write_json_atomic(folder / IMPORTANCE_FILE, table)

    info = describe_artifact(
        "model",
        "prune",
        fingerprint_of(pruned),
        inputs={
            "teacher": choice.teacher_fingerprint,
            "data": read_artifact(resolved.data, verify=False).fingerprint,
        },
        config=config.model_dump(mode="json"),
        metrics=metrics,
    )
    return write_artifact(local_of(config.output.absolute()) / RESULT, info, fill)


def _summary(artifact: Artifact) -> dict[str, Any]:
    return {**artifact.info.metrics, "fingerprint": artifact.info.version, "result": str(artifact.path)}
