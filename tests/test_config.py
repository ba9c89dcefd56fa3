import contextlib
import json
import pickle
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, TypeAdapter, ValidationError

from retort.config import Config, apply_overrides, load_config, load_tree, validate
from retort.errors import ConfigError


class Optimizer(Config):
    learning_rate: float = Field(gt=0)
    betas: tuple[float, float] = (0.9, 0.95)


class Two(Config):
    kind: Literal["two_term"] = "two_term"
    scale: float


class Three(Config):
    kind: Literal["three_term"] = "three_term"
    first_scale: float
    second_scale: float


Guidance = Annotated[Two | Three, Field(discriminator="kind")]


class System(Config):
    name: str
    guidance: Guidance | None = None


class Train(Config):
    job: Literal["train"]
    output: Path
    optimizer: Optimizer
    systems: tuple[System, ...] = ()
    limit: int | str | None = None


class Report(Config):
    job: Literal["report"]
    scale: float = 1.0


class Tour(Config):
    job: Literal["tour"]
    jobs: tuple[Annotated[Train | Report, Field(discriminator="job")], ...]


Run = Annotated[Train | Report | Tour, Field(discriminator="job")]

GOOD = """\
job: train
output: runs/x
optimizer:
  learning_rate: 1e-3
systems:
  - name: first
    guidance: {kind: two_term, scale: 1.5}
  - name: second
    guidance:
      kind: three_term
      first_scale: 1.5
      second_scale: 2.0
"""


def load(tmp_path: Path, text: str, *overrides: str) -> Any:
    file = tmp_path / "run.yaml"
    file.write_text(text, encoding="utf-8")
    return load_config(file, Run, overrides=overrides)


def fault(tmp_path: Path, text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, *overrides)
    return str(caught.value).replace(str(tmp_path / "run.yaml"), "FILE")


