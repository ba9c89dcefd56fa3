"""Submission to a real Ray with token authentication, and what happens when there is none."""

import contextlib
import http.server
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest

from retort import cli
from retort.errors import ConfigError, MissingRequirementError, ResourceError, StorageError
from retort.orchestration import submit
from retort.orchestration.submit import Submission, check_answer, packed, resolved_config, submit_job, tracked_files

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
    assert replace(there, python="/opt/my python", resume=False).entrypoint.startswith("'/opt/my python' jobs/")
    assert replace(there, resume=False).entrypoint.endswith(" --no-resume")


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
def answering(status: int, body: bytes, *, delay_s: float = 0.0) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            time.sleep(delay_s)
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
    with answering(200, b"", delay_s=2.0) as address, pytest.raises(StorageError, match="timed out"):
        check_answer(address, timeout_s=0.2)


@dataclass(frozen=True)
class Head:
    address: str
    token: Path


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
            yield Head(f"http://127.0.0.1:{dashboard}", token)
        finally:
            _end(process)
            shutil.rmtree(folder, ignore_errors=True)


def _wait_until_it_answers(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 90
    while True:
        try:
            check_answer(address, timeout_s=5)
        except StorageError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        else:
            return


def _end(process: subprocess.Popen[bytes]) -> None:
    mine = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(mine, timeout=15)
    for child in alive:
        child.kill()
    if process.poll() is None:
        process.kill()
    process.wait()


def retort(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, as a person runs it: Ray reads a token once per process and keeps it."""
    code = "import sys; from retort.cli import run; sys.exit(run(sys.argv[1:]))"
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.ray
def test_job_runs_there_with_its_log_and_exit_code(head: Head, run_file: Path) -> None:
    folder = run_file.parent
    # The evaluation is not there: the entry script says so at the cluster and ends with the code of bad data.
    ended = retort(folder, "submit", "report", "report.yaml", "--address", head.address)
    assert ended.returncode == 3, ended.stderr
    assert f"retort: {folder}/absent: no such folder" in ended.stdout
    assert ended.stdout.startswith("submitted report as raysubmit_")
    # An output that exists and --no-resume: refused there with the code of bad usage.
    (folder / "out").mkdir()
    (folder / "out" / "kept.txt").write_text("mine")
    ended = retort(folder, "submit", "report", "report.yaml", "--address", head.address, "--no-resume")
    assert ended.returncode == 2, ended.stderr
    assert "leave --no-resume out" in ended.stdout


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
