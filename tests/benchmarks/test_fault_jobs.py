"""What the benchmarks of faults and nodes compare."""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.fault_jobs import Outcome, RowsJob, digest_of
from benchmarks.faults import UnharmedError, expect_code, main


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


@pytest.mark.parametrize(
    ("code", "left", "wrong"), [(75, 14, 0), (75, 1, 0), (0, 14, 1), (0, 8, 1), (1, 14, 1), (1, 1, 1), (0, 7, None)]
)
def test_a_job_that_does_not_notice_its_harm_is_wrong_unless_it_was_nearly_done(
    tmp_path: Path, code: int, left: int, wrong: int | None
) -> None:
    process, outcome = subprocess.Popen([sys.executable, "-c", f"raise SystemExit({code})"]), Outcome()
    job = RowsJob(tmp_path, "job")
    assert job.size == 15
    if wrong is None:
        with pytest.raises(UnharmedError, match="job was done before it could notice what ends with 75"):
            expect_code(job, process, outcome, 75, left=left)
    else:
        expect_code(job, process, outcome, 75, left=left)
        assert outcome.wrong_outputs == wrong
    assert outcome.exit_codes == [code]


def test_faults_that_are_not_there_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--faults", "flood", "--at-least", "1"])
    assert "no fault is called flood; there are: worker of a training killed" in capsys.readouterr().err
