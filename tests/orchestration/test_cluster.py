"""A Ray that ends with the job."""

import signal
import subprocess
import sys

import pytest

from retort.errors import MissingRequirementError
from retort.orchestration.cluster import ray_session
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
    ("number", "code", "said"),
    [
        (signal.SIGINT, 0, "interrupted\n"),
        (signal.SIGTERM, 75, "75 told to end by SIGTERM before the work was done; what is finished is kept: "),
    ],
)
def test_a_job_that_is_told_to_end_does_so_without_a_trace(number: signal.Signals, code: int, said: str) -> None:
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
    assert job.returncode == code
    assert out.startswith(said)
    assert "SIGTERM received" not in errors, "Ray's handler prints that, and a trace"


SIGNALLED = """
import os, signal, sys, time
import ray
from ray._private import node, worker
from retort.errors import PreemptedError
from retort.orchestration.cluster import ray_session
from retort.sigterm import preempted_by_sigterm

def signal_before(owner, name):
    method = getattr(owner, name)
    def signal_and_call(*args, **kwargs):
        setattr(owner, name, method)
        os.kill(os.getpid(), signal.SIGTERM)
        return method(*args, **kwargs)
    setattr(owner, name, signal_and_call)

match sys.argv[1]:
    case "connecting":
        signal_before(worker, "connect")
    case "leaving":
        signal_before(worker, "disconnect")
    case "disconnected":
        signal_before(node.Node, "kill_all_processes")
try:
    with preempted_by_sigterm():
        with ray_session(num_cpus=1):
            print("worked", flush=True)
        if sys.argv[1] == "writing":
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
        print("written")
except PreemptedError as error:
    print("code", error.exit_code)
"""


@pytest.mark.ray
@pytest.mark.parametrize(
    ("moment", "code", "said"),
    [
        ("never", 0, "worked\nwritten\n"),
        ("connecting", 75, "code 75\n"),  # here and at work, Ray is left at once, and the process ends with its code
        ("leaving", 0, "worked\ncode 75\n"),
        ("disconnected", 0, "worked\ncode 75\n"),
        ("writing", 0, "worked\ncode 75\n"),
    ],
)
def test_sigterm_at_any_moment_of_a_job_is_told_by_its_exit_code(moment: str, code: int, said: str) -> None:
    """Ray sets its own handlers when it starts, and makes the signal fatal while it is shut down."""
    job = subprocess.run(
        [sys.executable, "-c", SIGNALLED, moment], capture_output=True, text=True, timeout=HANG_S, check=False
    )
    assert (job.returncode, job.stdout) == (code, said), job.stderr
    assert "SIGTERM received" not in job.stderr


def test_a_ray_that_does_not_start_on_a_busy_machine_is_told_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node has half a minute to register, which a machine that is at its limit does not give it."""
    import ray

    def init(**_: object) -> None:
        raise Exception("The current node timed out during startup. The GCS has become overloaded.")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(MissingRequirementError) as refused, ray_session():
        pass
    assert str(refused.value) == (
        "a local Ray does not start: The current node timed out during startup. The GCS has become overloaded; "
        "if something else keeps this machine busy, try again when it is done; see also `retort doctor`"
    )
