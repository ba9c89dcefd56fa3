from pathlib import Path

import pytest

from retort import errors
from retort.errors import NodeLostError, QualityGateError, ResourceError, RetortError, StorageError
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
    from ray.exceptions import RayTaskError
    from ray.train import ControllerError, WorkerGroupError

    ours = QualityGateError("the loss is nan")
    wrapped = RayTaskError("train", "a long traceback", ours)
    lost_peer = RuntimeError("connection closed by peer")
    assert error_of(WorkerGroupError("text", {0: lost_peer, 1: wrapped})) is ours
    bug = KeyError("x")
    assert error_of(WorkerGroupError("text", {0: bug})) is bug
    assert error_of(ControllerError(RayTaskError("f", "t", bug))) is bug


def died(message: str) -> "Exception":
    """As Ray tells the death of an actor."""
    from ray.core.generated.common_pb2 import ActorDiedErrorContext
    from ray.exceptions import ActorDiedError

    return ActorDiedError(ActorDiedErrorContext(error_message=message, actor_id=b"0" * 16, class_name="RayTrainWorker"))


KILLED = "Worker unexpectedly exits with a connection error code 2. End of file."
NODE = "The actor died because its node has died. Node Id: 1f: the node was terminated unexpectedly."
MEMORY = "Task was killed due to the node running low on memory."
PEER = "[gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:1"


def gone(path: str) -> OSError:
    return FileNotFoundError(2, "No such file or directory", path)


@pytest.mark.parametrize(
    ("causes", "kind", "code", "said"),
    [
        ([died(KILLED)], ResourceError, 6, "killed again and again"),
        ([RuntimeError(PEER), died(KILLED)], ResourceError, 6, "End of file"),
        ([RuntimeError(PEER), died(NODE)], NodeLostError, 9, "a node of the cluster is lost (The actor died"),
        ([died(MEMORY), died(KILLED)], ResourceError, 6, "ran out of memory"),
        ([RuntimeError(PEER), gone("/shared/out/train.log")], StorageError, 5, "/shared/out/train.log: No such file"),
        ([RuntimeError(PEER), KeyError("x")], KeyError, None, "x"),
    ],
)
def test_what_happened_to_a_worker_is_told(causes: list[Exception], kind: type, code: int | None, said: str) -> None:
    from ray.train import WorkerGroupError

    for order in (causes, causes[::-1]):
        found = error_of(WorkerGroupError("text", dict(enumerate(order))))
        assert type(found) is kind
        assert getattr(found, "exit_code", None) == code
        assert said in str(found)
        assert code is None or "un the same command again" in str(found)


def test_errors_of_data_tasks_are_told_the_same_way() -> None:
    from ray.exceptions import NodeDiedError, OutOfMemoryError, RayTaskError

    assert type(error_of(RayTaskError("f", "t", gone("/shared/out")))) is StorageError
    assert type(error_of(NodeDiedError("Task failed because the node it was running on is dead or unavailable"))) is (
        NodeLostError
    )
    assert type(error_of(OutOfMemoryError("Task was killed"))) is ResourceError


def test_every_exit_code_means_one_thing() -> None:
    codes = [kind.exit_code for kind in KINDS if kind is not RetortError]
    assert sorted(codes) == [2, 3, 4, 5, 6, 7, 8, 9, 75]
    assert all(str(code) in (errors.__doc__ or "") for code in codes)
