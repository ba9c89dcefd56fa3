"""Slices and the long text through the job: who is asked, what is kept, and where it is told."""

import json
from pathlib import Path
from typing import Any

import pytest

from retort import cli
from retort.config import validate
from retort.data.tokens import TokenSet
from retort.errors import DataError
from retort.evaluation.judge import TestStrings
from retort.evaluation.lm_confidence import Sureness
from retort.evaluation.report import write_report
from retort.evaluation.results import SystemInfo, read_results
from retort.orchestration.evaluate import job
from retort.orchestration.evaluate.kept import drop_what_changed
from retort.orchestration.evaluate.pieces import SOUNDS
from retort.orchestration.evaluate.tasks import LongTask, PlainTask, read_judged, tasks_of
from retort.orchestration.evaluate.worker import EvaluationWorker
from retort.orchestration.outputs import job_output
from retort.run_config import EvaluateConfig
from tests.evaluation.asked import SPHINX, TEXTS, world
from tests.inference.test_endpoint import Service as Server
from tests.serving.running import running

LONG = {"minutes": 0.1, "part_characters": 24}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return world(tmp_path_factory.mktemp("hard"), end=".")


def evaluation(output: Path, folders: tuple[Path, Path], url: str = "http://x", **changes: Any) -> EvaluateConfig:
    endpoint = {"base_url": f"{url}/v1", "model": "tiny"}
    tree = {
        "output": str(output), "data": str(folders[0]), "num_strings": len(TEXTS), "speed": None,
        "systems": [
            {"name": "recordings", "kind": "resynthesis"},
            {"name": "m", "kind": "model", "role": "teacher", "model": str(folders[1])},
            {"name": "e", "kind": "endpoint", "role": "student", "endpoint": endpoint},
        ],
        "recogniser": SPHINX, "num_resamples": 100, "batch_size": 5, "pool": {"size": 1},
        "slices": ["no_final_punctuation", "cut_prompt"], "long_text": LONG, **changes,
    }  # fmt: skip
    return validate(tree, EvaluateConfig, where="test")


def asked(config: EvaluateConfig, strings: TestStrings) -> set[tuple[str, str | None]]:
    """Which systems, and how."""
    return {
        (task.system, "long_text" if isinstance(task, LongTask) else task.slice_name)
        for task in tasks_of(config, strings)
    }


def test_models_are_asked_in_every_way_services_without_prompts_and_recordings_plainly(
    tmp_path: Path, folders: tuple[Path, Path]
) -> None:
    config, strings = evaluation(tmp_path, folders), TestStrings(folders[0], split="test", count=len(TEXTS))
    assert asked(config, strings) == {
        ("recordings", None), ("m", None), ("e", None), ("m", "no_final_punctuation"), ("e", "no_final_punctuation"),
        ("m", "cut_prompt"), ("m", "long_text"), ("e", "long_text"),
    }  # fmt: skip
    plain = config.replace(slices=(), long_text=None)
    assert asked(plain, strings) == {("recordings", None), ("m", None), ("e", None)}
    among = [task for task in tasks_of(config, strings) if isinstance(task, PlainTask)]
    of_m = [i for task in among if (task.system, task.slice_name) == ("m", "cut_prompt") for i in task.ids]
    assert sorted(of_m) == sorted(strings.rows), "in pieces, each once"
    places = [task.piece(tmp_path).lines for task in tasks_of(config, strings)]
    assert len(set(places)) == len(places)
    longer = config.replace(long_text=config.long_text and config.long_text.replace(minutes=0.2))
    assert {t.piece(tmp_path).lines for t in tasks_of(longer, strings)} - set(places), "another text, another piece"


def test_a_slice_that_has_no_strings_is_told_before_anything_starts(tmp_path: Path) -> None:
    folders = world(tmp_path / "world")
    strings = TestStrings(folders[0], split="test", count=len(TEXTS))
    with pytest.raises(DataError, match="no_final_punctuation has nothing of the 8 strings"):
        tasks_of(evaluation(tmp_path, folders), strings)
    assert TokenSet.open(folders[0]).description.num_codebooks == 2


def test_everything_is_told_in_the_summary_in_files_of_its_own_and_in_the_report(
    tmp_path: Path, folders: tuple[Path, Path]
) -> None:
    """All of the job but its actors."""
    strings = TestStrings(folders[0], split="test", count=len(TEXTS))
    with running(Server().api) as url:
        config = evaluation(tmp_path / "out", folders, url)
        worker = EvaluationWorker(config.model_dump(mode="json"), 1)
        with job_output(config) as output:
            pieces = output / "pieces"
            (pieces / "audio").mkdir(parents=True)
            tasks = tasks_of(config, strings)
            for task in tasks:
                worker.judge(task, str(pieces), [])
            judged = read_judged(config, pieces, tasks)
            infos = [SystemInfo(system.name, system.role) for system in config.systems]
            artifact = job._write(
                config, output, strings, job.Found(infos, judged, Sureness({}), None), sounds=[pieces / SOUNDS]
            )
    summary = json.loads((artifact.path / "summary.json").read_text())
    told = [(row["slice"], row["system"], row["utterances"]) for row in summary["slices"]]
    assert told == [("no_final_punctuation", "m", 8), ("no_final_punctuation", "e", 8), ("cut_prompt", "m", 8)]
    assert all(row["differences"] for row in summary["slices"])
    for found in summary["long_text"]:
        assert found["parts"] == sum(minute["parts"] for minute in found["minutes"]) > 1
    assert [found["system"] for found in summary["long_text"]] == ["m", "e"]
    assert len(read_results(artifact.path / "cut_prompt.jsonl")) == len(TEXTS)
    assert {row.system for row in read_results(artifact.path / "long_text.jsonl")} == {"m", "e"}
    page = (artifact.path / "report.html").read_text()
    assert "Asked for in a harder way" in page
    assert "A long text, by the minute" in page
    again = write_report(tmp_path / "again", {**summary, "slices": [], "long_text": []}, judged.items).read_text()
    assert 'id="slices"' not in again
    assert 'id="long-text"' not in again
    file = tmp_path / "report.yaml"
    file.write_text(f"job: report\nevaluation: {tmp_path}/out\noutput: {tmp_path}/told\n")
    assert cli.run(["report", str(file)]) == 0
    assert "A long text, by the minute" in (tmp_path / "told" / "report.html").read_text()


def test_pieces_of_slices_are_dropped_with_those_of_their_system(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    config, strings = evaluation(tmp_path / "out", folders), TestStrings(folders[0], split="test", count=len(TEXTS))
    drop_what_changed(tmp_path / "pieces", config)
    files = [task.piece(tmp_path / "pieces").lines for task in tasks_of(config, strings)]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    drop_what_changed(tmp_path / "pieces", config.replace(slices=(), long_text=None))
    assert all(file.is_file() for file in files), "none of it decides what a piece holds"
    other = config.systems[1].replace(name="n")
    drop_what_changed(tmp_path / "pieces", config.replace(systems=(config.systems[0], other, config.systems[2])))
    assert {file.name.partition("-")[0] for file in files if file.is_file()} == {"recordings", "e"}
