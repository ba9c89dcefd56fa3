"""Serve on this machine: Ray, Ray Serve and the application, until it is interrupted."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from retort.errors import DataError, MissingRequirementError
from retort.orchestration.cluster import ray_session
from retort.serving.settings import ServeConfig, ServedModel

_APP = "retort"
_DEMO_MODELS = ("student_small", "student_medium", "student_large")
_FRONT_END_CPUS = 1.0


def demo_config(runs: Path) -> ServeConfig:
    """The students of ``make demo``.

    Raises:
        DataError: there are none yet.
    """
    found = [name for name in _DEMO_MODELS if (runs / name / "result").is_dir()]
    if not found:
        raise DataError(f"{runs} holds no students; run `make demo` first, or name a file: retort serve CONFIG")
    models = tuple(ServedModel(name=name, path=runs / name) for name in found)
    return ServeConfig(models=models, default_model=found[-1])


@contextmanager
def serving(config: ServeConfig) -> Iterator[str]:
    """Serve inside the block; gives the address once every model is ready.

    Raises:
        MissingRequirementError: the application does not start; Ray Serve's reason is quoted.
    """
    needed = sum(model.cpus * model.max_replicas for model in config.models) + _FRONT_END_CPUS
    with ray_session(num_cpus=max(int(needed + 1), os.cpu_count() or 1), log_to_driver=False):
        from ray import serve

        from retort.serving.app import build

        serve.start(http_options={"host": config.host, "port": config.port, "request_timeout_s": None})
        try:
            serve.run(build(_absolute(config)), name=_APP, route_prefix="/")
        except RuntimeError as error:
            reason = serve.status().applications[_APP].message if _APP in serve.status().applications else str(error)
            raise MissingRequirementError(f"the application does not start: {reason}") from error
        try:
            yield f"http://{config.host}:{config.port}"
        finally:
            serve.shutdown()


def wait_for_the_end() -> None:
    """Sleep until SIGINT or SIGTERM."""
    over = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: over.set())
    over.wait()


def _absolute(config: ServeConfig) -> ServeConfig:
    """Workers have a working directory of their own."""
    models = tuple(model.replace(path=model.path.absolute()) for model in config.models)
    keys = None if config.api_keys is None else config.api_keys.absolute()
    return config.replace(models=models, api_keys=keys)
