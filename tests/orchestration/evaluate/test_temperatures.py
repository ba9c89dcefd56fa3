"""Systems at other temperatures: chosen on other strings, judged beside their own, exactly once."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from retort.evaluation.judge import TestStrings
from retort.evaluation.results import Pair
from retort.evaluation.temperatures import Choice, TemperaturesConfig
from retort.orchestration.cluster import ray_session
from retort.orchestration.evaluate.job import run_evaluate
from retort.orchestration.evaluate.system_facts import describe_system
from retort.orchestration.evaluate.tasks import tasks_of
from retort.orchestration.evaluate.temperatures import (
    best_tasks,
    choosing_tasks,
    chosen,
    with_best_infos,
    with_best_items,
    with_best_pairs,
)
from retort.orchestration.evaluate.worker import EvaluationWorker
from retort.orchestration.progress import QuietProgress
from retort.run_config import EvaluateConfig
from tests.orchestration.evaluate.test_job import cheap, model
from tests.orchestration.tiny_runs import write_teacher, write_token_set

VALUES = [0.25, 1.0]
CHOOSING = {"values": VALUES, "split": "train", "num_strings": 3}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("temperatures")
    data = write_token_set(root / "data")
    return data, write_teacher(root / "teacher", data)


def asked(output: Path, folders: tuple[Path, Path], **changes: Any) -> EvaluateConfig:
    data, teacher = folders
    guided = {"kind": "codec_lm", "guidance": {"kind": "two_term", "scale": 1.5}, "sampler": {"temperature": 0.25}}
    systems = [
        {"name": "r", "kind": "resynthesis"},
        model(teacher),
        model(teacher, name="guided", role="student", decoding=guided),
    ]
    tree = {"temperatures": CHOOSING, "comparisons": [["r", "m"], ["m", "guided"]], "max_frames": 8, "num_samples": 1}
    recogniser = {"recognisers": [], "recogniser": {"kind": "pocketsphinx", "words": ["one", "two"]}}
    return cheap(output, data, systems, **{**tree, **recogniser, "naturalness": [], "prosody": None, **changes})


def choice(best: dict[str, float]) -> Choice:
    return Choice(TemperaturesConfig(values=tuple(VALUES), split="train", num_strings=3), best, ())


def test_where_no_system_has_a_temperature_no_strings_are_needed_to_choose_by(
    tmp_path: Path, folders: tuple[Path, Path]
) -> None:
    """The data have no validation rows at all."""
    data, _ = folders
    systems = [{"name": "r", "kind": "resynthesis"}]
    config = cheap(tmp_path, data, systems, temperatures={**CHOOSING, "split": "validation"})
    strings = TestStrings(data, split="test", count=3)
    infos = [describe_system(system, config, strings) for system in config.systems]
    assert choosing_tasks(config, infos) == []
    assert chosen(config, infos, tmp_path, []) is None


def test_every_model_says_the_choosing_strings_at_each_temperature_and_nobody_else_does(
    tmp_path: Path, folders: tuple[Path, Path]
) -> None:
    config = asked(tmp_path / "out", folders)
    strings = TestStrings(config.data, split="test", count=3)
    infos = [describe_system(system, config, strings) for system in config.systems]
    assert [info.facts.get("temperature") for info in infos] == [None, 1.0, 0.25]
    tasks = choosing_tasks(config, infos)
    assert {(task.system, task.temperature) for task in tasks} == {(n, t) for n in ("m", "guided") for t in VALUES}
    said = {name for task in tasks for name in task.ids}
    assert len(said) == 3
    assert not said & set(strings.rows), "no string that chooses judges"
    assert choosing_tasks(config.replace(temperatures=None), infos) == []
    other = choosing_tasks(config.replace(temperatures={**CHOOSING, "num_strings": 2}), infos)
    assert not {task.piece(tmp_path).lines for task in tasks} & {task.piece(tmp_path).lines for task in other}


def test_who_is_judged_at_the_best_is_judged_once_and_speaks_as_if_the_file_said_so(
    tmp_path: Path, folders: tuple[Path, Path]
) -> None:
    config = asked(tmp_path / "out", folders)
    strings = TestStrings(config.data, split="test", count=3)
    infos = [describe_system(system, config, strings) for system in config.systems]
    plain, both = tasks_of(config, strings), choice({"m": 0.25, "guided": 0.25})
    best = best_tasks(both, infos, plain)
    assert {task.system for task in best} == {"m"}, "the best of the other is its own, which is judged already"
    assert sorted(name for task in best for name in task.ids) == sorted(strings.rows)
    assert [info.name for info in with_best_infos(both, infos)] == ["r", "m", "guided", "m@best", "guided@best"]
    chosen = with_best_infos(dataclasses.replace(both, recogniser="ears"), infos)
    assert [dict(info.listeners) for info in chosen] == [{}] * 3 + [{"ears": "chose the temperature"}] * 2
    filtered = [dataclasses.replace(info, listeners={"ears": "filtered the data"}) for info in infos]
    twice = with_best_infos(dataclasses.replace(both, recogniser="ears"), filtered)[-1]
    assert twice.listeners == {"ears": "filtered the data and chose the temperature"}
    at_best = with_best_infos(both, infos)[3]
    assert (at_best.role, at_best.facts["temperature"], at_best.facts["parameters"]) == (
        "teacher", 0.25, infos[1].facts["parameters"],
    )  # fmt: skip
    worker = EvaluationWorker(config.model_dump(mode="json"), 1)
    for task in [*plain, *best]:
        worker.judge(task, str(tmp_path), ["u024"])
    items = [item for task in [*plain, *best] for item in task.piece(tmp_path).read(None)]
    told = with_best_items(both, items)
    of = {
        name: {i.id: i.audio_sha256 for i in told if i.system == name} for name in ("guided", "guided@best", "m@best")
    }
    assert of["guided@best"] == of["guided"]
    warm = model(folders[1], decoding={"kind": "codec_lm", "sampler": {"temperature": 0.25}})
    alone = config.replace(systems=[warm], comparisons=[], temperatures=None)
    other = EvaluationWorker(alone.model_dump(mode="json"), 1)
    for task in tasks_of(alone, strings):
        other.judge(task, str(tmp_path / "alone"), [])
    said = [item for task in tasks_of(alone, strings) for item in task.piece(tmp_path / "alone").read(None)]
    assert of["m@best"] == {item.id: item.audio_sha256 for item in said}
    assert set(of["m@best"].values()) != {item.audio_sha256 for item in items if item.system == "m"}


def test_pairs_are_compared_again_at_each_ones_best() -> None:
    pairs = [Pair("r", "m", margins={"wer": 0.02}), Pair("r", "s")]
    assert with_best_pairs(choice({"m": 0.25}), pairs) == [
        *pairs, Pair("r", "m@best", margins={"wer": 0.02}, told_as="at_best"),
    ]  # fmt: skip
    assert with_best_pairs(None, pairs) == pairs


@pytest.mark.ray
@pytest.mark.slow
def test_an_evaluation_with_temperatures_is_judged_once_and_goes_on(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    out = tmp_path / "out"
    with ray_session(num_cpus=1):
        done = run_evaluate(asked(out, folders, temperatures=None), QuietProgress())
        assert list(done["systems"]) == ["r", "m", "guided"]
        plain = {path: path.stat().st_mtime_ns for path in (out / "pieces").glob("*.jsonl")}
        done = run_evaluate(asked(out, folders), QuietProgress())
        assert list(done["systems"]) == ["r", "m", "guided", "m@best", "guided@best"]
        pieces = {path: path.stat().st_mtime_ns for path in (out / "pieces").rglob("*.jsonl")}
        assert pieces.items() >= plain.items(), "what was judged is not judged again"
        gone = next(path for path in pieces if "temperatures" in path.parts)
        gone.unlink()  # as if it had been cut short
        run_evaluate(asked(out, folders, num_resamples=200), QuietProgress())
        run_evaluate(asked(tmp_path / "whole", folders, num_resamples=200), QuietProgress())
    after = {path: path.stat().st_mtime_ns for path in (out / "pieces").rglob("*.jsonl")}
    assert {path for path in pieces if after[path] != pieces[path]} == {gone}
    one, other = (json.loads((o / "result" / "summary.json").read_text()) for o in (out, tmp_path / "whole"))
    assert one["temperatures"]["rows"] == other["temperatures"]["rows"]
    assert one["systems"] == other["systems"]
    assert {(row["a"], row["b"]) for row in one["comparisons"] if row["told_as"] == "at_best"} == {
        ("r", "m@best"), ("m@best", "guided@best"),
    }  # fmt: skip
    heard = {path.name for path in (out / "result" / "audio").iterdir()}
    assert heard == {path.name for path in (tmp_path / "whole" / "result" / "audio").iterdir()}
    assert any("At each one's best temperature" in finding["text"] for finding in one["findings"])
