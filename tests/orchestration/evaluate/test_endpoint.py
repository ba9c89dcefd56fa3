"""An evaluation of our own server: its figures are those of its model in the same run, and its key is nowhere."""

import json
from pathlib import Path
from typing import Any

import pytest

from retort.config import validate
from retort.errors import ConfigError
from retort.orchestration.cluster import ray_session
from retort.orchestration.evaluate.job import run_evaluate
from retort.orchestration.evaluate.kept import drop_what_changed
from retort.orchestration.progress import QuietProgress
from retort.run_config import EvaluateConfig
from tests.evaluation.asked import SPHINX, TEXTS, own_server, world

KEY = "SECRET-API-KEY-0123456789"
ONLY_WITH_CODES = {"name", "role", "method", "family", "failures", "parameters", "num_layers"}
ONLY_WITH_CODES |= {"failure_rate", "failure_rate_ci95", "entropy", "top1_probability"}
ONLY_WITH_CODES |= {"guidance_scale", "temperature"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return world(tmp_path_factory.mktemp("endpoint"))


def evaluation(output: Path, folders: tuple[Path, Path], url: str, **asked: Any) -> EvaluateConfig:
    """Of the model itself, and of the server that serves it."""
    data, model = folders
    endpoint = {"base_url": f"{url}/v1", "model": "tiny", "send_seed": True, **asked}
    systems = [
        {"name": "here", "kind": "model", "role": "teacher", "model": str(model)},
        {"name": "there", "kind": "endpoint", "role": "student", "endpoint": endpoint},
    ]
    tree = {
        "output": str(output), "data": str(data), "num_strings": len(TEXTS), "systems": systems, "speed": None,
        "comparisons": [["here", "there"]], "recogniser": SPHINX, "num_resamples": 100, "pool": {"size": 1},
    }  # fmt: skip
    return validate(tree, EvaluateConfig, where="test")


@pytest.mark.ray
@pytest.mark.slow
def test_the_figures_of_our_own_server_are_those_of_its_model(
    tmp_path: Path, folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPEECH_KEY", KEY)
    (tmp_path / "keys").write_text(KEY + "\n")
    with own_server(folders[1], api_keys=tmp_path / "keys") as url, ray_session(num_cpus=2):
        run_evaluate(evaluation(tmp_path / "out", folders, url, api_key_env="SPEECH_KEY"), QuietProgress())
    (tmp_path / "keys").unlink()
    result = tmp_path / "out" / "result"
    rows = [json.loads(line) for line in (result / "results.jsonl").read_text().splitlines()]
    heard = {
        name: [(row["id"], row["hypothesis"], row["audio_sha256"]) for row in rows if row["system"] == name]
        for name in ("here", "there")
    }
    assert heard["there"] == heard["here"]
    assert len({sound for _, _, sound in heard["here"]}) == len(TEXTS)
    summary = json.loads((result / "summary.json").read_text())
    here, there = ({k: v for k, v in s.items() if k not in ONLY_WITH_CODES} for s in summary["systems"])
    assert there == here
    assert summary["systems"][1]["method"] == "endpoint"
    assert summary["environment"]["endpoints"]["there"]["base_url"] == f"{url}/v1"
    assert {row["difference"] for row in summary["comparisons"] if row["metric"] == "wer_corpus"} == {0.0}
    written = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert f"{url}/v1".encode() in written
    assert KEY.encode() not in written


def test_without_its_key_nothing_begins(
    tmp_path: Path, folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SPEECH_KEY", raising=False)
    with pytest.raises(ConfigError, match="SPEECH_KEY is not set"):
        run_evaluate(evaluation(tmp_path / "out", folders, "http://x", api_key_env="SPEECH_KEY"), QuietProgress())
    assert not (tmp_path / "out" / "pieces").exists()


def test_what_was_asked_is_kept_whatever_the_haste_and_dropped_where_something_else_is_asked(
    tmp_path: Path, folders: tuple[Path, Path]
) -> None:
    def left(**asked: Any) -> bool:
        drop_what_changed(tmp_path, evaluation(tmp_path / "out", folders, "http://x", **asked))
        return (tmp_path / "there-0000.jsonl").is_file()

    left()
    (tmp_path / "there-0000.jsonl").touch()
    assert left(concurrency=9, max_attempts=1, api_key_env="KEY")
    assert not left(voice="alloy")
