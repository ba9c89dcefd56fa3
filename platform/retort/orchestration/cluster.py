"""One way to get a Ray: the cluster that is named, or a local one that ends with the job."""

import atexit
import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from retort.errors import HeadLostError, MissingRequirementError, PreemptedError, RetortError
from retort.orchestration.auth_token import ensure_private_token
from retort.orchestration.chatter import without_chatter
from retort.sigterm import Terminated, preempted_by_sigterm, sigterm_held

_DRIVER_ENVIRONMENT = {
    # Every line that a worker prints would appear twice otherwise.
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    # How often the controller looks after its workers; the default of 2 s is most of a small job's time.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DEDUP_LOGS": "0",
    # Ours to say: a CPU worker on a machine with a GPU must not take it.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # What still runs in a thread when a job was interrupted must not start another Ray.
    "RAY_ENABLE_AUTO_CONNECT": "0",
    # Ctrl-C ends a sweep like every other job, and Ray Tune writes no logs of its own.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
}
_SPARE_CPUS = 2
"""Logical CPUs beyond the cores: a resumed Ray Data job needs one more than it had, and controllers need room."""


_started_here = False
_is_work_left = False


def is_of_this_machine() -> bool:
    """Whether the Ray of this process was started here for this job; such a one never gets another node."""
    return _started_here


@contextlib.contextmanager
def ray_session(
    address: str | None = None,
    num_cpus: int | None = None,
    *,
    include_dashboard: bool = False,
    log_to_driver: bool = False,
) -> Iterator[None]:
    """Have Ray inside the block; what was started here ends with it, what was there before stays.

    SIGTERM ends the block as Ctrl-C does, and is then told as what it was.

    Args:
        address: a cluster to connect to; ``None`` takes ``RAY_ADDRESS``, or else starts a local Ray.
        num_cpus: logical CPUs of a local Ray; ``None`` is the machine's cores and two more.
        include_dashboard: start the dashboard of a local Ray (Ray Tune with early stopping needs it).
        log_to_driver: show the workers' output here.

    Raises:
        MissingRequirementError: the cluster does not answer, or a local Ray does not start.
        PreemptedError: SIGTERM came.
    """
    for name, value in _DRIVER_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS")
    options: dict[str, object] = {"logging_level": logging.ERROR, "log_to_driver": log_to_driver}
    if address:
        options["address"] = address
    else:
        options["address"] = "local"  # never somebody else's Ray that happens to run here
        options["num_cpus"] = num_cpus or (os.cpu_count() or 1) + _SPARE_CPUS
        options["include_dashboard"] = include_dashboard
        ensure_private_token()
    with without_chatter(_log_folder), _rays_errors_on_stderr(), _connected(address, options):
        yield


@contextlib.contextmanager
def _rays_errors_on_stderr() -> Iterator[None]:
    """Ray prints what goes wrong in a cluster to standard output, which is for results."""
    from ray._private import worker

    prints = worker.print_to_stdstream

    def print_to_stderr(data: dict[str, object], ignore_prefix: bool) -> None:
        prints({**data, "is_err": True} if data["pid"] == "raylet" else data, ignore_prefix=ignore_prefix)

    worker.print_to_stdstream = print_to_stderr
    try:
        yield
    finally:
        worker.print_to_stdstream = prints


@contextlib.contextmanager
def _connected(address: str | None, options: Mapping[str, object]) -> Iterator[None]:
    import ray

    global _started_here, _is_work_left
    _is_work_left = False
    leave = ray.shutdown
    with preempted_by_sigterm():
        try:
            with sigterm_held():  # at its end, the handler that Ray has set below Python is overwritten
                _connect(address, options)
            _started_here = address is None
            yield
        except Terminated:  # threads of Ray Data may wait for Ray, under whom a shutdown ends in any exit code
            leave = partial(_leave_at_once, PreemptedError.exit_code, started_here=address is None)
            raise
        except RetortError as error:
            if _is_work_left or isinstance(error, HeadLostError):
                leave = partial(_leave_at_once, error.exit_code, started_here=address is None)
            raise
        finally:
            _started_here = False
            with sigterm_held() as hold:
                _hold_when_disconnected(hold)
                leave()


def _connect(address: str | None, options: Mapping[str, object]) -> None:
    import ray
    from ray._private import utils

    sets_handler = utils.set_sigterm_handler
    utils.set_sigterm_handler = lambda _: None  # Ray's would end the process with code 15 and without a word
    try:
        ray.init(**options)
    except Exception as error:  # of a node that is slow to start, Ray says so with a bare Exception
        where = f"the Ray cluster at {address} does not answer" if address else "a local Ray does not start"
        busy = "if something else keeps this machine busy, try again when it is done; see also `retort doctor`"
        cure = "check RAY_ADDRESS and the token" if address else busy
        raise MissingRequirementError(f"{where}: {str(error).strip().rstrip('.')}; {cure}") from error
    finally:
        utils.set_sigterm_handler = sets_handler


def _hold_when_disconnected(hold: Callable[[], None]) -> None:
    """Have ``hold`` called within ``ray.shutdown``, which makes SIGTERM fatal a second before it returns."""
    from ray._private import worker

    node = worker._global_node
    if node is None:
        return
    kill = node.kill_all_processes

    def hold_and_kill(*args: object, **kwargs: object) -> object:
        hold()
        return kill(*args, **kwargs)

    node.kill_all_processes = hold_and_kill


def leave_work() -> None:
    """Say that a thread goes on waiting for Ray though its job has failed: Ray must not be shut down under it."""
    global _is_work_left
    _is_work_left = True


def _leave_at_once(exit_code: int, *, started_here: bool) -> None:
    """Let go of a Ray without asking it anything, and end the process with a code when the interpreter ends.

    Of a head that is gone, ``ray.shutdown`` would wait until Ray ends this process with a code of its own and without a
    word, and so would Ray's own hook at the end of the interpreter; under a thread that waits for Ray, both can end in
    a segmentation fault. The process ends before that hook, and the cluster sees that its driver is dead.
    """
    from ray._private import worker

    if started_here and worker._global_node is not None:
        worker._global_node.kill_all_processes(check_alive=False, allow_graceful=False)
    atexit.register(_end, exit_code)


def _end(code: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def _log_folder() -> Path | None:
    """Where Ray writes its logs on this machine, once it is up."""
    from ray._private import worker

    node = worker._global_node
    return None if node is None else Path(node.get_logs_dir_path())


def worker_environment(threads: int, *, use_gpu: bool = False) -> dict[str, str]:
    """Environment variables of a worker, for a ``runtime_env``: its threads, and the device DeepSpeed takes.

    Threads of GNU OpenMP that wait for one another soon sleep, where by default they spin: with two threads on two
    processors and other work beside them, a step took two to five times as long (docs/log.md).
    """
    variables = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    variables["GOMP_SPINCOUNT"] = "2000"  # rounds, microseconds; sleeping at once costs a small model a quarter
    variables["RAY_TRAIN_ENABLE_PRINT_PATCH"] = "0"
    if not use_gpu:
        variables["DS_ACCELERATOR"] = "cpu"
    return variables
