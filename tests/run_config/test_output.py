"""Where jobs write: any name that a folder can have works to the end, any other is refused with the run file."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retort import cli
from retort.config import faults_of, load_tree
from retort.location import parse_location
from retort.run_config import AnyConfig, RunConfig
from retort.store.artifact import describe_artifact, name_for
from tests.contracts.test_path_fields import path_fields

FOLDERS = ("runs/my tokens", "runs/données", "runs/.hidden", "runs/-x", "runs/a b (2)!", "runs/" + "x" * 250, ".", "..")
NO_FOLDERS = {
    "runs/a\0b": "holds a NUL character",
    "runs/" + "x" * 251: "has 251 bytes",
    "x" * 300 + "/tokens": "has 300 bytes",
    "runs/" + "ü" * 126: "has 252 bytes",
    "s3://bucket/" + "x" * 251: "has 251 bytes",
    "/".join(["x" * 200] * 20): "the whole path has",
}
OUTPUTS = [
    pytest.param(field, id="-".join(map(str, (field.tree["job"], *field.place))))
    for field in path_fields(AnyConfig)
    if field.place[-1] == "output"
]


def faults(field: Any, value: str) -> list[str]:
    dotted = ".".join(map(str, field.place))
    return [text for _, text in faults_of(field.tree_with(value), RunConfig) if text.startswith(f"{dotted}: ")]


@pytest.mark.parametrize("field", OUTPUTS)
def test_every_job_takes_what_a_folder_may_be_called_and_nothing_else(field: Any) -> None:
    for value in FOLDERS:
        assert faults(field, value) == []
    for value, why in NO_FOLDERS.items():
        if field.is_local and value.startswith("s3:"):
            continue
        (text,) = faults(field, value)
        assert why in text


@given(st.text(max_size=300))
def test_what_is_left_there_has_a_name_whatever_the_folder_is_called(name: str) -> None:
    for output in (Path("runs") / name.replace("/", "-").replace("\0", "-"), Path(name.replace("\0", "-"))):
        assert describe_artifact("tokens", name_for(output), "1", inputs={}, config={}).name == name_for(output)


def test_a_plain_name_is_the_name() -> None:
    assert [name_for(parse_location(text)) for text in ("runs/demo-1.2_x", "s3://bucket/runs/tokens", "my tokens")] == [
        "demo-1.2_x", "tokens", "my_tokens",
    ]  # fmt: skip


def test_a_dry_run_refuses_it_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "job: prepare\noutput: runs/x\ncorpus: {kind: ljspeech, path: corpus}\ntext: {kind: characters}\n"
        "codec: {kind: mel_rvq}\n"
    )
    assert cli.run(["prepare", str(file), "--dry-run", "--set", "output=runs/my tokens"]) == 0
    assert "runs/my tokens" in capsys.readouterr().out
    assert cli.run(["prepare", str(file), "--dry-run", "--set", "output=" + "x" * 300]) == 2
    assert "has 300 bytes, and the name of an output's folder at most 250; shorten it" in capsys.readouterr().err


def test_two_jobs_of_a_tour_with_one_output_are_refused_unless_they_are_one_job(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job, file = load_tree(Path("jobs/configs/demo.yaml"))["jobs"][0], tmp_path / "tour.yaml"
    for other, code in ((job, 0), ({**job, "max_reject_fraction": 0.5}, 2)):
        file.write_text(json.dumps({"job": "demo", "output": "runs/x", "jobs": [job, other]}))
        assert cli.run(["demo", str(file), "--dry-run"]) == code
    assert f"{file}: two jobs write to {job['output']}, which holds one result" in capsys.readouterr().err
