"""A Ray that ends with the job."""

import signal
import subprocess
import sys

import pytest

# What a shell starts in the background inherits that SIGINT is ignored, and Python then leaves it so.
JOB = """
import signal
import time
signal.signal(signal.SIGINT, signal.default_int_handler)
from retort.orchestration.cluster import ray_session
try:
    with ray_session(num_cpus=1):
        print("begun", flush=True)
        time.sleep(60)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.ray
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_job_that_is_told_to_end_does_so_without_a_trace(number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", JOB], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as job:  # fmt: skip
        assert job.stdout is not None
        assert job.stdout.readline() == "begun\n"
        job.send_signal(number)
        out, errors = job.communicate(timeout=60)
    assert (job.returncode, out) == (0, "interrupted\n")
    assert "SIGTERM received" not in errors, "Ray's handler prints that, and a trace"
