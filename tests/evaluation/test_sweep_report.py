"""The page of a sweep."""

import html
from pathlib import Path
from typing import Any

from retort.evaluation.sweep_report import write_sweep_report


def trial(number: int, wer: float | None, **changes: Any) -> dict[str, Any]:
    system = None if wer is None else {
        "wer_corpus": wer, "wer_ci95": [wer - 0.01, wer + 0.01], "failure_rate": 0.0, "failure_rate_ci95": None,
        "tokens_per_second": 1000.0 * (number + 1), "parameters": 10_000 * (number + 1), "peak_memory_mb": None,
    }  # fmt: skip
    row = {"number": number, "parameters": {"width": {"student.dim": 8 + number}, "lr": 0.001}, "state": "finished"}
    return row | {"reason": None, "seconds": 1.0, "system": system, "on_front": False, **changes}


def sweep(*trials: dict[str, Any], **changes: Any) -> dict[str, Any]:
    tree = {"objectives": ["wer", "parameters"], "note": None, "space": {"width": {}, "lr": {}}, "search": {}}
    return tree | {"gate": "wer<=0.3", "seed": 0, "retort": "0.1.0", "trials": list(trials), **changes}


def page_of(folder: Path, tree: dict[str, Any]) -> str:
    return write_sweep_report(folder, tree, title="Sweep").read_text()


def test_trials_stand_by_wer_with_the_front_marked_and_failures_told(tmp_path: Path) -> None:
    page = page_of(
        tmp_path,
        sweep(
            trial(0, 0.4),
            trial(1, 0.2, on_front=True),
            trial(2, None, state="failed", reason="ConfigError: 3 heads"),
            trial(3, None, state="stopped", reason="loss 2 at step 10"),
            note="Mini-scale",
        ),
    )
    assert "4 trials: 2 finished, 1 stopped early, 1 failed. 1 are on the Pareto front" in page
    table = page.split('id="trials"')[1]
    assert table.index(">1 <span") < table.index("<td>0")
    assert page.count("<svg") == 1
    assert "ConfigError: 3 heads" in page
    assert "loss 2 at step 10" in page
    assert "Mini-scale" in page
    assert "dim 9" in page


def test_what_comes_from_files_is_text_wherever_it_stands(tmp_path: Path) -> None:
    evil = '<script>alert("x")</script>'
    bad = trial(0, None, state="failed", reason=evil)
    good = trial(1, 0.2, parameters={"width": evil, "lr": [evil]})
    page = page_of(tmp_path, sweep(bad, good, trial(2, 0.3), note=evil, gate=evil, space={"width": evil, "lr": {}}))
    assert "<script" not in page
    assert html.escape(evil, quote=False)[:12] in page
    assert "http" not in page.replace("http-equiv", "")


def test_one_finished_trial_needs_no_chart(tmp_path: Path) -> None:
    assert "<svg" not in page_of(tmp_path, sweep(trial(0, 0.1, on_front=True)))
