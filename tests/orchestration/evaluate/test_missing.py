"""One recording in twenty is missing: a failure in every table, a report that is written, and exit code 3."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import yaml

from retort import cli
from retort.config import load_tree, validate
from retort.errors import DataError
from retort.evaluation.judge import Judge, System, TestStrings
from retort.evaluation.lm_confidence import Sureness
from retort.evaluation.results import SystemInfo
from retort.orchestration.evaluate import job
from retort.orchestration.evaluate.job import run_evaluate
from retort.orchestration.evaluate.pieces import SOUNDS
from retort.orchestration.evaluate.tasks import Judged
from retort.orchestration.outputs import job_output
from retort.orchestration.progress import QuietProgress
from retort.run_config import EvaluateConfig
from tests.evaluation.judging import add_recordings, row, scorers, token_set

COUNT = 20


def evaluation(tmp_path: Path, **changes: object) -> EvaluateConfig:
    """A finished evaluation of recordings, of which one is not there; everything of the job but its actors."""
    data = token_set(tmp_path / "data", [row(f"u{i:02d}", "a", "test", torch.ones(2, 4).long()) for i in range(COUNT)])
    add_recordings(data, {f"u{i:02d}": 0.1 for i in range(COUNT) if i != 7})
    tree = load_tree(Path("jobs/configs/demo.yaml"))["jobs"][-1]
    systems = [{"name": "recordings", "kind": "recordings"}, {"name": "whole", "kind": "recordings"}]
    tree |= {"output": str(tmp_path / "out"), "data": str(data), "systems": systems, "comparisons": []}
    tree |= {"confidence_teacher": None, "num_strings": COUNT, **changes}
    config = validate(tree, EvaluateConfig, where="test")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    strings = TestStrings(data, split="test", count=COUNT)
    judge = Judge(strings, scorers(), max_frames=10, seed=0)
    items = [verdict.item for verdict in judge.judge(System("recordings", "recordings"), list(strings.rows))]
    others = [dataclasses.replace(items[0], system="whole", id=item.id) for item in items]
    with job_output(config) as output:
        (output / "pieces" / "audio").mkdir(parents=True)
        infos = [SystemInfo("recordings", "reference"), SystemInfo("whole", "reference")]
        found = job.Found(infos, Judged([*items, *others], {}, {}), Sureness({}), note=None)
        job._write(config, output, strings, found, sounds=[output / "pieces" / SOUNDS])
    return config


def test_the_report_is_written_and_the_exit_code_is_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluation(tmp_path)
    result = tmp_path / "out" / "result"
    for _ in range(2):
        assert cli.run(["evaluate", str(tmp_path / "run.yaml")]) == 3
        told = capsys.readouterr().err
        assert "(recordings 1 of 20), more than max_missing_fraction 0" in told
        assert f"{result}/report.html" in told
    summary = json.loads((result / "summary.json").read_text())
    broken, whole = summary["systems"]
    assert broken["failures"] == {"missing": 1}
    assert (broken["failure_rate"], broken["wer_corpus"]) == (1 / COUNT, 1 / COUNT)
    assert whole["failure_rate"] == 0.0
    assert "delivered no audio for 1 of its utterances" in (result / "report.html").read_text()
    rows = [json.loads(line) for line in (result / "results.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * COUNT


@pytest.mark.parametrize(("allowed", "passes"), [(0.049, False), (0.05, True)])
def test_a_stated_share_may_be_missing(tmp_path: Path, allowed: float, passes: bool) -> None:
    config = evaluation(tmp_path, max_missing_fraction=allowed)
    if passes:
        assert run_evaluate(config, QuietProgress())["missing"] == {"recordings": [1, COUNT]}
    else:
        with pytest.raises(DataError, match="1 of 20"):
            run_evaluate(config, QuietProgress())
