"""A Ray that ends with the job."""

import signal
import subprocess
import sys

import pytest

from tests.patience import HANG_S

# What a shell starts in the background inherits that SIGINT is ignored, and Python then leaves it so.
JOB = """
import signal
import time
from retort.errors import PreemptedError
signal.signal(signal.SIGINT, signal.default_int_handler)
from retort.orchestration.cluster import ray_session
try:
    with ray_session(num_cpus=1):
        print("begun", flush=True)
        time.sleep(1e6)
except KeyboardInterrupt:
    print("interrupted")
except PreemptedError as error:
    print(error.exit_code, error)
"""


@pytest.mark.ray
@pytest.mark.parametrize(
    ("number", "said"),
    [
        (signal.SIGINT, "interrupted\n"),
        (signal.SIGTERM, "75 told to end by SIGTERM before the work was done; what is finished is kept: "),
    ],
)
def test_a_job_that_is_told_to_end_does_so_without_a_trace(number: signal.Signals, said: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", JOB], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as job:  # fmt: skip
        try:
            assert job.stdout is not None
            assert job.stdout.readline() == "begun\n"
            job.send_signal(number)
            out, errors = job.communicate(timeout=HANG_S)
        finally:
            job.kill()
    assert job.returncode == 0
    assert out.startswith(said)
    assert "SIGTERM received" not in errors, "Ray's handler prints that, and a trace"
