"""One run of a tour through the commands that a person types, and what came out of it in figures to compare."""

import json
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml

from benchmarks.fault_jobs import digest_of
from retort.evaluation.items import read_results
from retort.evaluation.results import read_summary
from retort.run_config import DemoConfig, DistillConfig, EvaluateConfig, PretrainConfig
from retort.store.artifact import read_artifact
from retort.store.results import result_of

NAME = "promoted"
_FIGURES = ("wer_corpus", "wer_mean", "failure_rate")
_SAID = {"model": NAME, "input": "three five", "response_format": "wav", "seed": 1}
_READY_S, _ANSWER_S = 900.0, 900.0


@dataclass(frozen=True)
class TourRun:
    """A tour below one root.

    Attributes:
        tour: with all its places below the root.
        folder: on this machine, for the run file and for what the commands say.
        environment: of the commands.
        registry: where models are promoted to.
    """

    tour: DemoConfig
    folder: Path
    environment: Mapping[str, str]
    registry: Path

    @property
    def log(self) -> Path:
        """What the tour said."""
        return self.folder / "demo.log"

    def start(self, **environment: str) -> "subprocess.Popen[bytes]":
        """Start the jobs."""
        self.folder.mkdir(parents=True, exist_ok=True)
        run_file = self.folder / "demo.yaml"
        run_file.write_text(yaml.safe_dump(self.tour.model_dump(mode="json"), sort_keys=False))
        with self.log.open("ab") as log:
            return subprocess.Popen(
                _command("demo", str(run_file)),
                stdout=log,
                stderr=log,
                env={**self.environment, **environment},
                start_new_session=True,
            )

    def promote(self, gate: str) -> dict[str, Any]:
        """Promote the last student, no control, that the last evaluation judged; returns the summary."""
        evaluation = [job for job in self.tour.jobs if isinstance(job, EvaluateConfig)][-1]
        judged = {system.model for system in evaluation.systems if system.role == "student"}
        student = [job for job in self.tour.jobs if isinstance(job, DistillConfig) and job.output in judged][-1]
        options = ["--as", NAME, "--evaluation", str(evaluation.output), "--registry", str(self.registry), "--json"]
        command = _command("promote", str(student.output), *options, "--gate", gate)
        done = subprocess.run(command, capture_output=True, text=True, env=dict(self.environment), check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
        summary: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return summary

    def serve_once(self) -> bytes:
        """Serve what was promoted, from the registry alone, and have it say one text; returns the WAV file.

        The number format is stated: by itself the server takes the one that it measures as the fastest, and another
        may be that on a busy machine, with other samples of the same seed.
        """
        settings = ("--set", "port=0", "--set", "models.0.precision=fp32")
        command = _command("serve", "--registry", str(self.registry), *settings)
        with (self.folder / "serve.log").open("w+b") as log:
            server = subprocess.Popen(
                command, stdout=log, stderr=log, env=dict(self.environment), start_new_session=True
            )
            try:
                address = self._address(server)
                voices = json.loads(_ask(f"{address}/v1/audio/voices"))["voices"]
                return _ask(f"{address}/v1/audio/speech", {**_SAID, "voice": voices[0]})
            finally:
                server.send_signal(signal.SIGINT)
                server.wait(_ANSWER_S)

    def _address(self, server: "subprocess.Popen[bytes]") -> str:
        deadline = time.monotonic() + _READY_S
        while server.poll() is None and time.monotonic() < deadline:
            found = re.search(r" at (http://\S+) ", (self.folder / "serve.log").read_text(errors="replace"))
            if found is not None:
                return found[1]
            time.sleep(0.2)
        raise SystemExit(f"the server did not start:\n{(self.folder / 'serve.log').read_text(errors='replace')}")

    def figures(self) -> dict[str, str]:
        """What must be equal in two runs of a tour: fingerprints, digests, word errors."""
        found: dict[str, str] = {}
        for job in self.tour.jobs:
            name, result = job.output.name, result_of(job.output)
            match job:
                case PretrainConfig() | DistillConfig():
                    found[f"{name}: model"] = read_artifact(result).info.version[:16]
                case EvaluateConfig():
                    found |= _errors_of(name, result)
                case _:
                    found[f"{name}: tables and tensors"] = digest_of(result)[:16]
        return found


def _errors_of(name: str, result: Path) -> dict[str, str]:
    """Word errors of every system, and a digest of what was heard and how it sounded, utterance by utterance."""
    items, found = read_results(result / "results.jsonl"), {}
    for system in read_summary(result / "summary.json")["systems"]:
        for figure in _FIGURES:
            found[f"{name}: {figure} of {system['name']}"] = f"{system[figure]:.6f}"
        own = [item for item in items if item.system == system["name"]]
        said = [(item.id, item.hypothesis, item.substitutions, item.deletions, item.insertions) for item in own]
        found[f"{name}: {len(own)} utterances of {system['name']}"] = _digest(sorted(said))
        sounds = sorted((item.id, item.audio_sha256) for item in own)
        found[f"{name}: sound of {system['name']}"] = _digest(sounds)
    return found


def table(one: Mapping[str, str], two: Mapping[str, str]) -> tuple[str, int]:
    """Both runs beside each other, as Markdown, and how many rows differ."""
    lines = ["| what | one node, folders | two nodes, store | |", "|---|---|---|---|"]
    differing = 0
    for name in dict.fromkeys([*one, *two]):
        a, b = one.get(name, "(absent)"), two.get(name, "(absent)")
        differing += a != b
        lines.append(f"| {name} | {a} | {b} | {'same' if a == b else 'DIFFERS'} |")
    return "\n".join(lines), differing


def sound_digest(wav: bytes) -> str:
    """Of a WAV file, with its length."""
    if wav[:4] != b"RIFF":
        raise SystemExit(f"the server's answer is no WAV file: {wav[:200]!r}")
    return f"{sha256(wav).hexdigest()[:16]}, {len(wav)} bytes"


def _digest(value: Sequence[Any]) -> str:
    return sha256(json.dumps(value).encode()).hexdigest()[:16]


def _ask(url: str, body: Mapping[str, Any] | None = None) -> bytes:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=_ANSWER_S) as answer:
        content: bytes = answer.read()
    return content


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "retort.cli", *arguments]
