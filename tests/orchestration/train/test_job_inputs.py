"""What the driver refuses before Ray starts, and what it hands to the workers."""

import json
from pathlib import Path

import pytest

from retort.config import validate
from retort.errors import ConfigError, DataError
from retort.orchestration.progress import QuietProgress
from retort.orchestration.train.job import refuse_other_run, run_distill
from retort.orchestration.train.worker import Assignment, _is_written
from retort.store.artifact import Artifact, describe_artifact, write_artifact
from tests.orchestration.train_runs import distill, pretrain, write_teacher, write_tokens


@pytest.fixture
def data(tmp_path: Path) -> Artifact:
    return write_tokens(tmp_path / "data")


def test_mismatched_parts_are_refused_before_anything_starts(tmp_path: Path, data: Artifact) -> None:
    import ray

    write_teacher(tmp_path / "teacher", codec_fingerprint="codec-b")
    with pytest.raises(DataError, match=r"codec-b.*codec-a.*prepare the data with its codec"):
        run_distill(distill(tmp_path, "out"), QuietProgress())
    write_teacher(tmp_path / "second", text_fingerprint="text-b")
    with pytest.raises(DataError, match=r"text-b.*text-a"):
        run_distill(distill(tmp_path, "out", teacher=tmp_path / "second"), QuietProgress())
    assert not ray.is_initialized()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("init", ["teacher", "random"])
@pytest.mark.parametrize("kind", ["cfg_distill", "multilevel_distill"])
@pytest.mark.parametrize(
    ("shape", "told"),
    [({"num_layers": 9}, "num_layers: the student has 9, more than"), ({"dim": 512}, "dim: the student has 512, more")],
)
def test_a_student_larger_than_its_teacher_is_refused_before_anything_starts(
    tmp_path: Path, data: Artifact, init: str, kind: str, shape: dict[str, int], told: str
) -> None:
    import ray

    write_teacher(tmp_path / "teacher")
    student = {"kind": "shape", "dim": 32, "num_layers": 2, "num_heads": 2, "ffn_dim": 64, **shape}
    with pytest.raises(ConfigError, match=told):
        run_distill(distill(tmp_path, "out", student=student, init=init, method={"kind": kind}), QuietProgress())
    assert not ray.is_initialized()
    assert not (tmp_path / "out").exists()


def test_checkpoints_of_another_configuration_are_refused(tmp_path: Path, data: Artifact) -> None:
    job = pretrain(tmp_path, "out")
    (tmp_path / "out" / "checkpoints" / "step-00000004").mkdir(parents=True)
    (tmp_path / "out" / "run.yaml").write_text(json.dumps(job.model_dump(mode="json")))
    other = pretrain(tmp_path, "out", steps=7)
    refuse_other_run(other)  # nothing is committed yet
    write_artifact(
        tmp_path / "out" / "checkpoints" / "step-00000003",
        describe_artifact("x", "x", "1", inputs={}, config={}),
        lambda folder: None,
    )
    with pytest.raises(ConfigError, match=r"up to step 3.*training.steps: 6 → 7"):
        refuse_other_run(other)
    refuse_other_run(pretrain(tmp_path, "out", workers={"num_workers": 2}, log_every=5))


def test_a_run_survives_the_way_to_the_worker(tmp_path: Path) -> None:
    for job in (pretrain(tmp_path, "a"), distill(tmp_path, "b", method={"guidance_scales": [1.0, 2.0]})):
        tree = json.loads(json.dumps(Assignment(job, {"a": 1}, {"data": "x"}, "run").to_tree()))
        back = Assignment.from_tree(tree)
        assert back.config == validate(job.model_dump(mode="json"), type(job), where="job") == job
        assert (back.recorded_config, back.inputs, back.run) == ({"a": 1}, {"data": "x"}, "run")


def test_the_result_of_fewer_steps_is_not_the_one_that_this_run_wrote(tmp_path: Path) -> None:
    short, long = (pretrain(tmp_path, "out", steps=steps).model_dump(mode="json") for steps in (6, 9))
    result = tmp_path / "out" / "result"
    assert not _is_written(result, short)
    write_artifact(result, describe_artifact("x", "x", "1", inputs={}, config=short), lambda folder: None)
    assert _is_written(result, json.loads(json.dumps(short))), "before a rank was lost"
    assert not _is_written(result, long)
