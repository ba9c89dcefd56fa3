"""A person sees what Retort says, and nothing of Ray's, from the first line of a job to the last one of a server."""

import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from retort.errors import MissingRequirementError
from retort.serving.local import _haproxy
from tests.orchestration.tiny_runs import write_teacher, write_token_set

ROOT = Path(__file__).parents[2]
OTHERS = re.compile(r"\bray\b|raylet|\d{4}-\d\d-\d\d \d\d:|pid=|pydantic|Traceback|Warning:", re.IGNORECASE)
PREPARE = {
    "corpus": {"num_strings": 24, "test_strings": 6, "validation_strings": 3},
    "codec": {"num_codebooks": 2, "codebook_size": 16},
    "codec_fit_utterances": 12,
}


def others_in(text: str) -> list[str]:
    return [line for line in text.splitlines() if OTHERS.search(line)]


@pytest.mark.ray
@pytest.mark.slow
def test_prepare_shows_nothing_of_rays(tmp_path: Path) -> None:
    tree = yaml.safe_load((ROOT / "jobs/configs/prepare_digits.yaml").read_text())
    for key, value in PREPARE.items():
        tree[key] = {**tree[key], **value} if isinstance(value, dict) else value
    file = tmp_path / "prepare.yaml"
    file.write_text(yaml.safe_dump({**tree, "output": str(tmp_path / "tokens")}))
    command = [sys.executable, "-m", "retort", "prepare", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert others_in(done.stdout + done.stderr) == []


@pytest.mark.ray
@pytest.mark.slow
def test_a_server_shows_nothing_of_rays_to_its_end(tmp_path: Path) -> None:
    data = write_token_set(tmp_path / "data")
    model = write_teacher(tmp_path / "teacher", data)
    file = tmp_path / "serve.yaml"
    file.write_text(yaml.safe_dump({"job": "serve", "port": 0, "models": [{"name": "tiny", "path": str(model)}]}))
    command = [sys.executable, "-m", "retort", "serve", str(file)]
    with (tmp_path / "stderr").open("wb") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert process.stdout is not None
        try:
            ready = process.stdout.readline()
            process.send_signal(signal.SIGINT)
            rest = process.stdout.read()
            process.wait()
        finally:
            process.kill()
    told = (tmp_path / "stderr").read_text()
    assert "tiny at http://" in ready, told
    assert "finishing what has begun" in rest, told
    assert others_in(ready + rest + told) == []


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.skipif(_haproxy() is None, reason="no HAProxy on this machine")
def test_why_haproxy_does_not_start_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_teacher(tmp_path / "teacher", write_token_set(tmp_path / "data"))
    file = tmp_path / "serve.yaml"
    file.write_text(yaml.safe_dump({"job": "serve", "port": 0, "models": [{"name": "tiny", "path": str(model)}]}))
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = str(other.getsockname()[1])
        monkeypatch.setenv("RAY_SERVE_HAPROXY_METRICS_PORT", taken)
        command = [sys.executable, "-m", "retort", "serve", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == MissingRequirementError.exit_code, done.stderr
    (line,) = done.stderr.splitlines()
    assert re.fullmatch(rf"retort: Ray Serve does not start: .*Address already in use.*:{taken}\].*doctor`", line), line
