"""Jobs on a cluster of several raylets, which lose a node, the head, or the storage that they share."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.patience import HANG_S, comes

pytestmark = [pytest.mark.ray, pytest.mark.slow]

JOB = """
import sys, time
from pathlib import Path
from retort.errors import RetortError
from retort.orchestration.demand import Demand
from retort.orchestration.progress import PlainProgress
from retort.orchestration.room import Patience
from retort.orchestration.workplace import workplace

output, count, wait_s, marks = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), Path(sys.argv[4])

def task(number):
    (marks / f"began-{number}").touch()
    while not (marks / "enough").exists():
        time.sleep(0.1)
    return number

def work(progress):
    import ray
    # Ray itself would wait for ever for a node that holds all of them.
    return ray.get([ray.remote(num_cpus=1, max_retries=3)(task).remote(n) for n in range(count)])

try:
    demand = Demand("workers", count, count, 1.0, 0.0, wait_s)
    with workplace(output, demand, PlainProgress(sys.stderr), patience=Patience(1.0, 0.2)) as place:
        print(place.run(work), flush=True)
except RetortError as error:
    print(f"retort: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
"""


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head that holds no worker."""
    from ray.cluster_utils import Cluster

    health = {"health_check_period_ms": 500, "health_check_failure_threshold": 3}
    made = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False, "_system_config": health},
    )
    yield made
    made.shutdown()


class Job:
    """The job above, started."""

    def __init__(self, folder: Path, cluster: Any, *, count: int, wait_s: float = 0.0) -> None:
        self.folder, self.output = folder, folder / "out"
        self.output.mkdir(exist_ok=True)
        environment = {
            **os.environ,  # noqa: TID251 - of the tests themselves
            "RAY_ADDRESS": cluster.address,
            "RAY_gcs_rpc_server_reconnect_timeout_s": "20",
        }
        command = [sys.executable, "-c", JOB, str(self.output), str(count), str(wait_s), str(folder)]
        self.errors = (folder / "stderr.txt").open("w+b")
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.errors, env=environment)

    def wait_for(self, name: str) -> None:
        assert comes(lambda: (self.folder / name).exists() or self.process.poll() is not None)
        assert (self.folder / name).exists(), self.said()

    def enough(self) -> None:
        (self.folder / "enough").touch()

    def said(self) -> str:
        return (self.folder / "stderr.txt").read_text()

    def end(self) -> int:
        code = self.process.wait()
        assert "Traceback" not in self.said(), self.said()
        assert not any(line.startswith(("[20", "20", "(raylet")) for line in self.said().splitlines()), self.said()
        return code


def test_a_cluster_that_is_too_small_is_waited_for_aloud(cluster: Any, tmp_path: Path) -> None:
    cluster.add_node(num_cpus=1)
    job = Job(tmp_path, cluster, count=2, wait_s=2.0)
    assert job.end() == 6
    assert "waiting for nodes, 0 s of at most 2: needed are 2 workers of 1 CPU each, there are 2 nodes with 1 CPU" in (
        job.said()
    )
    assert "the cluster is too small after 2 s" in job.said()


def test_a_node_that_comes_in_time_lets_the_work_begin(cluster: Any, tmp_path: Path) -> None:
    job = Job(tmp_path, cluster, count=1, wait_s=HANG_S)
    assert comes(lambda: "waiting for nodes" in job.said())
    cluster.add_node(num_cpus=1)
    job.enough()
    assert job.end() == 0, job.said()


def test_a_lost_node_is_told_and_ends_the_job_if_it_is_not_replaced(cluster: Any, tmp_path: Path) -> None:
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    job = Job(tmp_path, cluster, count=2, wait_s=3.0)
    job.wait_for("began-1")
    cluster.remove_node(nodes[0], allow_graceful=False)
    assert job.end() == 9, job.said()
    assert f"({nodes[0].node_id[:8]}) is lost" in job.said()
    assert "is lost and not replaced: the cluster is too small after" in job.said()


def test_a_lost_head_is_told_as_what_it_is(cluster: Any, tmp_path: Path) -> None:
    cluster.add_node(num_cpus=1)
    job = Job(tmp_path, cluster, count=1)
    job.wait_for("began-0")
    for process in psutil.Process().children(recursive=True):
        if "gcs_server" in process.name():
            process.send_signal(signal.SIGKILL)
    assert job.end() == 8, job.said()
    assert "the head of the cluster has not answered for" in job.said()
    assert "start the cluster again, and run the same command" in job.said()


def test_a_node_that_sees_another_folder_is_named(cluster: Any, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    if not shutil.which("unshare") or subprocess.run(["unshare", "-m", "true"], check=False).returncode:
        pytest.skip("needs the right to make a mount namespace")
    ray = Path(sys.executable).with_name("ray")
    start = f"mount -t tmpfs tmpfs {output} && exec {ray} start --address={cluster.address} --num-cpus=1 --block"
    with (tmp_path / "node.txt").open("wb") as log:
        node = subprocess.Popen(["unshare", "-m", "sh", "-c", start], stdout=log, stderr=log)
    try:
        job = Job(tmp_path, cluster, count=1, wait_s=HANG_S)
        job.enough()
        assert job.end() == 5, job.said()
        assert "is not the same folder on every node: on node " in job.said()
        assert "what the driver wrote there is not to be seen (No such file or directory)" in job.said()
        assert list(output.iterdir()) == []
    finally:
        for process in [*psutil.Process(node.pid).children(recursive=True), psutil.Process(node.pid)]:
            process.kill()
        node.wait()
