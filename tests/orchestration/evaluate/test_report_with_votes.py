"""A finished evaluation, heard and voted on, and its report written again."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from retort import cli
from retort.audio.files import wav_bytes
from retort.evaluation.items import Expected, failed_item, write_results
from retort.evaluation.results import Pair, SystemInfo, summarise, write_summary
from retort.store.artifact import describe_artifact, write_artifact
from tests.evaluation.test_listening import data_of

SENTENCES = [f"u{i}" for i in range(10)]


def finished(folder: Path, systems: tuple[str, str] = ("teacher", "student")) -> Path:
    """An evaluation of two systems, which said all sentences; returns its folder."""
    rows = [failed_item(system, Expected(name, "one two")) for system in systems for name in SENTENCES]
    infos = [SystemInfo(systems[0], "teacher"), SystemInfo(systems[1], "student")]
    summary = summarise(rows, infos, [Pair(*systems)])

    def fill(folder: Path) -> None:
        write_results(folder / "results.jsonl", summary.items)
        write_summary(folder / "summary.json", summary)
        (folder / "audio").mkdir()
        for number, row in enumerate(rows):
            sound = wav_bytes(0.3 * torch.sin(torch.arange(800) * (0.1 + 0.01 * number)), 8000)
            (folder / "audio" / f"{row.system}--{row.id}.wav").write_bytes(sound)

    info = describe_artifact("evaluation", "e", "1", inputs={}, config={})
    write_artifact(folder / "result", info, fill)
    return folder


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    finished(tmp_path / "evaluation")
    file = tmp_path / "report.yaml"
    file.write_text(f"job: report\nevaluation: {tmp_path}/evaluation\noutput: {tmp_path}/out\n")
    return file


def ballot(report: str, listener: str, num_student: int) -> dict[str, Any]:
    votes = [
        {"order": i + 1, "utterance": u, "first": "student", "second": "teacher", "vote": 1 if i < num_student else 2,
         "seconds": 1.0, "at": "2026-11-28T12:00:00Z"} for i, u in enumerate(SENTENCES)
    ]  # fmt: skip
    return {
        "kind": "retort votes", "report": report, "listener": listener, "began": "2026-11-28T12:00:00Z", "votes": votes
    }  # fmt: skip


def test_votes_of_two_listeners_are_in_report_and_summary(run_file: Path, tmp_path: Path) -> None:
    assert cli.run(["report", str(run_file)]) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["preferences"] == []
    assert 'id="preferences"' not in (tmp_path / "out" / "report.html").read_text()
    assert '<a href="listen.html">' in (tmp_path / "out" / "report.html").read_text()

    report = data_of(tmp_path / "out" / "listen.html")["report"]
    files = [tmp_path / f"{name}.json" for name in ("ann", "bob")]
    for file, count in zip(files, (10, 6), strict=True):
        file.write_text(json.dumps(ballot(report, file.stem, count)))
    assert cli.run(["report", str(run_file), "--votes", str(files[0]), "--votes", str(files[1])]) == 0
    (row,) = json.loads((tmp_path / "out" / "summary.json").read_text())["preferences"]
    assert (row["a"], row["b"], row["votes"], row["listeners"]) == ("teacher", "student", 20, 2)
    assert (row["prefer_a"], row["prefer_b"], row["share_b"]) == (4, 16, 0.8)
    assert 0.5 < row["ci95"][0] < 0.8 < row["ci95"][1] < 1.0
    section = (tmp_path / "out" / "report.html").read_text().split('id="preferences"')[1].split("</section>")[0]
    assert "<td>80.0</td>" in section
    assert "<td>10 (4)</td>" in section, "the listeners disagree on four sentences"


def test_votes_on_another_report_change_nothing_and_are_code_3(
    run_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign = tmp_path / "foreign.json"
    foreign.write_text(json.dumps(ballot("0123456789abcdef", "ann", 3)))
    assert cli.run(["report", str(run_file), "--votes", str(foreign)]) == 3
    assert "foreign.json: report: these votes are on the report 0123456789abcdef" in capsys.readouterr().err
    assert not (tmp_path / "out" / "report.html").exists()
