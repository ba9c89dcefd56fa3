"""A job whose output another run has taken gives up at once, with its workers: nobody could commit what it makes."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from retort.errors import StorageError
from retort.location import parse_location
from retort.store.place import is_used, store_of
from tests.orchestration.s3_node import BUCKET, s3_service
from tests.patience import HANG_S, comes

pytestmark = [pytest.mark.ray, pytest.mark.slow]

JOB = """
import sys, threading
from retort.errors import RetortError
from retort.location import parse_location
from retort.orchestration.demand import Demand
from retort.orchestration.progress import PlainProgress
from retort.orchestration.workplace import workplace
from retort.store import place

place.LEASE_S = 4.0
output = parse_location(sys.argv[1])
demand = Demand("workers", 1, 1, 1.0, 0.0, 0.0)

def work(progress):
    place.store_of(output.bucket).write_bytes(output.key + "/began", b"")
    threading.Event().wait()

try:
    with place.hold(output), workplace(place.local_of(output), demand, PlainProgress(sys.stderr)) as where:
        where.run(work)
except RetortError as error:
    print(f"retort: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
"""


@pytest.fixture(autouse=True)
def service(tmp_path: Path) -> Iterator[None]:
    with s3_service(tmp_path / "cache"):
        yield


def test_a_job_that_lost_its_output_ends_though_its_work_goes_on(tmp_path: Path) -> None:
    output = f"s3://{BUCKET}/runs/a"
    with (tmp_path / "said.txt").open("w+b") as said:
        job = subprocess.Popen([sys.executable, "-c", JOB, output], stderr=said)
        assert comes(lambda: is_used(parse_location(output)) or job.poll() is not None)
        holder = {"host": "elsewhere", "pid": 7, "taken": "now", "nonce": "n", "count": 1}
        store_of(BUCKET).write_bytes("runs/a.lock", json.dumps(holder).encode())
        assert job.wait(timeout=HANG_S) == StorageError.exit_code, (tmp_path / "said.txt").read_text()
    assert "retort: runs/a: another run writes it: process 7 on host elsewhere" in (tmp_path / "said.txt").read_text()
    assert json.loads(store_of(BUCKET).read_bytes("runs/a.lock")) == holder
