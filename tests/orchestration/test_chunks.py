import json
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retort.audio.files import AudioRejected
from retort.data.utterance import Reject
from retort.errors import DataError, ResourceError
from retort.orchestration.chunks import (
    ChunkFolder,
    ChunkResult,
    open_work_folder,
    run_chunks,
    stream_through_actors,
    sum_numbers,
    write_rejects,
)
from retort.orchestration.cluster import ray_session
from retort.run_config import PoolConfig
from tests.orchestration.tiny_runs import Lines, killing_an_actor_after

POOL = PoolConfig(size=2)


@pytest.fixture(scope="module")
def ray():
    with ray_session(num_cpus=4):
        yield


def _result(number, note="x"):
    table = pa.table({"id": [f"{number}-{i}" for i in range(number)], "note": [note] * number})
    return ChunkResult(
        {"rows": table}, [Reject(f"r{number}", "odd", note, "here")] * (number % 2), {"n": float(number)}
    )


def _worker(seconds=0.0, trouble=None):
    """A worker class without a module, so that it travels to the actors by value."""

    class Worker:
        def work(self, number):
            time.sleep(seconds)
            if trouble is not None:
                trouble(number)
            return _result_of(number)

    def _result_of(number):
        table = pa.table({"id": [f"{number}-{i}" for i in range(number)]})
        return ChunkResult({"rows": table}, [], {"n": float(number)})

    return Worker


def _ids(chunks, tmp_path):
    records = chunks.records()
    chunks.collect(records, "rows", tmp_path / "all")
    return [row["id"] for row in pq.read_table(tmp_path / "all").to_pylist()] if sum_numbers(records)["n"] else []


EXPECTED = [f"{number}-{i}" for number in range(12) for i in range(number)]


def test_a_chunk_that_was_written_is_read_and_collected(tmp_path):
    chunks = ChunkFolder(tmp_path / "work", 4)
    for number in (2, 0, 3, 1):
        chunks.write(number, _result(number))
    assert chunks.missing() == []
    records = chunks.records()
    assert [record.rows["rows"] for record in records] == [0, 1, 2, 3]
    assert [r.id for record in records for r in record.rejects] == ["r1", "r3"]
    assert sum_numbers(records) == {"n": 6.0}
    assert chunks.collect(records, "rows", tmp_path / "all") == 6
    assert [path.name for path in sorted((tmp_path / "all").iterdir())] == [
        "part-00001.parquet", "part-00002.parquet", "part-00003.parquet",
    ]  # fmt: skip


def test_writing_a_chunk_twice_gives_the_same_bytes(tmp_path):
    chunks = ChunkFolder(tmp_path, 3)
    chunks.write(2, _result(2))
    first = (tmp_path / "rows" / "00002.parquet").read_bytes()
    chunks.write(2, _result(2))
    assert (tmp_path / "rows" / "00002.parquet").read_bytes() == first
    assert len(list(tmp_path.rglob("*"))) == 4  # two folders, one table, one record: nothing temporary is left


@pytest.mark.parametrize("damage", ["table", "gone", "record", "other"])
def test_a_damaged_chunk_counts_as_not_done(tmp_path, damage):
    chunks = ChunkFolder(tmp_path, 4)
    for number in range(4):
        chunks.write(number, _result(number))
    table, record = tmp_path / "rows" / "00002.parquet", tmp_path / "records" / "00002.json"
    match damage:
        case "table":
            table.write_bytes(table.read_bytes()[:-1] + b"\0")
        case "gone":
            table.unlink()
        case "record":
            record.write_bytes(record.read_bytes()[:40])
        case "other":
            record.write_bytes((tmp_path / "records" / "00003.json").read_bytes())
    assert chunks.missing() == [2]


def test_a_forgotten_chunk_is_done_again(tmp_path):
    chunks = ChunkFolder(tmp_path, 2)
    for number in range(2):
        chunks.write(number, _result(number))
    chunks.forget(1)
    assert chunks.missing() == [1]


def test_a_chunk_that_keeps_killing_its_worker_is_given_up(tmp_path):
    chunks = ChunkFolder(tmp_path, 1)
    for _ in range(4):
        chunks.count_attempt(0)
    with pytest.raises(ResourceError, match="killed its worker 4 times"):
        chunks.count_attempt(0)
    chunks.forget_attempts()
    chunks.count_attempt(0)


def test_unfinished_work_of_another_configuration_is_removed(tmp_path):
    (open_work_folder(tmp_path, "one") / "file").write_text("x")
    assert (open_work_folder(tmp_path, "one") / "file").exists()
    two = open_work_folder(tmp_path, "two")
    assert [path.name for path in two.parent.iterdir()] == ["two"]


def test_rejects_with_strange_text_are_written_as_json_lines(tmp_path):
    codes = write_rejects(tmp_path / "r.jsonl", [Reject("a\ud800", "x", "ü\n", "w"), Reject("b", "x", "", "")])
    assert codes == {"x": 2}
    lines = (tmp_path / "r.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["detail"] for line in lines] == ["ü\n", ""]


@pytest.mark.ray
@pytest.mark.usefixtures("ray")
class TestOnRay:
    def test_a_killed_actor_loses_and_doubles_nothing_and_what_is_done_is_not_done_again(self, tmp_path):
        chunks, lines = ChunkFolder(tmp_path / "a" / "chunks", 12), Lines()
        chunks.write(11, _result(11, "before"))
        with killing_an_actor_after(3, tmp_path) as killed:
            assert run_chunks(chunks, _worker(seconds=0.1), {}, POOL, lines, "test") == 11
        assert len(killed) == 1
        assert not Path(f"/proc/{killed[0]}").exists()
        assert _ids(chunks, tmp_path) == EXPECTED
        assert (
            pq.read_table(tmp_path / "a" / "chunks" / "rows" / "00011.parquet")["note"].to_pylist() == ["before"] * 11
        )
        assert lines.updates[-1] == (12, 12, "test")
        assert "1 of 12" in lines.lines[0]
        assert run_chunks(chunks, _worker(), {}, POOL, Lines(), "test") == 0

    def test_an_error_of_ours_comes_back_as_it_was_raised(self, tmp_path):
        def trouble(number):
            if number == 3:
                raise AudioRejected("odd", "row 7 is odd; mend it")

        chunks = ChunkFolder(tmp_path / "work", 6)
        with pytest.raises(DataError, match=r"^odd: row 7 is odd; mend it$"):
            run_chunks(chunks, _worker(trouble=trouble), {}, POOL, Lines(), "test")
        assert 3 in chunks.missing()

    def test_values_come_in_the_order_of_the_items(self):
        def make():
            return lambda item: [item["number"]] * (item["number"] % 3)

        values = list(stream_through_actors([{"number": n} for n in range(20)], make, POOL))
        assert values == [n for n in range(20) for _ in range(n % 3)]
        assert list(stream_through_actors([], make, POOL)) == []


def test_a_row_of_a_table_of_long_rows_can_be_read_without_the_others(tmp_path):
    chunks = ChunkFolder(tmp_path, 1)
    long = pa.table({"id": [str(i) for i in range(40)], "bytes": [bytes(200_000) for _ in range(40)]})
    short = pa.table({"id": [str(i) for i in range(1000)]})
    chunks.write(0, ChunkResult({"long": long, "short": short}, (), {}))
    assert pq.ParquetFile(tmp_path / "long" / "00000.parquet").metadata.row_group(0).num_rows <= 6
    assert pq.ParquetFile(tmp_path / "short" / "00000.parquet").num_row_groups == 1
    assert chunks.table_rows("long") == long.to_pylist()
