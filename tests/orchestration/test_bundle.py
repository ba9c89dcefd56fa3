"""`export` of `kind: bundle` as a job: a zero-shot model, a folder that speaks by itself; done once."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from retort.cli import run
from retort.config import validate
from retort.errors import ConfigError
from retort.models.weights import load_zero_shot
from retort.orchestration.bundle import run_bundle
from retort.run_config import BundleConfig, ExportConfig, RunConfig
from retort.store.artifact import describe_artifact, read_artifact, write_artifact
from tests.inference.speaking import speaking_model, speaking_zero_shot
from tests.orchestration.tiny_runs import Lines

pytest.importorskip("onnx", reason="the extra [export] is not installed")
pytest.importorskip("onnxruntime", reason="the extra [export] is not installed")


def tree_of(root: Path, model: Path) -> dict[str, str]:
    return {"job": "export", "kind": "bundle", "output": str(root / "out"), "model": str(model)}


def test_a_model_becomes_a_folder_that_speaks_and_is_made_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = speaking_zero_shot(tmp_path)
    file = tmp_path / "bundle.yaml"
    file.write_text(json.dumps(tree_of(tmp_path, model)))
    assert run(["export", str(file), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    result = tmp_path / "out" / "result"
    assert (told["result"], told["fingerprint"]) == (str(result), load_zero_shot(model).fingerprint)
    assert 0 <= told["difference"] <= 1e-3
    said = [sys.executable, str(result / "speak.py"), "one two", "-o", str(tmp_path / "out.wav")]
    subprocess.run(said, check=True)
    assert (tmp_path / "out.wav").stat().st_size > 44
    before = (result / "bundle.json").stat().st_mtime_ns
    run_bundle(validate(tree_of(tmp_path, model), BundleConfig, where="t"), Lines())
    assert (result / "bundle.json").stat().st_mtime_ns == before
    # As it was written before there was a choice of runtimes.
    info = read_artifact(result).info
    metrics = {name: value for name, value in info.metrics.items() if name not in ("runtime", "rtf")}
    old = describe_artifact(info.kind, info.name, info.version, inputs={}, config=info.config, metrics=metrics)
    write_artifact(result, old, lambda target: (target / "bundle.json").write_text("{}") and None, replace=True)
    told = run_bundle(validate(tree_of(tmp_path, model), BundleConfig, where="t"), Lines())
    assert (told["runtime"], told["parameters"]) == (None, metrics["parameters"])


def test_a_model_of_another_family_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    config = validate(tree_of(tmp_path, speaking_model(tmp_path)), BundleConfig, where="t")
    with pytest.raises(ConfigError, match="of the family codec_lm, and a zero_shot is needed"):
        run_bundle(config, Lines())
    assert not (tmp_path / "out" / "result").exists()


def test_what_says_nothing_of_its_kind_is_a_hugging_face_folder() -> None:
    plain = {"job": "export", "output": "out", "model": "m"}
    for tree, kind in ((plain, ExportConfig), ({**plain, "kind": "bundle"}, BundleConfig)):
        assert type(validate(tree, RunConfig, where="t")) is kind  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="kind: it is one of hugging_face, bundle"):
        validate({**plain, "kind": "onnx"}, RunConfig, where="t")  # type: ignore[arg-type]
