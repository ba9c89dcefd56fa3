"""One of each fault, as the benchmark counts them, and how it counts."""

import random
from pathlib import Path

import pytest

from benchmarks.fault_jobs import Outcome, TinyJob, TrainingJob, cut_a_file, flip_a_byte, write_inputs
from benchmarks.faults import FAULTS, disk_full, record_of, repeat_until_harmed, table


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    write_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def references() -> dict[type[TinyJob], TinyJob]:
    return {}


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, (_, fault) in FAULTS.items() if fault is not disk_full])
def test_a_tiny_job_survives_with_nothing_lost(root: Path, references: dict[type[TinyJob], TinyJob], name: str) -> None:
    kind = FAULTS[name][0]
    if kind not in references:
        references[kind] = kind(root, f"{kind.verb}-unharmed")
        assert references[kind].start().wait() == 0, references[kind].log()[-2000:]
    outcome = repeat_until_harmed(name, root, references[kind], random.Random(name), list(FAULTS).index(name))
    lost = (outcome.steps_lost, outcome.rows_lost, outcome.rows_doubled, outcome.wrong_outputs)
    assert outcome.survived, outcome
    assert lost == (0, 0, 0, 0), outcome


def test_counts_are_added_up_by_fault() -> None:
    outcomes = [Outcome(survived=True, exit_codes=[75, 0]), Outcome(steps_lost=3, rows_doubled=1, exit_codes=[-9])]
    first, second = record_of("a", outcomes, seed=7), record_of("a", outcomes[:1], seed=8)
    assert (first["repetitions"], first["survived"], first["steps_lost"], first["seed"]) == (2, 1, 3, 7)
    assert first["exit_codes"] == [[75, 0], [-9]]
    lines = table([first, record_of("b", [], seed=9), second]).splitlines()
    assert lines[2].startswith("| a | 3 | 2 | 3 | 0 | 1 | 0 | ")
    assert lines[3].startswith("| b | 0 | 0 | ")
    assert len(lines) == 4


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
