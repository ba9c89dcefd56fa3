"""The log and the end of a cluster's job, when connections, the cluster or what runs the job are lost."""

import http.server
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import pytest
from ray.job_submission import JobDetails, JobStatus, JobType

from retort.errors import MissingRequirementError, NodeLostError, RetortError, StorageError
from retort.orchestration import ray_jobs
from retort.orchestration.ray_jobs import await_end, connect

AT = "http://127.0.0.1:8265"


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_jobs, "_PAUSE_S", 0.0)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")


class Dashboard(http.server.BaseHTTPRequestHandler):
    """Answers who it is, and everything else as a proxy does whose Ray is gone."""

    def do_GET(self) -> None:
        is_version = self.path == "/api/version"
        self.send_response(200 if is_version else 502)
        self.end_headers()
        self.wfile.write(b'{"version": "4", "ray_version": "2.60.0", "ray_commit": ""}' if is_version else b"")

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def dashboard() -> Iterator[http.server.ThreadingHTTPServer]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Dashboard)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("is_up", [True, False], ids=["its proxy is there", "nothing is there"])
def test_a_cluster_that_is_gone_is_told_while_a_job_is_followed(
    dashboard: http.server.ThreadingHTTPServer, is_up: bool
) -> None:
    """By Ray's own client: its errors of connections are those of aiohttp and of requests."""
    address = f"http://127.0.0.1:{dashboard.server_port}"
    client = connect(address)
    if not is_up:
        dashboard.shutdown()
        dashboard.server_close()
    with pytest.raises(StorageError, match=rf"the log of job was lost: {address}: .*; the job may go on"):
        await_end(client, address, "job", log=lambda _: None)
    for ask in (lambda: ray_jobs.latest_try(client, address, "job"), lambda: ray_jobs.log_of(address, "job")):
        with pytest.raises(StorageError, match=address):
            ask()


class Job:
    """A job as Ray's client tells it: what each connection brings until it is lost, and how the job ends."""

    def __init__(self, connections: Sequence[Sequence[str]], **details: Any) -> None:
        self.left = list(connections)
        self.details = JobDetails(type=JobType.SUBMISSION, entrypoint="retort", **details)

    async def tail_job_logs(self, _: str) -> AsyncIterator[str]:
        for text in self.left.pop(0):
            yield text
        if self.left:
            raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")

    def get_job_status(self, _: str) -> JobStatus:
        return JobStatus.RUNNING if self.left else self.details.status

    def get_job_info(self, _: str) -> JobDetails:
        return self.details


def test_a_job_that_is_silent_for_days_is_followed_however_often_its_connection_is_lost() -> None:
    """After each loss the cluster tells the log from its beginning."""
    parts = ["step 1\n", "step 2\n", "step 3\n"]
    job, shown = Job([*[parts[:1]] * 20, *[parts[:2]] * 20, parts], status=JobStatus.SUCCEEDED), []
    assert await_end(job, AT, "job", log=shown.append) == 0
    assert shown == parts


def test_a_log_that_brings_nothing_any_more_is_given_up() -> None:
    job = Job([["step 1\n"], *[[]] * 20], status=JobStatus.SUCCEEDED)
    with pytest.raises(StorageError, match=r"the log of job was lost: .* 1006; the job may go on"):
        await_end(job, AT, "job", log=lambda _: None)
    assert len(job.left) == 20 - ray_jobs._RECONNECTIONS


def test_what_cannot_be_shown_is_no_lost_connection() -> None:
    def closed(_: str) -> None:
        raise BrokenPipeError("standard output is closed")

    with pytest.raises(BrokenPipeError):
        await_end(Job([["step 1\n"]] * 2, status=JobStatus.SUCCEEDED), AT, "job", log=closed)


@pytest.mark.parametrize(
    ("error_type", "node", "error"),
    [
        ("JOB_SUPERVISOR_ACTOR_DIED", "abc", NodeLostError),
        # A head that came back without the actor says so.
        ("JOB_SUPERVISOR_ACTOR_START_FAILURE", "abc", NodeLostError),
        ("JOB_SUPERVISOR_ACTOR_START_FAILURE", None, MissingRequirementError),
        ("JOB_SUPERVISOR_ACTOR_UNSCHEDULABLE", None, MissingRequirementError),
        ("RUNTIME_ENV_SETUP_FAILURE", None, MissingRequirementError),
    ],
)
def test_an_end_without_an_exit_code_is_a_lost_node_where_the_job_had_begun(
    error_type: str, node: str | None, error: type[RetortError], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_jobs, "_ANSWER_S", 0.0)
    job = Job([[]], status=JobStatus.FAILED, error_type=error_type, driver_node_id=node, message="Ray's words")
    with pytest.raises(error, match=r"job: .*Ray's words|run job: Ray's words"):
        await_end(job, AT, "job", log=lambda _: None)
