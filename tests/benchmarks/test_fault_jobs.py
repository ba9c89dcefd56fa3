"""What the benchmarks of faults and nodes compare."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.fault_jobs import digest_of


def digest(folder: Path, **columns: list[object]) -> str:
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), folder / "rows.parquet")
    return digest_of(folder)


@pytest.mark.parametrize("versions", [{}, {"code_version": ["1", "1"]}, {"code_version": ["2", "3"]}])
def test_a_table_is_its_rows_whatever_version_wrote_them(tmp_path: Path, versions: dict[str, list[object]]) -> None:
    first = digest(tmp_path / "first", id=["a", "b"], wav=[b"1", b"2"])
    assert digest(tmp_path / "second", id=["a", "b"], wav=[b"1", b"2"], **versions) == first
    assert digest(tmp_path / "second", id=["a", "b"], wav=[b"1", b"3"], **versions) != first
    assert digest(tmp_path / "second", id=["b", "a"], wav=[b"2", b"1"], **versions) != first
