"""What an evaluation refuses before it starts anything."""

import json
from pathlib import Path

import pytest

from retort.config import load_tree, validate
from retort.data.tokens import TokenSet
from retort.errors import ConfigError, DataError
from retort.evaluation.judge import TestStrings
from retort.orchestration.cluster import ray_session
from retort.orchestration.evaluate.job import run_evaluate
from retort.orchestration.evaluate.system_facts import describe_system
from retort.orchestration.progress import QuietProgress
from retort.run_config import EvaluateConfig
from tests.inference.speaking import speaking_model
from tests.orchestration.tiny_runs import write_teacher, write_token_set


def config(output: Path, data: Path, systems: list[dict[str, object]], **changes: object) -> EvaluateConfig:
    tree = load_tree(Path("jobs/configs/demo.yaml"))["jobs"][-1]
    tree |= {"output": str(output), "data": str(data), "systems": systems, "comparisons": [], "num_strings": 3}
    tree |= {"confidence_teacher": None, **changes}
    return validate(tree, EvaluateConfig, where="test")


def model(path: Path, **changes: object) -> dict[str, object]:
    return {"name": "m", "kind": "model", "role": "teacher", "model": str(path), **changes}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("evaluate")
    data = write_token_set(root / "data")
    return data, write_teacher(root / "teacher", data)


def test_more_strings_than_there_are_is_refused(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    data, _ = folders
    asked = config(tmp_path / "out", data, [{"name": "r", "kind": "recordings"}], num_strings=999)
    with pytest.raises(DataError, match="num_strings asks for 999"):
        run_evaluate(asked, QuietProgress())


def test_guidance_that_the_model_was_not_trained_for_is_refused(tmp_path: Path) -> None:
    student = speaking_model(tmp_path, distilled=True)
    guided = model(student, decoding={"kind": "codec_lm", "guidance": {"kind": "two_term", "scale": 1.5}})
    asked = config(tmp_path / "out", tmp_path / "data", [guided], split="train", num_strings=2)
    strings = TestStrings(tmp_path / "data", split="train", count=2)
    with pytest.raises(ConfigError, match="guide twice"):
        describe_system(asked.systems[0], asked, strings)


def test_a_model_of_another_codec_is_refused_with_both_fingerprints(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    data, _ = folders
    other = speaking_model(tmp_path)
    ours, theirs = (TokenSet.open(folder).description.codec_fingerprint for folder in (data, tmp_path / "data"))
    with pytest.raises(DataError, match=theirs) as error:
        run_evaluate(config(tmp_path / "out", data, [model(other)]), QuietProgress())
    assert ours in str(error.value)


def test_systems_and_comparisons_must_be_named_consistently(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    data, _teacher = folders
    reference = {"name": "r", "kind": "recordings"}
    with pytest.raises(ConfigError, match="names must differ"):
        config(tmp_path, data, [reference, reference])
    with pytest.raises(ConfigError, match="the systems are"):
        config(tmp_path, data, [reference], comparisons=[["r", "ghost"]])
    with pytest.raises(ConfigError, match="path of a system"):
        config(tmp_path, data, [{"name": "m", "kind": "model", "role": "student"}])


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_pool_that_does_not_fit_is_as_large_as_fits(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    """An actor without room would take its share of the pieces and never begin."""
    data, _ = folders
    asked = config(
        tmp_path / "out",
        data,
        [{"name": "r", "kind": "resynthesis"}],
        batch_size=1,
        pool={"size": 3},
        speed=None,
        speaker_encoder=None,
        num_resamples=100,
    )
    with ray_session(num_cpus=1):
        assert run_evaluate(asked, QuietProgress())["systems"].keys() == {"r"}
    summary = json.loads((tmp_path / "out" / "result" / "summary.json").read_text())
    assert [system["utterances"] for system in summary["systems"]] == [3]
