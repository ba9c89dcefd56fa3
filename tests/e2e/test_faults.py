"""One of each fault, as the benchmark counts them, and how it counts."""

import random
import subprocess
from pathlib import Path

import pytest

from benchmarks.fault_jobs import TinyJob, TrainingJob, cut_a_file, flip_a_byte, write_inputs
from benchmarks.faults import FAULTS, disk_full, repeat_until_harmed


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    write_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def references() -> dict[type[TinyJob], TinyJob]:
    return {}


@pytest.fixture(scope="module")
def may_mount(tmp_path_factory: pytest.TempPathFactory) -> bool:
    folder = str(tmp_path_factory.mktemp("mount"))
    mounted = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True, check=False)
    return mounted.returncode == 0 and subprocess.run(["umount", folder], check=False).returncode == 0


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_a_tiny_job_survives_with_nothing_lost(
    root: Path, references: dict[type[TinyJob], TinyJob], name: str, *, may_mount: bool
) -> None:
    kind, fault = FAULTS[name]
    if fault is disk_full and not may_mount:
        pytest.skip("nobody may mount a small disk here")
    if kind not in references:
        references[kind] = kind(root, f"{kind.verb}-unharmed")
        assert references[kind].start().wait() == 0, references[kind].log()[-2000:]
    outcome = repeat_until_harmed(name, root, references[kind], random.Random(name), list(FAULTS).index(name))
    lost = (outcome.steps_lost, outcome.rows_lost, outcome.rows_doubled, outcome.wrong_outputs)
    assert outcome.survived, outcome
    assert lost == (0, 0, 0, 0), outcome


def test_steps_are_lost_if_a_start_goes_on_before_what_was_committed(tmp_path: Path) -> None:
    job = TrainingJob(tmp_path, "job")
    log = tmp_path / "job.log"
    log.write_text("60/60 loss\n")
    assert job.steps_lost(10, restarted=False) == 0
    assert job.steps_lost(10, restarted=True) == 10
    log.write_text("resuming after step 5\nresuming after step 10\n")
    assert job.steps_lost(10, restarted=True) == 5
    log.write_text("resuming after step 10\n")
    assert job.steps_lost(10, restarted=True) == 0


def test_harm_is_done_to_one_file(tmp_path: Path) -> None:
    numbers = random.Random(0)
    assert flip_a_byte(tmp_path, numbers) is None
    files = [tmp_path / name for name in ("a.bin", "b.bin")]
    for file in files:
        file.write_bytes(bytes(range(50)))
    harmed = flip_a_byte(tmp_path, numbers)
    changed = [
        (file, sum(x != y for x, y in zip(file.read_bytes(), range(50), strict=True)))
        for file in files
        if file.read_bytes() != bytes(range(50))
    ]
    assert changed == [(harmed, 1)]
    cut = cut_a_file(tmp_path, "*.bin", numbers)
    assert cut is not None
    assert sorted(file.stat().st_size for file in files)[0] < 50
    assert cut_a_file(tmp_path, "*.parquet", numbers) is None
