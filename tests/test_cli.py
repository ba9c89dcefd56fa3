"""The command line as a person meets it: messages, exit codes, streams."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from retort import cli
from retort.cli_output import explain_failure
from retort.errors import ConfigError, DataError, ResourceError
from tests.patience import HANG_S

ROOT = Path(__file__).parents[1]
COMMANDS = (
    "prepare",
    "pretrain",
    "import",
    "generate",
    "prune",
    "distill",
    "tune",
    "evaluate",
    "report",
    "export",
    "demo",
    "say",
    "doctor",
    "submit",
    "jobs",
    "promote",
)


@pytest.fixture
def report_file(tmp_path: Path) -> Path:
    file = tmp_path / "report.yaml"
    file.write_text(f"job: report\nevaluation: {tmp_path}/absent\noutput: {tmp_path}/out\n")
    return file


def code_and_text(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = cli.run([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_help_lists_every_command_and_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom retort import cli\ncode = cli.run(['--help'])\n"
        "heavy = {'torch', 'ray', 'numpy', 'pydantic', 'deepspeed'} & set(sys.modules)\n"
        "assert code == 0 and not heavy, (code, heavy)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(f"\n  {command} " in done.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(capsys: pytest.CaptureFixture[str], command: str) -> None:
    code, out, _ = code_and_text(capsys, command, "--help")
    assert code == 0
    assert f"retort {command}" in out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["report"], "Missing argument 'CONFIG'"),
        (["repot", "x"], "Did you mean 'report'"),
        (["report", "absent.yaml"], "retort: absent.yaml: no such file"),
        (["demo", "a.yaml", "--config", "b.yaml"], "two run files were given"),
        (["say", "hello"], "Missing option"),
    ],
)
def test_wrong_usage_is_code_2_with_one_message(
    capsys: pytest.CaptureFixture[str], arguments: list[str], text: str
) -> None:
    code, out, err = code_and_text(capsys, *arguments)
    assert (code, out) == (2, "")
    assert text in err
    assert "Traceback" not in err


def test_faulty_override_is_code_2_and_names_the_key(capsys: pytest.CaptureFixture[str], report_file: Path) -> None:
    code, _, err = code_and_text(capsys, "report", report_file, "--set", "outputt=x")
    assert code == 2
    assert err == "retort: --set outputt=x: outputt: unknown key 'outputt'; did you mean 'output'?\n"


def test_file_of_another_job_is_refused_with_the_right_command(
    capsys: pytest.CaptureFixture[str], report_file: Path
) -> None:
    code, _, err = code_and_text(capsys, "prepare", report_file, "--dry-run")
    assert code == 2
    assert f"run it with `retort report {report_file}`" in err


def test_dry_run_prints_the_resolved_plan_and_writes_nothing(
    capsys: pytest.CaptureFixture[str], report_file: Path
) -> None:
    before = sorted(report_file.parent.iterdir())
    code, out, _ = code_and_text(capsys, "report", report_file, "--dry-run", "--set", "output=elsewhere")
    assert code == 0
    assert yaml.safe_load(out) == {
        "job": "report",
        "evaluation": f"{report_file.parent}/absent",
        "output": "elsewhere",
        "votes": [],
    }
    assert sorted(report_file.parent.iterdir()) == before


def test_dry_run_as_json_is_one_object(capsys: pytest.CaptureFixture[str], report_file: Path) -> None:
    code, out, _ = code_and_text(capsys, "report", report_file, "--dry-run", "--json")
    assert code == 0
    assert json.loads(out.splitlines()[-1])["job"] == "report"


def test_dry_run_of_a_tour_is_one_line_per_job(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    job = {"job": "report", "evaluation": "runs/e", "output": "runs/r"}
    file = tmp_path / "tour.yaml"
    file.write_text(yaml.safe_dump({"job": "demo", "output": "runs", "jobs": [job, {**job, "output": "runs/s"}]}))
    for arguments in (["demo", file, "--dry-run"], ["demo", "--config", file, "--dry-run"]):
        code, out, _ = code_and_text(capsys, *arguments)
        assert code == 0
        first, *lines = out.splitlines()
        assert first == "runs: a tour of 2 jobs"
        assert lines == [f" {n} report    → runs/{name} (reads evaluation runs/e)" for n, name in ((1, "r"), (2, "s"))]


def test_failing_job_ends_with_the_code_of_its_error(capsys: pytest.CaptureFixture[str], report_file: Path) -> None:
    code, out, err = code_and_text(capsys, "report", report_file, "--json")
    assert (code, out) == (DataError.exit_code, "")
    assert err.startswith(f"retort: {report_file.parent}/absent: no such folder")


def test_no_resume_refuses_an_output_and_deletes_nothing(capsys: pytest.CaptureFixture[str], report_file: Path) -> None:
    kept = report_file.parent / "out" / "kept.txt"
    kept.parent.mkdir()
    code, _, _ = code_and_text(capsys, "report", report_file, "--no-resume", "--dry-run")
    assert code == 0, "an empty folder is nothing to lose"
    kept.write_text("mine")
    code, _, err = code_and_text(capsys, "report", report_file, "--no-resume")
    assert code == 2
    assert "leave --no-resume out" in err
    assert "--set output=" in err
    assert kept.read_text() == "mine"


def test_errors_from_workers_keep_their_message_and_code() -> None:
    class RemoteError(Exception):
        def __init__(self, cause: Exception) -> None:
            super().__init__("a long remote traceback")
            self.cause = cause

    wrapped = RuntimeError("the job failed")
    wrapped.__cause__ = RemoteError(DataError("row 7 is empty"))
    failure = explain_failure(wrapped)
    assert failure is not None
    assert (failure.message, failure.exit_code) == ("row 7 is empty", 3)
    memory = explain_failure(MemoryError("4 GiB"))
    assert memory is not None
    assert memory.exit_code == ResourceError.exit_code
    assert explain_failure(ValueError("ours")) is None
    assert explain_failure(ConfigError("x")) is not None


def test_faults_of_ours_keep_their_traceback(monkeypatch: pytest.MonkeyPatch, report_file: Path) -> None:
    monkeypatch.setattr("retort.orchestration.jobs.run_job", lambda *_: {}["absent"])
    with pytest.raises(KeyError):
        cli.run(["report", str(report_file)])


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGINT, 130, "run the same command again to continue"),
        (signal.SIGTERM, 75, "told to end by SIGTERM before the work was done; what is finished is kept"),
    ],
)
def test_what_ends_a_job_from_outside_has_its_code_and_says_how_to_go_on(
    report_file: Path, number: signal.Signals, code: int, said: str
) -> None:
    script = (
        "import signal, sys, time\nfrom retort import cli\nimport retort.orchestration.jobs as jobs\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # which a shell's background ignores
        "def wait(config, progress):\n    print('ready', flush=True)\n    time.sleep(1e6)\n"
        "jobs.run_job = wait\ncli.main(['report', sys.argv[1]])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(report_file)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        _, err = process.communicate(timeout=HANG_S)
    finally:
        process.kill()
    assert process.returncode == code
    assert said in err
    assert "Traceback" not in err


def test_json_output_stays_clean_when_a_library_prints(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, report_file: Path
) -> None:
    def noisy(*_: object) -> dict[str, object]:
        sys.stdout.write("library banner\n")
        return {"steps": 3, "nested": {"a": 1}, "loss": 0.123456, "unread": ""}

    monkeypatch.setattr("retort.orchestration.jobs.run_job", noisy)
    code, out, err = code_and_text(capsys, "report", report_file, "--json")
    assert code == 0
    assert json.loads(out) == {"steps": 3, "nested": {"a": 1}, "loss": 0.123456, "unread": ""}
    assert "library banner" in err
    code, out, _ = code_and_text(capsys, "report", report_file)
    assert (code, out) == (0, "library banner\nsteps: 3\nloss: 0.1235\n")


@pytest.mark.parametrize("script", COMMANDS[:8])
def test_entry_scripts_run_their_own_job(script: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "jobs" / f"{script}.py"), "--help"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"retort {script}" in done.stdout
