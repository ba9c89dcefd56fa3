"""Each probe against a machine that is broken in the way it looks for."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from retort.orchestration import doctor
from retort.orchestration.doctor import Finding, exit_code_of
from tests.patience import HANG_S


def test_this_machine_has_no_fault_outside_its_resources() -> None:
    for finding in (
        doctor.probe_python(sys.version_info[:3]),
        doctor.probe_audio(),
        doctor.probe_speech(),
        doctor.probe_processor(),
        doctor.probe_gpu(),
    ):
        assert finding.verdict == "ok", finding.line()


def test_old_python_is_a_fault() -> None:
    assert doctor.probe_python((3, 10, 14)).exit_code == 4


def test_missing_and_wrong_versions_are_named() -> None:
    finding = doctor.probe_versions(["numpy>=1", "no-such-library>=2", "pydantic<1", 'colorama; extra == "dev"'])
    assert finding.exit_code == 4
    assert "no-such-library is missing" in finding.detail
    assert "pydantic is 2" in finding.detail
    assert "numpy" not in finding.detail
    assert "colorama" not in finding.detail
    assert doctor.probe_versions(["numpy>=1"]).verdict == "ok"


def test_library_that_does_not_load_is_named() -> None:
    finding = doctor.probe_imports(["json", "no_such_module", "math"])
    assert finding.exit_code == 4
    assert "no_such_module does not load: ModuleNotFoundError" in finding.detail


def test_library_that_takes_its_process_with_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "crashing.py").write_text("import os\nos.abort()\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    finding = doctor.probe_imports(["json", "crashing"])
    assert finding.detail == "crashing does not load: exit code -6"


@pytest.mark.parametrize(
    ("torch_version", "torchaudio_version", "verdict"),
    [("2.11.0+cu130", "2.11.0", "ok"), ("2.11.0", "2.10.0", "fault"), ("2.12.0", "2.11.0+cpu", "fault")],
)
def test_torch_and_torchaudio_must_be_a_pair(torch_version: str, torchaudio_version: str, verdict: str) -> None:
    assert doctor.probe_torch_pair(torch_version, torchaudio_version).verdict == verdict


def test_store_leaves_nothing_behind(tmp_path: Path) -> None:
    assert doctor.probe_store(tmp_path / "not" / "there" / "yet").verdict == "ok"
    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_written_is_a_storage_fault() -> None:
    finding = doctor.probe_store(Path("/proc/self"))
    assert (finding.verdict, finding.exit_code) == ("fault", 5)
    assert "--folder" in finding.cure


def test_full_disk_is_a_resource_fault(tmp_path: Path) -> None:
    finding = doctor.probe_disk(tmp_path, needed=2**80)
    assert (finding.verdict, finding.exit_code) == ("fault", 6)


def test_little_memory_is_a_warning(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 2097152 kB\nMemAvailable: 1048576 kB\n")
    finding = doctor.probe_memory(meminfo, tmp_path)
    assert finding.verdict == "warning"
    assert finding.detail.startswith("1.0 GiB available")
    meminfo.write_text("MemAvailable: 99999999 kB\n")
    assert doctor.probe_memory(meminfo, tmp_path / "absent").cure.startswith("give the container more shared memory")


@pytest.mark.parametrize(("mode", "verdict"), [(0o600, "ok"), (0o640, "warning"), (0o644, "warning")])
def test_token_that_others_can_read_is_a_warning(tmp_path: Path, mode: int, verdict: str) -> None:
    file = tmp_path / "token"
    assert doctor.probe_token(file).verdict == "ok"
    file.write_text("x")
    file.chmod(mode)
    assert doctor.probe_token(file).verdict == verdict


@pytest.mark.ray
def test_ray_starts_and_a_ray_that_fails_is_told() -> None:
    good = doctor.start_local_ray()
    bad = doctor.start_local_ray({"RAY_TMPDIR": "/proc/self"})
    found = doctor.probe_ray(good, timeout_s=HANG_S)
    assert found.verdict == "ok"
    assert "on every address of this machine listened" in found.detail
    finding = doctor.probe_ray(bad, timeout_s=HANG_S)
    assert finding.exit_code == 4
    assert "a local Ray does not run" in finding.detail


def test_ray_that_hangs_is_ended() -> None:
    hanging = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(1e6)"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert doctor.probe_ray(hanging, timeout_s=0.2).exit_code == 4
    assert hanging.poll() is not None


def test_gpu_that_multiplies_wrongly_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Fake")
    monkeypatch.setattr(torch, "device", lambda *_: device("cpu"))
    assert doctor.probe_gpu().detail == "Fake"
    monkeypatch.setattr(torch, "equal", lambda *_: False)
    assert doctor.probe_gpu().exit_code == 4


def test_probe_that_breaks_is_a_finding_and_the_others_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Finding:
        raise ZeroDivisionError("unforeseen")

    monkeypatch.setattr(doctor, "probe_audio", broken)
    monkeypatch.setattr(doctor, "probe_ray", lambda _: Finding("ray", "ok", "not asked here"))
    findings = {finding.name: finding for finding in doctor.examine(tmp_path)}
    assert findings["audio"].detail == "ZeroDivisionError: unforeseen"
    assert findings["speech"].verdict == "ok"
    assert len(findings) == 13
    assert exit_code_of(list(findings.values())) == 4


def test_exit_code_is_that_of_the_worst_fault() -> None:
    good, warning = Finding("a", "ok", ""), Finding("b", "warning", "")
    storage, resources = Finding("c", "fault", "", "", 5), Finding("d", "fault", "", "", 6)
    environment = Finding("e", "fault", "", "", 4)
    assert exit_code_of([good, warning]) == 0
    assert exit_code_of([resources, good]) == 6
    assert exit_code_of([resources, storage]) == 5
    assert exit_code_of([resources, storage, environment]) == 4


def test_line_holds_verdict_name_detail_and_cure() -> None:
    line = Finding("disk", "fault", "0 GiB free", "free some", 6).line()
    assert line == "fault   disk: 0 GiB free; free some"
