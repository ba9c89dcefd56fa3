"""Judged models for the tests of promotion."""

import dataclasses
from pathlib import Path

from retort.evaluation.items import Expected, ItemResult, failed_item, write_results
from retort.evaluation.results import SystemInfo, summarise, write_summary
from retort.evaluation.temperatures import Choice, TemperaturesConfig, at_best
from retort.orchestration.evaluate.kept import model_input
from retort.store.artifact import describe_artifact, read_artifact, write_artifact

NUM_UTTERANCES = 60


def _row(system: str, number: int, *, is_wrong: bool) -> ItemResult:
    return dataclasses.replace(
        failed_item(system, Expected(f"u{number:02d}", "one", "s")),
        hypothesis="two" if is_wrong else "one",
        substitutions=int(is_wrong),
        deletions=0,
        wer=float(is_wrong),
        failure=is_wrong,
        failure_reasons=("wer",) if is_wrong else (),
        recogniser="asr",
        error=None,
    )


def write_evaluation(
    folder: Path, models: dict[str, Path], *, wrong: int, best: tuple[dict[str, float], int] = ({}, 0)
) -> Path:
    """An evaluation in which each system says ``wrong`` of the utterances wrongly; returns its output folder.

    ``best`` has the temperatures that were chosen, and how many each system says wrongly at its own.
    """
    temperatures, still_wrong = best
    said = {**dict.fromkeys(models, wrong), **{at_best(name): still_wrong for name in temperatures}}
    rows = [_row(name, n, is_wrong=n < wrong) for name, wrong in said.items() for n in range(NUM_UTTERANCES)]
    summary = dataclasses.replace(
        summarise(rows, [SystemInfo(name, "student", facts={"parameters": 1000}) for name in said], note="mini-scale"),
        temperatures=Choice(TemperaturesConfig(), temperatures, ()).tree() if temperatures else None,
    )
    systems = [
        {"name": name, "model": str(path), "decoding": {"kind": "codec_lm", "sampler": {"temperature": 0.7}}}
        for name, path in models.items()
    ]

    def fill(target: Path) -> None:
        write_results(target / "results.jsonl", summary.items)
        write_summary(target / "summary.json", summary)

    judged = {model_input(name): read_artifact(path).fingerprint for name, path in models.items() if path.is_dir()}
    info = describe_artifact("evaluation", "e", "1", inputs=judged, config={"systems": systems})
    write_artifact(folder / "result", info, fill)
    return folder
