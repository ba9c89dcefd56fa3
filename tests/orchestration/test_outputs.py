import io
import json
from pathlib import Path

import pytest

from retort.config import Config
from retort.errors import ConfigError, DataError, StorageError
from retort.orchestration.outputs import absolute_paths, differing_keys, job_output, run_once
from retort.orchestration.progress import PlainProgress, QuietProgress, terminal_progress
from retort.store.artifact import Artifact, describe_artifact, write_artifact
from retort.store.results import RESULT, RUN_FILE, result_of


class _Job(Config):
    job: str = "try"
    output: Path
    data: Path = Path("data")
    steps: int = 3
    sizes: tuple[int, ...] = (1, 2)


def _finish(job: _Job) -> Artifact:
    info = describe_artifact("model", "m", "1", inputs={}, config=job.model_dump(mode="json"))
    return write_artifact(job.output / RESULT, info, lambda folder: (folder / "x").write_text("x") and None)


def _again(job: _Job) -> tuple[Path, list[str]]:
    """Run a job that has a result, which therefore does nothing: the result, and what was said."""
    stream = io.StringIO()
    artifact, seconds = run_once(job, PlainProgress(stream), lambda: pytest.fail("the work was done twice"))
    assert seconds == 0.0
    return artifact.path, stream.getvalue().splitlines()


def test_the_result_is_found_from_the_output_and_from_itself(tmp_path: Path) -> None:
    job = _Job(output=tmp_path / "out")
    with pytest.raises(DataError, match="no such folder"):
        result_of(job.output)
    with job_output(job) as output:
        assert output == job.output
        assert "steps: 3" in (output / RUN_FILE).read_text()
        with pytest.raises(StorageError, match="another run writes it"), job_output(job):
            raise AssertionError("two runs held one output")
    with pytest.raises(DataError, match="has not finished"):
        result_of(job.output)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="neither"):
        result_of(tmp_path / "empty")
    _finish(job)
    assert result_of(job.output) == result_of(job.output / RESULT) == job.output / RESULT


def test_a_finished_job_is_known_by_its_configuration(tmp_path: Path) -> None:
    job = _Job(output=tmp_path / "out")
    made, seconds = run_once(job, QuietProgress(), lambda: _finish(job))
    assert made.path == job.output / RESULT
    assert seconds > 0.0
    assert _again(job) == (made.path, [f"try: {job.output} is finished"])
    with pytest.raises(ConfigError, match=r"steps: 3 → 4; sizes\.1: 2 → 5") as refused:
        _again(_Job(output=job.output, steps=4, sizes=(1, 5)))
    assert "another output" in str(refused.value)
    job.output.rename(tmp_path / "moved")
    assert _again(_Job(output=tmp_path / "moved"))[0] == tmp_path / "moved" / RESULT
    (tmp_path / "moved" / RESULT / "x").write_text("y")
    with pytest.raises(StorageError, match="damaged"):
        _again(_Job(output=tmp_path / "moved"))


def test_differing_keys_names_each_leaf_once() -> None:
    old = {"a": {"b": 1, "c": [1, 2]}, "gone": True}
    assert differing_keys(old, old) == []
    new = {"a": {"b": 2, "c": [1, 2, 3]}, "new": None}
    assert differing_keys(old, new) == [
        "a.b: 1 → 2",
        "a.c.2: (absent) → 3",
        "new: (absent) → None",
        "gone: True → (absent)",
    ]
    assert differing_keys(old, new, ignore=("a", "gone")) == ["new: (absent) → None"]
    assert differing_keys({"ab": 1}, {"ab": 2}, ignore=("a",)) == ["ab: 1 → 2"]


def test_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    job = absolute_paths(_Job(output=Path("out"), data=Path("/there")))
    assert (job.output, job.data, job.sizes) == (tmp_path / "out", Path("/there"), (1, 2))


def test_plain_progress_writes_few_lines_and_always_the_last() -> None:
    stream = io.StringIO()
    with terminal_progress(stream) as progress:
        assert isinstance(progress, PlainProgress)
        for done in range(1, 101):
            progress.update(done, 100, f"loss {done}")
        progress.update(100, 100, "loss 100")
        progress.log("kept")
    assert stream.getvalue().splitlines() == ["1/100 loss 1", "100/100 loss 100", "kept"]


def test_run_file_is_the_resolved_configuration(tmp_path: Path) -> None:
    job = _Job(output=tmp_path / "out", steps=7)
    with job_output(job) as output:
        import yaml

        assert _Job.model_validate_json(json.dumps(yaml.safe_load((output / RUN_FILE).read_text()))) == job
