from pathlib import Path

import pytest

from retort import errors
from retort.errors import QualityGateError, ResourceError, RetortError
from retort.orchestration.failures import clear_failure, error_of, read_failure, write_failure
from retort.store.s3_faults import StoreFault, make_fault

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, RetortError)]


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_arrives_as_what_it_is(tmp_path: Path, kind: type[RetortError]) -> None:
    write_failure(tmp_path, kind("the value 3 is wrong; use 4"), run="a")
    found = read_failure(tmp_path, run="a")
    assert type(found) is kind
    assert str(found) == "the value 3 is wrong; use 4"
    assert read_failure(tmp_path, run="b") is None
    clear_failure(tmp_path)
    clear_failure(tmp_path)
    assert read_failure(tmp_path, run="a") is None


def test_a_special_error_arrives_as_its_public_kind(tmp_path: Path) -> None:
    write_failure(tmp_path, make_fault(StoreFault.BUSY, "s3://b/k", "HTTP 503"), run="a")
    found = read_failure(tmp_path, run="a")
    assert type(found) is errors.StorageError
    assert "s3://b/k" in str(found)


def test_rays_wrapping_comes_off() -> None:
    from ray.exceptions import ActorDiedError, RayTaskError
    from ray.train import ControllerError, WorkerGroupError

    ours = QualityGateError("the loss is nan")
    wrapped = RayTaskError("train", "a long traceback", ours)
    lost_peer = RuntimeError("connection closed by peer")
    assert error_of(WorkerGroupError("text", {0: lost_peer, 1: wrapped})) is ours
    bug = KeyError("x")
    assert error_of(WorkerGroupError("text", {0: bug})) is bug
    assert error_of(ControllerError(RayTaskError("f", "t", bug))) is bug
    died = error_of(WorkerGroupError("rank 0: the actor died", {0: ActorDiedError()}))
    assert isinstance(died, ResourceError)
    assert died.exit_code == 6
    assert "run the same command again" in str(died)