def test_good_file_loads_with_yaml_types(tmp_path: Path) -> None:
    config = load(tmp_path, GOOD)
    assert config.optimizer.learning_rate == 1e-3
    assert config.output == Path("runs/x")
    assert config.systems[1].guidance == Three(first_scale=1.5, second_scale=2.0)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "  learning_rate: 1e-3",
            "  learning_rate: 1e-3\n  beta: [0.9, 0.95]",
            "FILE:5: optimizer.beta: unknown key 'beta'; did you mean 'betas'?",
        ),
        (
            "scale: 1.5}",
            "scal: 1.5, scale: 1.5}",
            "FILE:7: systems.0.guidance.scal: unknown key 'scal'; did you mean 'scale'?",
        ),
        (
            "      first_scale: 1.5\n",
            "      first_scale: 1.5\n      frist_scale: 1\n",
            "FILE:12: systems.1.guidance.frist_scale: unknown key 'frist_scale'; did you mean 'first_scale'?",
        ),
        (
            "output: runs/x\n",
            "output: runs/x\nlearning_rate: 1\n",
            "FILE:3: learning_rate: unknown key 'learning_rate'; did you mean 'optimizer.learning_rate'?",
        ),
        (
            "  - name: second\n",
            "  - name: second\n    zzz: 1\n",
            "FILE:9: systems.1.zzz: unknown key 'zzz'; remove it, or use one of guidance, name",
        ),
        (
            "kind: three_term",
            "kind: three_terms",
            "FILE:10: systems.1.guidance.kind: unknown value 'three_terms'; did you",
        ),
        ("      kind: three_term\n", "", "FILE:9: systems.1.guidance.kind: required key is missing; one of three_term"),
        ("      second_scale: 2.0\n", "", "FILE:9: systems.1.guidance.second_scale: required key is missing"),
        (
            "first_scale: 1.5",
            "first_scale: fast",
            "FILE:11: systems.1.guidance.first_scale: Input should be a valid number",
        ),
        (
            "name: second",
            "name: 12",
            "FILE:8: systems.1.name: Input should be a valid string (got 12); put it in quotes",
        ),
        ("1e-3", "-1e-3", "FILE:4: optimizer.learning_rate: Input should be greater than 0 (got -0.001)"),
        ("output: runs/x\n", "", "FILE: output: required key is missing"),
        (
            "job: train",
            "job: trian",
            "FILE:1: job: unknown value 'trian'; did you mean 'train'? It is one of report, tour",
        ),
    ],
)
def test_fault_names_the_line_the_dotted_key_and_the_cure(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert old in GOOD
    assert fault(tmp_path, GOOD.replace(old, new)).startswith(expected)


def test_names_are_suggested_only_where_they_are_valid(tmp_path: Path) -> None:
    # "scale" is a key of the other guidance and of the other job: it is not valid here.
    text = fault(tmp_path, GOOD.replace("      second_scale: 2.0", "      second_scale: 2.0\n      scale: 2.0"))
    assert "did you mean 'first_scale'" in text or "did you mean 'second_scale'" in text


def test_faults_inside_a_list_of_jobs_carry_no_union_tags(tmp_path: Path) -> None:
    report, train = (
        "  - job: report\n    scal: 2.0\n",
        "  - job: train\n    output: x\n    optimizer:\n      betas: [1]\n",
    )
    text = "job: tour\njobs:\n" + report + train
    lines = fault(tmp_path, text).splitlines()
    assert lines[0] == "FILE:4: jobs.0.scal: unknown key 'scal'; did you mean 'scale'?"
    assert "FILE:7: jobs.1.optimizer.learning_rate: required key is missing" in lines
    assert any(line.startswith("FILE:8: jobs.1.optimizer.betas.1: required key is missing") for line in lines)


def test_plain_union_is_located_without_the_branch(tmp_path: Path) -> None:
    lines = fault(tmp_path, GOOD + "limit: [1]\n").splitlines()
    assert all(line.startswith("FILE:13: limit: ") for line in lines)


def test_what_is_alike_may_be_said_once_and_faults_in_it_are_told_where_they_stand(tmp_path: Path) -> None:
    first = "  - {job: train, output: x, optimizer: &alike {betas: [0.5, 0.9], learning_rate: 0.1}}\n"
    second = "  - {job: train, output: y, optimizer: {<<: *alike, learning_rate: 0.2}}\n"
    path = tmp_path / "run.yaml"
    path.write_text("job: tour\njobs:\n" + first + second)
    tour = load_config(path, Run)
    assert [job.optimizer for job in tour.jobs] == [
        Optimizer(learning_rate=0.1, betas=(0.5, 0.9)),
        Optimizer(learning_rate=0.2, betas=(0.5, 0.9)),
    ]
    lines = fault(tmp_path, "job: tour\njobs:\n" + first + second.replace("0.2", "-1.0")).splitlines()
    assert lines == [lines[0]]
    assert lines[0].startswith("FILE:4: jobs.1.optimizer.learning_rate: Input should be greater than 0")
    twice = second.replace("0.2", "0.2, learning_rate: 0.3")
    assert "the key 'learning_rate' appears twice" in fault(tmp_path, "job: tour\njobs:\n" + first + twice)


@pytest.mark.parametrize(
    ("text", "line", "first"),
    [("job: report\nscale: 1.0\nscale: 2.0\n", 3, 2), (GOOD + "    name: again\n", 13, 8)],
)
def test_duplicate_key_is_refused_with_both_lines(tmp_path: Path, text: str, line: int, first: int) -> None:
    message = fault(tmp_path, text)
    assert message.startswith(f"FILE: line {line}: the key")
    assert f"first in line {first}" in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "this one is empty"),
        ("- 1\n", "this one is a list"),
        ("a: [1\n", "not valid YAML"),
        ("no: 1\n", "the key False is not text; put it in quotes"),
        ("? [a]\n: 1\n", "the key ['a'] is not text"),
        ("a: &a [*a]\n", "not valid YAML"),
        ("a: 1\n---\nb: 2\n", "not valid YAML"),
        ("day: 2026-02-31\n", "not valid YAML"),
        ("a: " + "[" * 3000, "nested too deeply"),
    ],
)
def test_files_that_are_no_run_files_are_refused(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in fault(tmp_path, text)


def test_missing_and_binary_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_tree(tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_tree(tmp_path / "binary.yaml")


def test_overrides_edit_maps_and_lists_and_are_validated(tmp_path: Path) -> None:
    config = load(
        tmp_path, GOOD, "optimizer.learning_rate=2e-4", "systems.1.guidance.second_scale=3.5", "systems.0.name=x"
    )
    assert (config.optimizer.learning_rate, config.systems[1].guidance.second_scale) == (2e-4, 3.5)
    assert config.systems[0].name == "x"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optimizer.learning_rte=1", "--set optimizer.learning_rte=1: optimizer.learning_rte: unknown key"),
        (
            "systems.0.guidance={kind: two_term, scale: x}",
            "--set systems.0.guidance={kind: two_term, scale: x}: systems.0",
        ),
        ("systems.7.name=x", "--set systems.7.name=x: '7' is not an index below 2"),
        ("systems.x.name=x", "'x' is not an index"),
        ("nothing", "expected a.b=value"),
        ("=3", "expected a.b=value"),
        ("output.x=[{a: 1, a: 2}]", "the key 'a' appears twice"),
        ("optimizer.betas.0.x=1", "--set optimizer.betas.0.x=1: optimizer.betas: Input should be a valid array"),
    ],
)
def test_faulty_override_is_named(tmp_path: Path, override: str, expected: str) -> None:
    assert expected in fault(tmp_path, GOOD, override)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda x: st.lists(x) | st.dictionaries(st.text(), x),
    )
)
def test_whatever_the_tree_holds_only_config_errors_come_out(value: Any) -> None:
    for tree in ({"job": value}, {"job": "train", "systems": value}, {"job": "report", "scale": value}, {"a": value}):
        with contextlib.suppress(ConfigError):
            assert validate(tree, Run, where="tree").job == tree["job"]


def test_replace_validates_the_whole() -> None:
    optimizer = Optimizer(learning_rate=0.1)
    assert optimizer.replace(learning_rate=0.2) == Optimizer(learning_rate=0.2)
    with pytest.raises(ValidationError):
        optimizer.replace(learning_rate=-1.0)


def test_configuration_is_frozen_and_survives_pickling_and_its_own_tree(tmp_path: Path) -> None:
    config = load(tmp_path, GOOD)
    with pytest.raises(ValidationError):
        config.limit = 3
    assert pickle.loads(pickle.dumps(config)) == config
    tree = json.loads(json.dumps(config.model_dump(mode="json")))
    assert validate(tree, Run, where="tree") == config
    assert TypeAdapter(Run).validate_python(config) == config


def test_apply_overrides_leaves_its_input_alone() -> None:
    tree = {"a": {"b": 1}}
    assert apply_overrides(tree, ["a.b=2", "c.d=x"]) == {"a": {"b": 2}, "c": {"d": "x"}}
    assert tree == {"a": {"b": 1}}
