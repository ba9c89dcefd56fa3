"""The whole path on a tiny scale: corpus, tokens, teacher, synthetic data, students, evaluation, report."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from retort.config import load_tree, validate
from retort.inference.opening import open_speaker
from retort.inference.speaker import Request
from retort.orchestration.progress import QuietProgress
from retort.orchestration.tour import run_demo
from retort.run_config import DemoConfig

SYSTEMS = [
    "recordings",
    "resynthesis",
    "teacher_guided",
    "teacher_unguided",
    "student_large",
    "student_small",
    "control_ce_only",
]
AT_BEST = [f"{name}@best" for name in SYSTEMS[2:]]
LEFT_OUT = {"control_unguided_kl"}
"""Like another that stays, and half a minute of every test run."""


def tiny_tour(output: Path) -> DemoConfig:
    """The default tour with everything shrunk: the same kinds of jobs, the same options."""
    tree = _moved(load_tree(Path("jobs/configs/demo.yaml")), str(output))
    tree["jobs"] = [job for job in tree["jobs"] if Path(job["output"]).name not in LEFT_OUT]
    for job in tree["jobs"]:
        match job["job"]:
            case "prepare":
                job["corpus"] |= {"num_strings": 40, "test_strings": 10, "validation_strings": 4}
                job["codec"] |= {"codebook_size": 32, "kmeans_iterations": 3, "griffin_lim_iterations": 2}
            case "pretrain":
                job["model"] = {"kind": "preset", "name": "tiny"}
            case "generate":
                job |= {"top_k": 8, "num_sampled": 6, "max_frames": 16, "batch_size": 8, "precision": "fp32"}
            case "distill" if job["student"]["kind"] == "shape":
                job["student"] = {"kind": "shape", "dim": 16, "num_layers": 1, "num_heads": 1, "ffn_dim": 16}
            case "evaluate":
                job |= {"num_strings": 8, "max_frames": 16, "batch_size": 8, "precision": "fp32", "num_resamples": 200}
                job["systems"] = [system for system in job["systems"] if system["name"] not in LEFT_OUT]
                job["comparisons"] = [pair for pair in job["comparisons"] if not LEFT_OUT & _named(pair)]
                job |= {"num_samples": 1, "temperatures": {"values": [0.5, 1.0], "num_strings": 4}}
                job |= {"speed": {"batch_sizes": [1, 4], "num_frames": 4, "rounds": 6, "window_s": 0.1}}
        if "training" in job:
            job["training"] |= {"steps": 4, "checkpoint_every": 2, "log_every": 2}
            job["training"]["batch"]["max_utterances"] = 8
            job["training"]["optimizer"]["warmup_steps"] = 1
            job["training"]["workers"] |= {"cpus_per_worker": 1.0, "threads_per_worker": 1, "precision": "fp32"}
    return validate(tree, DemoConfig, where="tiny tour")


def _named(pair: Any) -> set[str]:
    return {pair["a"], pair["b"]} if isinstance(pair, dict) else set(pair)


def _moved(node: Any, output: str) -> Any:
    if isinstance(node, dict):
        return {key: _moved(value, output) for key, value in node.items()}
    if isinstance(node, list):
        return [_moved(value, output) for value in node]
    return node.replace("runs/demo", output) if isinstance(node, str) else node


class Lines(QuietProgress):
    """Keeps what was logged, and what was being done."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.notes: list[str] = []

    def update(self, done: int, total: int, note: str) -> None:
        self.notes.append(note)

    def log(self, line: str) -> None:
        self.lines.append(line)


@pytest.mark.ray
@pytest.mark.slow
def test_the_tour_ends_in_a_report_and_a_second_one_finds_it_done(tmp_path: Path) -> None:
    config = tiny_tour(tmp_path / "demo")
    told = Lines()
    first = run_demo(config, told)
    speed = [note for note in told.notes if note.startswith("measuring speed")]
    assert speed[0] == "measuring speed: a process starts", "nobody waits for it without a word"
    assert speed[1] == "measuring speed: opening the models"
    assert speed[-1].startswith("measuring speed: first audio, ")

    summary = json.loads((tmp_path / "demo" / "summary.json").read_text())
    assert [system["name"] for system in summary["systems"]] == [*SYSTEMS, *AT_BEST]
    by_name = {system["name"]: system for system in summary["systems"]}
    assert all(system["utterances"] == 8 for system in summary["systems"])
    assert by_name["student_small"]["parameters"] < by_name["student_large"]["parameters"]
    assert by_name["teacher_guided"]["nfe"] == 2
    assert by_name["student_large"]["nfe"] == 1
    assert by_name["recordings"]["wer_corpus"] < 0.2
    for name in ("tokens_per_second", "tokens_per_second_batch1", "rtf", "first_audio_s"):
        low, high = by_name["student_large"][f"{name}_ci95"]
        assert 0 < low <= by_name["student_large"][name] <= high
        assert summary["speed_noise_floor"]["ratios"][name]["factor"] >= 1
    assert summary["speed_noise_floor"]["system"] == "teacher_guided"
    assert {"teacher_guided", "student_large"} <= set(summary["confidence"])
    page = (tmp_path / "demo" / "report.html").read_text()
    assert "<audio" in page
    assert 'href="listen.html"' in page
    assert (tmp_path / "demo" / "listen.html").is_file()
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert list((tmp_path / "demo" / "audio").glob("recordings--*.wav"))
    assert len((tmp_path / "demo" / "results.jsonl").read_text().splitlines()) == 8 * len(SYSTEMS + AT_BEST)

    speaker = open_speaker(tmp_path / "demo" / "student_large" / "result")
    requests = [Request("three five", speaker.voices[0], seed) for seed in (1, 1, 2)]
    spoken = speaker.speak(requests, speaker.decoding(None), max_seconds=0.15)
    assert torch.equal(spoken[0].samples_N, spoken[1].samples_N)
    assert not torch.equal(spoken[0].codes, spoken[2].codes)

    shutil.rmtree(tmp_path / "demo" / "evaluation")  # as if the run had died before its last job
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "demo").glob("*/result/COMMITTED")}
    lines = Lines()
    second = run_demo(config, lines)
    assert second["evaluation"]["systems"].keys() == first["evaluation"]["systems"].keys()
    for name in ("wer_corpus", "failure_rate"):
        assert [s[name] for s in second["evaluation"]["systems"].values()] == [
            s[name] for s in first["evaluation"]["systems"].values()
        ]
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert sum("already" in line or "finished" in line or "done" in line for line in lines.lines) >= len(before)
