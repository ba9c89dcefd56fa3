"""Submission to a real Ray with token authentication, and what happens when there is none."""

import contextlib
import http.server
import json
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest
import yaml

from retort import cli
from retort.errors import ConfigError, MissingRequirementError, NodeLostError, ResourceError, StorageError
from retort.orchestration import submit
from retort.orchestration.ray_jobs import check_answer
from retort.orchestration.submit import Execution, Submission, packed, resolved_config, submit_job, tracked_files
from tests.patience import HANG_S, ONE_TRY_S, comes

TOKEN = "0123456789abcdef" * 4


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    file = tmp_path / "report.yaml"
    file.write_text("job: report\nevaluation: absent\noutput: out\n")
    return file


def submission(run_file: Path, address: str = "http://127.0.0.1:1") -> Submission:
    return Submission("report", run_file, (), address)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    folder = tmp_path / "clone"
    (folder / "platform" / "retort").mkdir(parents=True)
    (folder / "platform" / "retort" / "__init__.py").write_text("")
    (folder / "kept.txt").write_text("tracked")
    (folder / "gone.txt").write_text("deleted later")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    (folder / "gone.txt").unlink()
    (folder / "secret.env").write_text("untracked")
    return folder


def test_pack_holds_what_git_tracks_and_the_run_file(clone: Path) -> None:
    with packed(clone, "job: report\n") as folder:
        files = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
        assert files == {"kept.txt", "platform/retort/__init__.py", submit.RUN_FILE_IN_PACK}
        assert (folder / submit.RUN_FILE_IN_PACK).read_text() == "job: report\n"
    assert not folder.exists()


def test_large_pack_is_refused_with_the_largest_files(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (clone / "weights.bin").write_bytes(b"x" * 3 * 2**20)
    monkeypatch.setattr(submit, "MAX_PACK_BYTES", 2**20)
    assert tracked_files(clone), "what git does not track does not count"
    git(clone, "add", "weights.bin")
    with pytest.raises(ResourceError, match=r"3 MiB, a pack may have 1; the largest: weights.bin \(3 MiB\)"):
        tracked_files(clone)


def test_folder_without_git_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingRequirementError, match="git clone"):
        tracked_files(tmp_path)


def test_this_clone_can_be_packed() -> None:
    names = {str(file.relative_to(submit.project_root())) for file in tracked_files(submit.project_root())}
    assert {"jobs/report.py", "platform/retort/cli.py"} <= names
    assert not any(name.startswith((".venv", ".git/")) for name in names)


def test_relative_paths_need_a_root_elsewhere(run_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = submission(run_file, "http://cluster.example:8265")
    with pytest.raises(ConfigError, match=r"evaluation is absent, output is out: relative.*--root"):
        resolved_config(elsewhere)
    assert resolved_config(replace(elsewhere, root=Path("/shared"))).output == Path("/shared/out")
    monkeypatch.chdir(run_file.parent)
    assert resolved_config(submission(run_file)).output == run_file.parent / "out"


def test_interpreter_is_this_one_here_and_python_elsewhere(run_file: Path) -> None:
    here, there = submission(run_file), submission(run_file, "https://cluster.example")
    assert here.entrypoint == f"{sys.executable} jobs/report.py {submit.RUN_FILE_IN_PACK}"
    assert there.entrypoint == f"python jobs/report.py {submit.RUN_FILE_IN_PACK}"
    assert replace(there, python="/opt/my python", execution=Execution(resume=False)).entrypoint.startswith(
        "'/opt/my python' jobs/"
    )
    assert replace(there, execution=Execution(resume=False)).entrypoint.endswith(" --no-resume")


@pytest.mark.parametrize(
    ("address", "error"),
    [
        ("127.0.0.1:8265", ConfigError),
        ("ftp://127.0.0.1", ConfigError),
        (f"http://127.0.0.1:{free_port()}", StorageError),
    ],
)
def test_wrong_address_is_told_at_once(
    run_file: Path, monkeypatch: pytest.MonkeyPatch, address: str, error: type[Exception]
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    with pytest.raises(error, match=r"127\.0\.0\.1"):
        submit_job(submission(run_file, address), log=lambda _: None)


def test_missing_token_is_told_with_the_cure(
    run_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "no-token"))
    assert cli.run(["submit", "report", str(run_file), "--address", "http://127.0.0.1:1"]) == StorageError.exit_code
    assert f"{tmp_path}/no-token does not exist and RAY_AUTH_TOKEN is not set" in capsys.readouterr().err


@contextlib.contextmanager
def answering(status: int, body: bytes, *, is_silent: bool = False) -> Iterator[str]:
    is_over = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if is_silent:
                is_over.wait()
            with contextlib.suppress(BrokenPipeError):  # the client that did not wait is the point of one test
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        is_over.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "body", "text"),
    [
        (401, b"", "refuses the token"),
        (403, b"", "refuses the token"),
        (502, b"", "answers 502"),
        (200, b"<html>a router</html>", "not a Ray dashboard"),
    ],
)
def test_whatever_else_answers_is_told(monkeypatch: pytest.MonkeyPatch, status: int, body: bytes, text: str) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    with answering(status, body) as address, pytest.raises(StorageError, match=text):
        check_answer(address)


