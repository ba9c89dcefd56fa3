"""What reaches a person's standard error. Without a Ray."""

import subprocess
import sys
from pathlib import Path

import pytest

from retort.orchestration.chatter import CHATTER_FILE, Filter

RAYS = [
    b"[2026-11-28 15:11:30,381 E 123 456] core_worker.cc:2465: Actor with class name: 'MapWorker(MapBatches)' died\n",
    b"[2026-11-28 15:11:30,381 W 123 456] (raylet) gcs_client.cc:99: late\n",
    b"2026-11-28 15:11:30,381\tERROR services.py:1431 -- Failed to start the dashboard \n",
    b"\x1b[33m(raylet)\x1b[0m A worker died or was killed while executing a task by an unexpected system error.\n",
    b"(TrainController pid=71) a line\n",
    b"\x1b[36m(MapWorker(MapBatches(Encode)) pid=71, ip=10.0.0.2)\x1b[0m a line\n",
    b"(ServeReplica:retort:Model pid=71) INFO 2026-11-28 15:11:30,381 retort_Model abc -- a line\n",
    b'INFO 2026-11-28 15:11:30,381 serve 4711 -- Started Serve in namespace "serve".\n',
    b"WARNING 2026-11-28 15:11:30,381 serve 4711 retort -- Deleting app.\n",
    b"2026-11-28 15:11:30,381\tINFO streaming_executor.py:178 -- Starting execution of Dataset dataset_1_0.\n",
    b"WARNING ray.data._internal.plan: tasks wait for resources\n",
    b"/opt/venv/lib/python3.11/site-packages/ray/data/context.py:61: FutureWarning: a name will go\n",
]
OURS = [
    b"retort: the disk is full\n",
    b"INFO retort.inference: decoding in bf16\n",
    b"WARNING rayon: not Ray\n",
    b"/home/me/project/mine.py:61: FutureWarning: a name will go\n",
    b"3/7 chunks generated\n",
    b"[1/12] prepare corpus\n",
    b"(a remark in brackets)\n",
    b"2026 was a year\n",
    b"[2026-11-28 15:11:30,381 C 123 456] gcs_client.cc:1: Failed to connect to GCS\n",
]


@pytest.mark.parametrize("line", RAYS)
def test_rays_lines_and_what_belongs_to_them_go_into_the_log(line: bytes) -> None:
    shown: list[bytes] = []
    kept: list[bytes] = []
    lines = Filter(shown.append, kept.append)
    for each in (line, b"  indented\n", b"\ttabbed\n", b"retort: ours\n", b"  ours as well\n"):
        lines.line(each)
    assert kept == [line, b"  indented\n", b"\ttabbed\n"]
    assert shown == [b"retort: ours\n", b"  ours as well\n"]


def test_a_traceback_of_rays_goes_with_its_line_to_its_end() -> None:
    shown: list[bytes] = []
    lines = Filter(shown.append, lambda line: None)
    trace = [b"Traceback (most recent call last):\n", b'  File "ray.py", line 1\n', b"ray.exceptions.Gone: away\n"]
    for each in (RAYS[2], *trace, b"retort: ours\n", *trace):
        lines.line(each)
    assert shown == [b"retort: ours\n", *trace], "what is not announced by Ray is somebody's own"


@pytest.mark.parametrize("line", OURS)
def test_all_other_lines_are_shown(line: bytes) -> None:
    shown: list[bytes] = []
    Filter(shown.append, lambda line: pytest.fail(f"{line!r} was kept")).line(line)
    assert shown == [line]


PROGRAM = """
import os, subprocess, sys
from pathlib import Path
from retort.orchestration.chatter import without_chatter
from retort.orchestration.progress import terminal_progress
RAYS = "[2026-11-28 15:11:30,381 E 1 2] core_worker.cc:2465: gone\\n  with a trace\\n"
logs = []
with terminal_progress() as progress:
    with without_chatter(lambda: logs[0] if logs else None):
        os.write(2, RAYS.encode())          # before there is a folder
        logs.append(Path(sys.argv[1]))
        print("of python", file=sys.stderr)
        os.write(2, b"of a library\\n")
        progress.log("of progress")
        # A process that lives on with the descriptor must not keep anybody waiting.
        other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1e6)"])
        subprocess.run([sys.executable, "-c", "import os; os.write(2, b'no end of line')"])
        os.write(2, b"\\n" + RAYS.encode())
        os.write(2, b"(a last word")
    lives_on = other.poll() is None
    other.kill()
    assert lives_on
os.write(2, b"after\\n")
print("after too", file=sys.stderr)
"""


def test_nothing_of_ours_is_lost_and_rays_lines_are_in_its_log(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = [
        "of python", "of a library", "of progress", "no end of line", "(a last wordafter", "after too"
    ]  # fmt: skip
    assert sorted(done.stderr.split("\n")) == sorted([*expected, ""])
    assert done.stderr.endswith("after\nafter too\n")
    rays = "[2026-11-28 15:11:30,381 E 1 2] core_worker.cc:2465: gone\n  with a trace\n"
    assert (tmp_path / CHATTER_FILE).read_text() == rays * 2
