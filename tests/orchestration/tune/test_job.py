"""Sweeps on a real Ray: killed and continued, with a bad trial among them, and stopped early."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from retort.errors import ConfigError, QualityGateError
from retort.orchestration.progress import QuietProgress
from retort.orchestration.promote import promote
from retort.orchestration.tune.job import Sweep, run_tune
from retort.orchestration.tune.trial import Ledger, TrialOutcome
from retort.store.registry import Registry
from tests.orchestration.tiny_runs import Lines
from tests.orchestration.tune_runs import sweep, sweep_tree, write_inputs
from tests.patience import comes


def outcome(wer: float = 0.2) -> TrialOutcome:
    return TrialOutcome("finished", system={"wer_corpus": wer, "tokens_per_second": 5.0, "parameters": 10})


def heads(*values: int) -> dict[str, Any]:
    return {"student.student.num_heads": {"kind": "choice", "values": list(values)}}


def test_the_ledger_alone_says_what_is_left(tmp_path: Path) -> None:
    config = sweep(tmp_path, space=heads(1, 2, 4, 8))
    ledger, first = Ledger(config), Sweep(config, QuietProgress())
    assert [first.next() for _ in range(3)] == [0, 1, 2]
    ledger.end(0, outcome())
    first.ended(0)
    first.broke(2, RuntimeError("the machine\ncaught fire"))

    second = Sweep(config, QuietProgress())  # as after a killed driver
    assert second.num_left == 2
    assert [second.next(), second.next(), second.next()] == [1, 3, None]
    trials = {trial.number: trial for trial in ledger.trials()}
    assert [t.parameters["student.student.num_heads"] for t in trials.values()] == [1, 2, 4, 8]
    assert (trials[2].outcome or outcome()).reason == "RuntimeError: the machine"
    ledger.end(0, outcome(0.9))
    assert ledger.trial(0).outcome == outcome(), "the first record stands"
    assert Sweep(sweep(tmp_path, space=heads(1, 2, 4, 8), num_trials=4), QuietProgress()).num_left == 2


def test_what_a_trial_tells_of_itself_is_news_of_the_sweep(tmp_path: Path) -> None:
    told: Any = Lines()
    config = sweep(tmp_path, space=heads(1, 2, 4))
    tried = Sweep(config, told)
    assert [tried.next(), tried.next()] == [0, 1]
    assert tried.goes_on(1, {"step": 40.0, "value": 1.0, "size": 1.0})
    Ledger(config).end(0, outcome())
    tried.ended(0)
    assert tried.goes_on(1, {"step": 60.0, "value": 1.0, "size": 1.0})
    assert [done for done, _, _ in told.updates] == [0, 1, 1]
    assert [note for _, _, note in told.updates] == [
        "trials, number 1 is at step 40", "trials", "trials, number 1 is at step 60"
    ]  # fmt: skip


def test_trials_of_another_sweep_are_not_mixed_in(tmp_path: Path) -> None:
    config = sweep(tmp_path)
    Sweep(config, QuietProgress()).next()
    (config.output / "run.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    with pytest.raises(ConfigError, match=r"another sweep; it differs in space.student.student.num_heads"):
        run_tune(sweep(tmp_path, space=heads(1, 4)), QuietProgress())


def kill_after_first_outcome(root: Path, file: Path) -> None:
    """Run the sweep of ``file`` in a process of its own and SIGKILL that once a trial has ended."""
    code = "import sys; from retort.cli import main; main(['tune', sys.argv[1]])"
    log = (root / "driver.txt").open("wb")
    process = subprocess.Popen([sys.executable, "-c", code, str(file)], stdout=log, stderr=log)

    def has_ended() -> bool:
        assert process.poll() is None, (root / "driver.txt").read_text()
        return bool(list((root / "sweep" / "trials").glob("*/outcome.json")))

    try:
        assert comes(has_ended), (root / "driver.txt").read_text()
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        log.close()


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_sweep_goes_on_and_a_bad_trial_is_a_row_with_its_reason(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_inputs(tmp_path)
    tree = sweep_tree(tmp_path, space=heads(1, 3, 2), max_concurrent=1)
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump(tree))
    kill_after_first_outcome(tmp_path, file)

    config = sweep(tmp_path, space=heads(1, 3, 2), max_concurrent=1)
    kept = config.folder_of(0) / "student" / "result" / "COMMITTED"
    before = (kept.stat().st_mtime_ns, (config.folder_of(0) / "outcome.json").stat().st_mtime_ns)
    assert len(list(config.output.glob("trials/*/outcome.json"))) < 3
    summary = run_tune(config, QuietProgress())
    assert (kept.stat().st_mtime_ns, (config.folder_of(0) / "outcome.json").stat().st_mtime_ns) == before
    assert (summary["trials"], summary["finished"], summary["failed"]) == (3, 2, 1)

    front = json.loads((config.output / "pareto.json").read_text())
    by_heads = {row["parameters"]["student.student.num_heads"]: row for row in front["trials"]}
    assert by_heads[3]["state"] == "failed"
    assert "the model's size does not work" in by_heads[3]["reason"]
    assert set(front["front"]) <= {by_heads[1]["number"], by_heads[2]["number"]}
    assert front["front"]
    assert "seen in training" in front["note"]
    for row in (by_heads[1], by_heads[2]):
        assert row["system"]["tokens_per_second"] > 0
        assert row["system"]["peak_memory_mb"] > 0
        assert not (config.output / row["model"] / "checkpoints").exists()
    assert (config.output / "report.html").is_file()
    assert not (config.output / "ray").exists()
    told = "".join(capfd.readouterr()) + (tmp_path / "driver.txt").read_text()
    assert not re.search(r"sweep/ray|[Dd]etailed results|Error file|Tuner\.restore", told), "nobody can look there"
    assert run_tune(config, QuietProgress()) == summary, "a finished sweep is found done"

    registry = tmp_path / "registry"
    promoted = promote(config.output, "tiny", best="smallest, best wer", registry=registry)
    assert (promoted["name"], promoted["version"]) == ("tiny", 1)
    assert Registry(registry).card("tiny")["sweep"]["number"] == promoted["trial"]
    with pytest.raises(QualityGateError, match="parameters<=10: not passed"):
        promote(config.output, "tiny", best="fastest", gate="parameters<=10", registry=registry)


@pytest.mark.ray
@pytest.mark.slow
def test_a_finished_sweep_goes_on_to_more_trials_and_is_weighed_again_without_any(tmp_path: Path) -> None:
    write_inputs(tmp_path)
    few = sweep(tmp_path, num_trials=1)
    assert run_tune(few, QuietProgress())["trials"] == 1
    first = few.folder_of(0)
    kept = [first / "outcome.json", first / "student" / "result" / "COMMITTED"]
    before = [path.stat().st_mtime_ns for path in kept]

    more = sweep(tmp_path, num_trials=2)
    summary = run_tune(more, QuietProgress())
    assert (summary["trials"], summary["finished"]) == (2, 2)
    assert [path.stat().st_mtime_ns for path in kept] == before, "the first trial is not run again"
    front = json.loads((more.output / "pareto.json").read_text())
    assert [row["parameters"]["student.student.num_heads"] for row in front["trials"]] == [1, 2]

    second = more.folder_of(1) / "outcome.json"
    before.append(second.stat().st_mtime_ns)
    gated = sweep(tmp_path, num_trials=2, gate="parameters<=10", objectives=["parameters"], max_concurrent=1)
    assert run_tune(gated, QuietProgress())["trials"] == 2
    assert [path.stat().st_mtime_ns for path in (*kept, second)] == before, "no trial is run again"
    front = json.loads((more.output / "pareto.json").read_text())
    assert (front["gate"], front["objectives"]) == ("parameters<=10", ["parameters"])
    with pytest.raises(ConfigError, match=r"num_trials: 2 → 1.*2 trials are measured"):
        run_tune(few.replace(gate=gated.gate, objectives=gated.objectives), QuietProgress())


@pytest.mark.ray
@pytest.mark.slow
def test_a_trial_behind_its_peers_is_stopped_and_the_next_one_finds_room(tmp_path: Path) -> None:
    write_inputs(tmp_path)
    tree = sweep_tree(tmp_path)
    tree["trial"][0]["training"] |= {"steps": 120, "checkpoint_every": 200}
    config = sweep(
        tmp_path,
        trial=tree["trial"],
        # What is watched is the learning rate itself: the order of the trials is known beforehand.
        space={"student.training.optimizer.learning_rate": {"kind": "choice", "values": [2e-3, 3e-3, 1e-3]}},
        early_stopping={
            "job": "student",
            "metric": "learning_rate",
            "first_rung": 10,
            "reduction": 2.0,
            "min_peers": 1,
        },
        max_concurrent=1,
    )
    summary = run_tune(config, QuietProgress())
    front = json.loads((config.output / "pareto.json").read_text())
    assert [row["state"] for row in front["trials"]] == ["finished", "stopped", "finished"]
    assert "at step 10 was behind its peers" in front["trials"][1]["reason"]
    assert (summary["finished"], summary["stopped"]) == (2, 1)
