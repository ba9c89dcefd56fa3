"""Toys of an evaluation whose fields are changed one by one: what is judged, and what is said of it."""

import dataclasses
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from retort.config import Config, validate
from retort.data.tokens import TokenRow, write_shard
from retort.errors import DataError
from retort.evaluation.judge import TestStrings
from retort.evaluation.metrics import METRICS
from retort.orchestration.evaluate import job
from retort.orchestration.evaluate.missing import missing_of, refuse_missing
from retort.orchestration.evaluate.system_facts import describe_system, note_of
from retort.orchestration.evaluate.tasks import read_judged, tasks_of
from retort.orchestration.evaluate.temperatures import best_tasks, choosing_tasks, chosen
from retort.orchestration.evaluate.worker import EvaluationWorker
from retort.orchestration.progress import QuietProgress
from retort.run_config import EvaluateConfig
from retort.store.artifact import describe_artifact, write_artifact

TIMED = {key for metric in METRICS.values() if metric.is_of_speed for key in (metric.field, f"{metric.name}_ci95")}
QUIET = QuietProgress()


@dataclass(frozen=True)
class World:
    """Two token sets of one codec, two codec LMs of one size, a denoiser, judges, and finished evaluations."""

    root: Path

    def __truediv__(self, name: str) -> str:
        return str(self.root / name)


def write_strings(folder: Path, data: Path, seed: int) -> None:
    """A token set as a result, with two test strings and four others of each of five speakers."""
    draw = torch.Generator().manual_seed(seed)
    parts = (("train", 9), ("train", 7), ("test", 6), ("validation", 5))
    rows = [
        TokenRow(f"t{i}{n}", "one two", (4, 5), f"v{i // 2}", split, torch.randint(8, (2, T), generator=draw), T / 40)
        for i in range(10)
        for n, (split, T) in enumerate(parts)
    ]

    def fill(target: Path) -> None:
        shutil.copytree(data, target, dirs_exist_ok=True)
        write_shard(target / "part-1.parquet", rows)

    write_artifact(folder, describe_artifact("tokens", folder.name, "1", inputs={}, config={}), fill)


def model(name: str, path: str, decoding: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"name": name, "kind": "model", "role": "teacher", "model": path, "decoding": decoding}


def denoised(name: str, path: str, steps: int) -> dict[str, Any]:
    return model(name, path, {"kind": "mel_diffusion", "solver": {"kind": "ddim", "num_steps": steps}})


def evaluation(world: World, **changes: Any) -> EvaluateConfig:
    """Of few strings, four models, and recordings of which none is there."""
    systems = [
        {"name": "recordings", "kind": "recordings"},
        model("lm", world / "model"),
        model("guided", world / "model", {"kind": "codec_lm", "guidance": {"kind": "two_term", "scale": 3.0}}),
        denoised("slow", world / "denoiser", 4),
        denoised("fast", world / "denoiser", 2),
    ]
    tree = {
        "output": world / "out", "data": world / "strings", "num_strings": 9, "systems": systems,
        "comparisons": [["lm", "guided"]], "confidence_teacher": "lm", "mel_reference": "slow", "max_frames": 8,
        "recogniser": {"kind": "pocketsphinx", "words": ["one", "two"]}, "batch_size": 4, "num_resamples": 100,
        "speed": None, "max_missing_fraction": 1.0,
    }  # fmt: skip
    return validate({**tree, **changes}, EvaluateConfig, where="test")


def evaluated(config: EvaluateConfig, folder: Path) -> dict[str, Any]:
    """What an evaluation says: of timed figures, which there are."""
    strings = TestStrings(config.data, split=config.split, count=config.num_strings)
    infos = [describe_system(system, config, strings) for system in config.systems]
    worker = EvaluationWorker(config.model_dump(mode="json"), 1)
    tasks, choosing = tasks_of(config, strings), choosing_tasks(config, infos)
    for task in choosing:
        worker.judge(task, str(folder), [])
    choice = chosen(config, infos, folder, choosing)
    tasks += best_tasks(choice, infos, tasks)
    for task in tasks:
        worker.judge(task, str(folder), job.kept_of(config, tasks))
    judged = read_judged(config, folder, tasks)
    leaks = job._leaks(config, job._leaking(config), QuietProgress())
    measured, memory = job._measure(config, QuietProgress())
    infos = [job._with_speed(info, measured, memory) for info in infos]
    found = job.Found(infos, judged, worker.confidence(), note_of(config, infos), choice, leaks)
    summary = job.summary_of(config, strings, found)
    tree = summary.tree()
    systems = [
        {name: system[name] is not None if name in TIMED else system[name] for name in system}
        for system in tree["systems"]
    ]
    info = describe_artifact("evaluation", "e", "1", inputs={}, config={}, metrics={"missing": missing_of(tree)})
    try:
        refuse_missing(write_artifact(folder / "result", info, lambda _: None), config)
        refusal = None
    except DataError as error:
        refusal = str(error).replace(str(folder), "")
    told = {
        name: tree.get(name)
        for name in (
            "comparisons",
            "note",
            "confidence",
            "findings",
            "slices",
            "long_text",
            "voices",
            "leakage",
            "temperatures",
        )
    }
    rows = [dataclasses.asdict(item) for item in summary.items]
    return {**told, "systems": systems, "items": rows, "tasks": tasks, "refusal": refusal}


def of_systems(world: World, *systems: dict[str, Any], **changes: Any) -> EvaluateConfig:
    """Of these alone."""
    few = {"systems": systems, "confidence_teacher": None, "mel_reference": None, "comparisons": [], "num_strings": 3}
    return evaluation(world, **{**few, **changes})


@dataclass(frozen=True)
class Case:
    """Other values of fields of ``plain``, and what comes of them in an empty folder."""

    plain: Config
    values: Mapping[str, Any]
    result: Callable[[World, Any, Path], Any]
