"""What lies on the disk is told without a cluster: each state, the figures, and what looks wrong."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retort.cli import run
from retort.errors import DataError
from retort.orchestration.alerts import STALLED_REPORTS, alerts_of_metrics, alerts_of_training
from retort.orchestration.failures import write_failure
from retort.orchestration.outputs_seen import look_at, outputs_in, table
from retort.store.artifact import describe_artifact, write_artifact
from retort.store.lock import OutputLock


def output(folder: Path, *, steps: int = 100, records: int = 3) -> Path:
    folder.mkdir(parents=True)
    (folder / "run.yaml").write_text(f"job: distill\noutput: {folder}\ntraining:\n  steps: {steps}\n")
    lines = [json.dumps({"step": 10 * n, "loss": 3.0 / n, "learning_rate": 1e-3}) for n in range(1, records + 1)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def finish(folder: Path, **metrics: Any) -> None:
    info = describe_artifact(
        "model", "distill", "codec_lm-1", inputs={"teacher": "codec_lm-0"}, config={}, metrics=metrics
    )
    write_artifact(folder / "result", info, lambda where: (where / "weights").write_text("x") and None)


def fail(folder: Path) -> None:
    write_failure(folder, DataError("the tokens are of another codec"), run="1")


def damage(folder: Path) -> None:
    finish(folder)
    (folder / "result" / "artifact.json").write_text("{}")


@pytest.mark.parametrize(
    ("do", "state"), [(lambda _: None, "stopped"), (finish, "finished"), (fail, "failed"), (damage, "damaged")]
)
def test_each_state_is_told(tmp_path: Path, do: Callable[[Path], None], state: str) -> None:
    folder = output(tmp_path / "run")
    do(folder)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    seen = look_at(folder)
    assert seen.state == state
    assert (seen.why is None) == (state in ("stopped", "finished"))
    assert seen.progress == "30/100"
    assert seen.last["loss"] == 1.0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before, "looking changes nothing"


def test_a_run_that_goes_on_is_seen_and_a_dead_ones_lock_is_not(tmp_path: Path) -> None:
    folder = output(tmp_path / "run")
    with OutputLock(folder):
        assert look_at(folder).state == "running"
        with pytest.raises(Exception, match=r"another run|holds"), OutputLock(folder):
            pass
    (tmp_path / "run.lock").write_text(json.dumps({"pid": os.getpid()}))
    assert look_at(folder).state == "stopped"
    finish(folder)
    with OutputLock(folder):
        assert look_at(folder).state == "running", "a finished job that goes on"


def test_a_finished_output_shows_what_went_in_and_came_out(tmp_path: Path) -> None:
    folder = output(tmp_path / "run")
    finish(folder, wer=0.2, nested={"failure_rate": 0.5})
    seen = look_at(folder)
    assert seen.inputs == {"teacher": "codec_lm-0"}
    assert seen.reference == "distill@codec_lm-1"
    for part in ("codec_lm-0", "distill@codec_lm-1", str(seen.fingerprint), "wer: 0.2", "ALERT", "failure_rate"):
        assert part in seen.text()


def test_every_finding_is_a_line_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = output(tmp_path / "run")
    said = ["300 utterances, 2 systems.", "student makes fewer word errors than teacher ('wer', 0.1)."]
    finish(folder, findings=said, margins=[], shares=[0.25, 1 / 3])
    assert run(["show", str(folder)]) == 0
    told = capsys.readouterr().out.splitlines()
    begin = told.index("  findings:")
    assert told[begin : begin + 3] == ["  findings:", *(f"    {text}" for text in said)]
    assert "  margins: none" in told
    assert told[told.index("  shares:") :][1:3] == ["    0.25", "    0.3333"]


def test_outputs_inside_outputs_are_found_and_results_are_not(tmp_path: Path) -> None:
    for name in ("b", "a", "tour/student"):
        output(tmp_path / name)
    finish(output(tmp_path / "tour" / "teacher"))
    (tmp_path / "tour" / "run.yaml").write_text("job: demo\n")
    (tmp_path / "tour" / "teacher" / "result" / "run.yaml").write_text("job: trap\n")
    (tmp_path / "loop").symlink_to(tmp_path)
    seen = outputs_in(tmp_path)
    names = [str(Path(one.path).relative_to(tmp_path)) for one in seen]
    assert names == ["a", "b", "tour", "tour/student", "tour/teacher"]
    lines = table(seen).splitlines()
    assert len(lines) == 6
    assert lines[5].split()[1:5] == ["distill", "finished", "30/100", "1"]


@pytest.mark.parametrize("where", ["runs/tour", "s3://bucket/tour"])
def test_a_tour_is_finished_when_all_of_its_jobs_are(tmp_path: Path, where: str) -> None:
    names = ["tour/teacher", "tour/student", "earlier/corpus"]
    for name in ("tour", *names):
        output(tmp_path / name)
    jobs = [{"job": "distill", "output": f"{where}/../{name}"} for name in names]
    jobs.append({"job": "report", "output": f"{where}/page"})  # it has no result
    (tmp_path / "tour" / "run.yaml").write_text(json.dumps({"job": "demo", "output": where, "jobs": jobs}))
    for name in names:
        assert look_at(tmp_path / "tour").state == "stopped"
        finish(tmp_path / name)
    assert look_at(tmp_path / "tour").state == "finished"
    with OutputLock(tmp_path / "tour"):
        assert look_at(tmp_path / "tour").state == "running"
    (tmp_path / "tour" / "run.yaml").write_text(json.dumps({"job": "demo", "output": where, "jobs": [{}]}))
    assert look_at(tmp_path / "tour").state == "stopped"


@pytest.mark.parametrize("text", ["", "[1]", "job: [", "\x00\xff", "job: distill\ntraining: 3\n"])
def test_a_broken_run_file_hides_nothing_else(tmp_path: Path, text: str) -> None:
    folder = output(tmp_path / "run")
    (folder / "run.yaml").write_bytes(text.encode("latin-1"))
    (folder / "metrics.jsonl").write_bytes(b'{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    seen = look_at(folder)
    assert seen.steps is None
    assert seen.last == {"step": 1, "loss": 2.0}


def test_the_command_line_lists_and_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finish(output(tmp_path / "run"))
    assert run(["ls", str(tmp_path), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["outputs"]
    assert [one["state"] for one in listed] == ["finished"]
    assert run(["show", str(tmp_path / "run")]) == 0
    assert "distill, finished" in capsys.readouterr().out
    assert run(["show", str(tmp_path)]) == 3
    assert run(["ls", str(tmp_path / "gone")]) == 3
    assert "no such folder" in capsys.readouterr().err


def records(losses: list[float], rate: float = 1e-3) -> list[dict[str, Any]]:
    return [{"step": n, "loss": loss, "learning_rate": rate} for n, loss in enumerate(losses, start=1)]


def test_a_loss_that_is_no_number_is_told_once_with_its_step() -> None:
    found = alerts_of_training(records([3.0, float("nan"), float("nan")]))
    assert found == ["step 2: loss is not a number"]


@pytest.mark.parametrize(
    ("losses", "is_stalled"),
    [
        ([2.0] * 2 * STALLED_REPORTS, True),
        ([2.0] * (2 * STALLED_REPORTS - 1), False),
        ([4.0] * STALLED_REPORTS + [3.0] * STALLED_REPORTS, False),
        ([3.0] * STALLED_REPORTS + [4.0] * STALLED_REPORTS, True),
    ],
)
def test_a_loss_that_no_longer_falls_is_told(losses: list[float], is_stalled: bool) -> None:
    assert any("stalled" in alert for alert in alerts_of_training(records(losses))) == is_stalled


def test_at_the_end_of_a_schedule_a_loss_may_rest() -> None:
    resting = records([2.0] * 2 * STALLED_REPORTS)
    for record in resting[-STALLED_REPORTS:]:
        record["learning_rate"] = 1e-5
    assert alerts_of_training(resting) == []


def test_runaways_are_told_with_their_place() -> None:
    metrics = {"systems": [{"name": "a", "failure_rate": 0.05}, {"name": "b", "failure_rate": 0.2}], "x": float("inf")}
    metrics |= {"steps_left_out": 2}
    assert alerts_of_metrics(metrics) == [
        "systems.1.failure_rate is 20.0%: more than 10% of the utterances ran away",
        "x is not a number",
        "2 steps were left out, since their loss was not a number; bad_steps names their rows",
    ]
