"""Secrets stay where they are: not in logs, answers, metrics, artifacts, run files, nor what goes to a cluster."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch
import yaml

from retort.cli import run
from retort.orchestration.outputs import job_output
from retort.orchestration.submit import Submission, pack_plan
from retort.run_config.training import PretrainConfig
from retort.serving.api import build_api
from retort.serving.settings import ServeConfig, ServedModel
from retort.serving.speaking import Snippet
from retort.store.artifact import describe_artifact, write_artifact
from tests.audio.test_provenance import config as provenance_config
from tests.serving.running import Stub, running

API_KEY = "SECRET-API-KEY-0123456789"
ENVIRONMENT = {
    "AWS_SECRET_ACCESS_KEY": "SECRET-AWS-0123456789",
    "AWS_SESSION_TOKEN": "SECRET-TOKEN-0123456789",
    "HF_TOKEN": "SECRET-HF-0123456789",
    "RAY_AUTH_TOKEN": "SECRET-RAY-0123456789",
    "MLFLOW_TRACKING_PASSWORD": "SECRET-MLFLOW-0123456789",
}


@pytest.fixture
def secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    provenance_config(tmp_path)
    (tmp_path / "mark").write_text("SECRET-WATERMARK-0123456789")
    (tmp_path / "keys").write_text(API_KEY + "\n")
    lines = [line for line in (tmp_path / "key.pem").read_text().splitlines() if "-----" not in line]
    return [*ENVIRONMENT.values(), API_KEY, "SECRET-WATERMARK-0123456789", *lines]


def serve_tree(folder: Path) -> dict[str, object]:
    return {
        "job": "serve",
        "models": [{"name": "tiny", "path": str(folder)}],
        "api_keys": str(folder / "keys"),
        "provenance": {
            "signature": {"key_file": str(folder / "key.pem")},
            "watermark": {"kind": "spread_spectrum", "key_file": str(folder / "mark")},
        },
    }


def clean(text: str | bytes, secrets: list[str]) -> None:
    whole = text.encode() if isinstance(text, str) else text
    assert [secret for secret in secrets if secret.encode() in whole] == []


def test_the_service_tells_nobody(tmp_path: Path, secrets: list[str], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    config = ServeConfig.model_validate(serve_tree(tmp_path))
    stub = Stub(Snippet(torch.zeros(4800), "said"))
    api = build_api(config, {"tiny": stub})
    wanted = {"model": "tiny", "input": "one", "voice": "s0", "response_format": "wav"}
    headers = {"Authorization": f"Bearer {API_KEY}"}
    with running(api) as url:
        answers = [
            httpx.post(f"{url}/v1/audio/speech", json=wanted, headers=headers),
            httpx.post(f"{url}/v1/audio/speech", json=wanted, headers={"Authorization": f"Bearer {API_KEY}x"}),
            httpx.post(f"{url}/v1/audio/speech", json={**wanted, "voice": API_KEY[:5]}, headers=headers),
            *(
                httpx.get(url + path, headers=headers)
                for path in ("/metrics", "/v1/models", "/openapi.json", "/nowhere")
            ),
        ]
    assert [answer.status_code for answer in answers] == [200, 401, 400, 200, 200, 200, 404]
    for answer in answers:
        clean(answer.content + str(answer.headers).encode(), secrets)
    clean(caplog.text, secrets)
    clean(repr(config) + repr(vars(api)) + str(config.model_dump()), secrets)


def test_a_dry_run_shows_where_keys_are_and_not_what(
    tmp_path: Path, secrets: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(serve_tree(tmp_path)))
    assert run(["serve", str(tmp_path / "serve.yaml"), "--dry-run"]) == 0
    shown = capsys.readouterr()
    assert str(tmp_path / "mark") in shown.out
    clean(shown.out + shown.err, secrets)


def test_a_key_in_the_place_of_its_path_is_not_repeated(
    tmp_path: Path, secrets: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "keys").write_text("SECRET-SHORT")
    tree = serve_tree(tmp_path)
    with pytest.raises(Exception, match="fewer than 16") as caught:
        build_api(ServeConfig.model_validate(tree), {"tiny": Stub()})
    assert "SECRET-SHORT" not in str(caught.value)


def test_artifacts_and_run_files_hold_nothing_of_the_environment(tmp_path: Path, secrets: list[str]) -> None:
    tree = yaml.safe_load((Path(__file__).parents[2] / "jobs" / "configs" / "demo.yaml").read_text())
    pretrain = next(job for job in tree["jobs"] if job["job"] == "pretrain")
    config = PretrainConfig.model_validate_json(json.dumps({**pretrain, "output": str(tmp_path / "run")}))
    with job_output(config) as output:
        info = describe_artifact("model", "m", "1", inputs={}, config=config.model_dump(mode="json"))
        write_artifact(output / "result", info, lambda where: (where / "x").write_text("x") and None)
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(files) >= 4
    for path in files:
        clean(path.read_bytes(), secrets)


def test_what_is_sent_to_a_cluster_holds_nothing_of_the_environment(secrets: list[str]) -> None:
    config = Path(__file__).parents[2] / "jobs" / "configs" / "demo.yaml"
    plan = pack_plan(Submission("demo", config, (), "http://127.0.0.1:8265"))
    assert "retort demo" in plan or "demo" in plan
    clean(plan, secrets)


K8S = Path(__file__).parents[2] / "k8s"
STORE = ["--s3-secret", "mine", "--s3-endpoint", "https://store.example:9000", "--s3-region", "eu-1", "--queue", "q"]


@pytest.mark.parametrize("file", sorted((K8S / "jobs" / "runs").glob("*.yaml")), ids=lambda file: file.stem)
def test_manifests_name_secrets_and_hold_none(
    file: Path, secrets: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no kubectl: what would be applied is written
    monkeypatch.chdir(tmp_path)
    assert run(["submit", str(file), "--kubernetes", *STORE]) == 0
    (written,) = tmp_path.glob("retort-*.yaml")
    shown = capsys.readouterr()
    clean(written.read_text() + shown.out + shown.err, secrets)
    assert run(["submit", str(file), "--kubernetes", "--dry-run", *STORE]) == 0
    shown = capsys.readouterr()
    clean(shown.out + shown.err, secrets)
    for manifest in yaml.safe_load_all(written.read_text()):
        assert manifest["kind"] != "Secret"
        for name, value in environment_of(manifest):
            assert value is None or ("SECRET" not in name and "TOKEN" not in name and "KEY" not in name), name


def environment_of(node: object) -> Iterator[tuple[str, str | None]]:
    """Every variable anywhere in a manifest, with its value where that is written out."""
    if isinstance(node, dict):
        for entry in node.get("env") or ():
            yield entry["name"], entry.get("value")
        for inner in node.values():
            yield from environment_of(inner)
    elif isinstance(node, list):
        for inner in node:
            yield from environment_of(inner)


@pytest.mark.parametrize("file", sorted(K8S.rglob("*.yaml")), ids=lambda file: str(file.relative_to(K8S)))
def test_the_manifests_of_the_clone_hold_no_secret(file: Path) -> None:
    for manifest in yaml.safe_load_all(file.read_text()):
        if isinstance(manifest, dict):
            assert manifest.get("kind") != "Secret"
        for name, value in environment_of(manifest):
            assert value is None or not any(word in name for word in ("SECRET", "TOKEN", "PASSWORD")), name


@pytest.mark.parametrize(
    "options",
    [
        ["--env", "AWS_SECRET_ACCESS_KEY={secret}"],
        ["--env", "{secret}"],  # the name was forgotten
        ["--env", "HF_TOKEN={secret}"],
        ["--env", "URL=https://me:{secret}@host"],
        ["--set", "output=https://me:{secret}@host/x"],
        ["--s3-endpoint", "https://me:{secret}@host"],
        ["--s3-endpoint", "https://host/?key={secret}"],
        ["--s3-secret", "{secret}"],  # its value in the place of its name
        ["--queue", "{secret}"],
        ["--s3-region", "{secret}/+="],
        ["--node-selector", "a={secret}/+="],
    ],
    ids=lambda options: " ".join(options),
)
def test_a_secret_in_an_option_is_refused_and_not_repeated(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    secret = "SECRET-OPTION-0123456789"
    given = [option.format(secret=secret) for option in options]
    report = K8S / "jobs" / "runs" / "report.yaml"
    assert run(["submit", str(report), "--kubernetes", *given]) != 0
    shown = capsys.readouterr()
    clean(shown.out + shown.err, [secret])
    assert list(tmp_path.iterdir()) == []


def test_the_models_in_a_serving_file_have_no_secret_of_their_own() -> None:
    # Whoever adds a field for a key adds a path to it: a value would be dumped with the configuration.
    words = ("key", "secret", "token", "password")
    for kind in (ServeConfig, ServedModel):
        for name, field in kind.model_fields.items():
            if any(word in name for word in words) and "tokens" not in name:
                assert "Path" in str(field.annotation), f"{kind.__name__}.{name}"
