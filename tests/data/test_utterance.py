from pathlib import Path

import pytest

from retort.data.utterance import Utterance, read_utterances, write_utterances
from retort.errors import DataError


def _rows(count):
    for index in range(count):
        audio = Path(f"/audio/{index}.wav") if index % 2 else bytes([index % 256])
        yield Utterance(f"id-{index}", f"text {index} é", "s", "en", audio, split=[None, "train"][index % 2],
                        sample_rate=16000, duration_s=index / 4 + 0.25, start_s=None, end_s=index + 1.0)  # fmt: skip


def test_utterances_survive_parquet_in_order_across_groups(tmp_path):
    path = tmp_path / "new" / "rows.parquet"
    assert write_utterances(path, _rows(2500)) == 2500
    assert list(read_utterances(path)) == list(_rows(2500))
    assert [file.name for file in path.parent.iterdir()] == ["rows.parquet"]


def test_no_rows_is_a_file_of_no_rows(tmp_path):
    path = tmp_path / "rows.parquet"
    assert write_utterances(path, []) == 0
    assert list(read_utterances(path)) == []


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "rows.parquet"
    write_utterances(path, _rows(3))

    def broken():
        yield from _rows(2)
        raise RuntimeError("the source failed")

    with pytest.raises(RuntimeError, match="source failed"):
        write_utterances(path, broken())
    assert len(list(read_utterances(path))) == 3


def test_missing_foreign_and_damaged_files_are_named(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pytest.raises(DataError, match=r"none\.parquet: no such file"):
        next(read_utterances(tmp_path / "none.parquet"))
    damaged = tmp_path / "damaged.parquet"
    damaged.write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match="not a parquet file"):
        next(read_utterances(damaged))
    foreign = tmp_path / "foreign.parquet"
    pq.write_table(pa.table({"id": ["a"]}), foreign)
    with pytest.raises(DataError, match="no column 'text'"):
        next(read_utterances(foreign))