def test_silent_host_is_no_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    with answering(200, b"", is_silent=True) as address, pytest.raises(StorageError, match="timed out"):
        check_answer(address, timeout_s=0.2)


@dataclass(frozen=True)
class Head:
    address: str
    token: Path
    agent: int


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A Ray head of two CPUs with a token of its own; it ends with its processes and nobody else's."""
    folder = Path(tempfile.mkdtemp(prefix="rt-"))  # short: Ray's sockets lie below it, and their paths are limited
    token, dashboard = folder / "token", free_port()
    token.write_text(TOKEN)
    token.chmod(0o600)
    ports = {name: free_port() for name in ("port", "ray-client-server-port", "dashboard-agent-listen-port")}
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_AUTH_MODE", "token")
        environment.setenv("RAY_AUTH_TOKEN_PATH", str(token))
        environment.delenv("RAY_AUTH_TOKEN", raising=False)
        environment.delenv("RAY_ADDRESS", raising=False)
        environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=2"]
        command += ["--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
        command += ["--disable-usage-stats", "--object-store-memory=100000000", f"--temp-dir={folder}"]
        command += ["--node-ip-address=127.0.0.1", *(f"--{name}={port}" for name, port in ports.items())]
        with (folder / "head.log").open("w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            _wait_until_it_answers(f"http://127.0.0.1:{dashboard}", process, folder / "head.log")
            yield Head(f"http://127.0.0.1:{dashboard}", token, ports["dashboard-agent-listen-port"])
        finally:
            _end(process)
            shutil.rmtree(folder, ignore_errors=True)


def _wait_until_it_answers(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    def answers() -> bool:
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(StorageError):
            check_answer(address, timeout_s=ONE_TRY_S)
            return True
        return False

    assert comes(answers), log.read_text()


def _end(process: subprocess.Popen[bytes]) -> None:
    mine = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(mine, timeout=ONE_TRY_S)
    for child in alive:
        child.kill()
    if process.poll() is None:
        process.kill()
    process.wait()


def retort(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, as a person runs it: Ray reads a token once per process and keeps it."""
    code = "import sys; from retort.cli import run; sys.exit(run(sys.argv[1:]))"
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=HANG_S, check=False)


@pytest.mark.ray
def test_job_runs_there_with_its_log_and_exit_code(head: Head, run_file: Path) -> None:
    folder = run_file.parent
    # The evaluation is not there: the entry script says so at the cluster and ends with the code of bad data.
    ended = retort(folder, "submit", "report", "report.yaml", "--address", head.address)
    assert ended.returncode == 3, ended.stderr
    assert f"retort: {folder}/absent: no such folder" in ended.stdout
    assert ended.stdout.startswith("submitted report as retort-report-")
    # An output that exists and --no-resume: refused there with the code of bad usage.
    (folder / "out").mkdir()
    (folder / "out" / "kept.txt").write_text("mine")
    ended = retort(folder, "submit", "report", "report.yaml", "--address", head.address, "--no-resume")
    assert ended.returncode == 2, ended.stderr
    assert "leave --no-resume out" in ended.stdout


@pytest.mark.ray
def test_a_job_that_nobody_waits_for_is_listed_read_and_attached_to(head: Head, run_file: Path) -> None:
    folder, at = run_file.parent, ("--address", head.address)
    run_file.write_text("job: report\nevaluation: absent_too\noutput: out\n")
    submitted = retort(folder, "submit", "report", "report.yaml", *at, "--no-wait")
    assert submitted.returncode == 0, submitted.stderr
    identity = submitted.stdout.split(" as ")[1].split()[0]
    attached = retort(folder, "jobs", "attach", identity, *at)
    assert attached.returncode == 3, attached.stderr
    told = f"retort: {folder}/absent_too: no such folder"
    assert told in attached.stdout
    assert told in retort(folder, "jobs", "logs", identity, *at).stdout
    listed = retort(folder, "jobs", "list", *at, "--json")
    row = next(row for row in json.loads(listed.stdout)["jobs"] if row["identity"] == identity)
    assert (row["job"], row["status"], row["exit_code"]) == ("report", "FAILED", 3)
    assert identity in retort(folder, "jobs", "list", *at).stdout
    # The same job again has the same name, and the number of its try.
    again = retort(folder, "submit", "report", "report.yaml", *at)
    assert again.stdout.startswith(f"submitted report as {identity}-2 ")
    for verb in ("logs", "attach", "stop"):
        unknown = retort(folder, "jobs", verb, "retort-report-nowhere", *at)
        assert unknown.returncode == 2, unknown.stderr
        assert "knows no such job" in unknown.stderr


@pytest.mark.ray
def test_a_running_job_is_attached_to_and_stopped_when_its_time_is_up(head: Head, tmp_path: Path) -> None:
    """It sleeps where the entry script would begin."""
    sleeper = script(tmp_path / "sleeper", "echo asleep; exec sleep 1000000")
    (tmp_path / "report.yaml").write_text("job: report\nevaluation: asleep\noutput: out\n")
    arguments = ("submit", "report", "report.yaml", "--address", head.address, "--python", str(sleeper))
    first = retort(tmp_path, *arguments, "--no-wait")
    identity = first.stdout.split(" as ")[1].split()[0]
    second = retort(tmp_path, *arguments, "--timeout-s", "5")
    assert second.returncode == ResourceError.exit_code, second.stderr
    assert second.stdout.startswith(f"report runs already as {identity} ")
    assert f"{identity}: not done after 5 s, and stopped" in second.stderr
    third = retort(tmp_path, *arguments, "--no-wait", "--env", "A=b")
    assert f"as {identity}-2 " in third.stdout
    stopped = retort(tmp_path, "jobs", "stop", f"{identity}-2", "--address", head.address)
    assert (stopped.returncode, stopped.stdout) == (0, f"{identity}-2: STOPPED\n"), stopped.stderr
    assert retort(tmp_path, "jobs", "attach", f"{identity}-2", "--address", head.address).returncode == 130


@pytest.mark.ray
def test_what_may_pass_is_tried_again_with_its_environment(head: Head, tmp_path: Path) -> None:
    flaky = script(tmp_path / "flaky", f"echo $GREETING; rm {tmp_path}/first 2>/dev/null && exit 6; exit 0")
    (tmp_path / "first").touch()
    (tmp_path / "report.yaml").write_text("job: report\nevaluation: flaky\noutput: out\n")
    arguments = ("submit", "report", "report.yaml", "--address", head.address, "--python", str(flaky))
    ended = retort(tmp_path, *arguments, "--retries", "2", "--env", "GREETING=hello there", "--driver-cpus", "0.5")
    assert ended.returncode == 0, ended.stderr
    assert "ended with exit code 6; it is tried again, 2 of 2 retries left" in ended.stdout
    assert ended.stdout.count("hello there\n") == 2


@pytest.mark.ray
def test_a_job_whose_supervisor_is_lost_is_tried_again(head: Head, tmp_path: Path) -> None:
    """As with its node: Ray has no exit code of the entry script then."""
    begun = tmp_path / "begun"
    mortal = script(tmp_path / "mortal", f"[ -e {begun} ] && exit 0; echo $$ > {begun}; exec sleep 1000000")
    (tmp_path / "report.yaml").write_text("job: report\nevaluation: mortal\noutput: out\n")
    arguments = ("submit", "report", "report.yaml", "--address", head.address, "--python", str(mortal))
    for retries, code in (("1", 0), ("0", NodeLostError.exit_code)):
        begun.unlink(missing_ok=True)
        killer = threading.Thread(target=kill_the_supervisor_of, args=(begun,))
        killer.start()
        ended = retort(tmp_path, *arguments, "--retries", retries)
        killer.join()
        assert ended.returncode == code, ended.stdout + ended.stderr
        assert "what ran its entry script at the cluster is gone" in (ended.stderr if code else ended.stdout)
        assert ("ended with exit code 9; it is tried again, 1 of 1 retries left" in ended.stdout) == (code == 0)


def kill_the_supervisor_of(begun: Path) -> None:
    """When its entry script has written which process it is."""
    pid = int(comes(lambda: begun.read_text().strip() if begun.exists() else ""))
    (supervisor,) = (found for found in psutil.Process(pid).parents() if "JobSupervisor" in " ".join(found.cmdline()))
    supervisor.kill()


def script(file: Path, commands: str) -> Path:
    file.write_text(f"#!/bin/sh\n{commands}\n")
    file.chmod(0o755)
    return file


def test_nobody_tries_again_who_does_not_wait(run_file: Path) -> None:
    for execution in (Execution(retries=1), Execution(timeout_s=5)):
        with pytest.raises(ConfigError, match="--no-wait: nobody is there"):
            submit_job(replace(submission(run_file), execution=execution), log=lambda _: None, wait=False)


@pytest.mark.ray
def test_the_probes_of_kubernetes_are_answered_without_a_token(head: Head) -> None:
    cluster = yaml.safe_load((Path(__file__).parents[2] / "k8s" / "cluster" / "cluster.yaml").read_text())["spec"]
    container = cluster["headGroupSpec"]["template"]["spec"]["containers"][0]
    paths = {container[probe]["httpGet"]["path"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert paths == {"/api/healthz"}
    with urllib.request.urlopen(f"http://127.0.0.1:{head.agent}/api/healthz", timeout=HANG_S) as answer:
        assert answer.status == 200
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{head.address}/api/jobs/", timeout=HANG_S)


@pytest.mark.ray
def test_interpreter_that_is_not_there_is_told(head: Head, run_file: Path) -> None:
    arguments = ("submit", "report", "report.yaml", "--address", head.address, "--python", "/nowhere/python")
    ended = retort(run_file.parent, *arguments)
    assert ended.returncode == 127, ended.stderr
    assert "/nowhere/python" in ended.stdout


@pytest.mark.ray
def test_wrong_token_is_refused(head: Head, run_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "f" * 64)
    with pytest.raises(StorageError, match="refuses the token"):
        submit_job(submission(run_file, head.address), log=lambda _: None)
