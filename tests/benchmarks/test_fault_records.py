"""Counts of faults: what belongs to one run is added up, whoever else writes, and the rarest comes next."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.fault_jobs import Outcome
from benchmarks.fault_records import add_record, fewest, read_records, record_of, table


def of(fault: str, *, seed: int, wrong: int = 0) -> dict[str, object]:
    outcome = Outcome(survived=True, wrong_outputs=wrong, exit_codes=[-9, 0], seconds=1.3)
    return {**record_of(fault, outcome, seed), "commit": "abc", "date": "2026-11-30"}


def test_repetitions_of_one_run_are_one_record(tmp_path: Path) -> None:
    path = tmp_path / "records.json"
    assert read_records(path) == []
    for seed in (1, 1, 2):
        add_record(path, of("driver", seed=seed, wrong=seed - 1))
    first, second = read_records(path)
    assert (first["repetitions"], first["survived"], first["wrong_outputs"], first["seconds"]) == (2, 2, 0, 2.6)
    assert first["exit_codes"] == [[-9, 0], [-9, 0]]
    assert (second["repetitions"], second["wrong_outputs"], second["seed"]) == (1, 1, 2)
    assert table(read_records(path)).splitlines()[2:] == ["| driver | 3 | 3 | 0 | 0 | 0 | 1 | 2026-11-30, abc |"]


def test_nothing_is_lost_where_many_write_at_once(tmp_path: Path) -> None:
    path = tmp_path / "records.json"
    with ThreadPoolExecutor(8) as pool:
        read = [pool.submit(read_records, path) for _ in range(2)]
        for number in range(60):
            pool.submit(add_record, path, of("node", seed=number % 3))
            read.append(pool.submit(read_records, path))
        counts = [sum(record["repetitions"] for record in one.result()) for one in read]
    assert max(counts) <= 60, "a whole file each time, however far the writers are"
    assert [r["repetitions"] for r in json.loads(path.read_text())] == [20, 20, 20]


def test_the_rarest_comes_next_until_there_are_enough_of_each() -> None:
    records = [of("a", seed=1), of("b", seed=1), of("b", seed=2), of("of another day", seed=1)]
    assert fewest(records, ["a", "b", "c"], at_least=2) == "c"
    assert fewest(records, ["b", "a"], at_least=2) == "a"
    assert fewest(records, ["b"], at_least=2) is None


def test_counts_are_added_up_by_fault(tmp_path: Path) -> None:
    path = tmp_path / "records.json"
    outcomes = [Outcome(survived=True, exit_codes=[75, 0]), Outcome(steps_lost=3, rows_doubled=1, exit_codes=[-9])]
    for seed, outcome in ((7, outcomes[0]), (7, outcomes[1]), (8, outcomes[0])):
        add_record(path, record_of("a", outcome, seed))
    add_record(path, record_of("b", outcomes[0], 9))
    first, *_ = read_records(path)
    assert (first["repetitions"], first["survived"], first["steps_lost"], first["seed"]) == (2, 1, 3, 7)
    assert first["exit_codes"] == [[75, 0], [-9]]
    lines = table(read_records(path)).splitlines()
    assert lines[2].startswith("| a | 3 | 2 | 3 | 0 | 1 | 0 | ")
    assert lines[3].startswith("| b | 1 | 1 | ")
    assert len(lines) == 4
