"""A real HTTP server over a model with random weights, in this process."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from retort.inference.speech import GuardConfig
from retort.serving.api import build_api
from retort.serving.backends import LocalBackend
from retort.serving.settings import Limits, ServeConfig, ServedModel

PATIENT = GuardConfig(seconds_per_character=0.2, extra_seconds=3.0, retries=1)


def settings(model: Path, **changes: object) -> ServeConfig:
    """Two names for one model; random weights rarely end by themselves, so the guard is patient."""
    served = tuple(ServedModel(name=name, path=model, precision="fp32", slots=4) for name in ("tiny", "other"))
    config = ServeConfig(models=served, default_model="tiny", guard=PATIENT, limits=Limits(max_text_tokens=200))
    return config.replace(**changes)


def backends(config: ServeConfig) -> dict[str, LocalBackend]:
    """In this process."""
    return {model.name: LocalBackend(model, config) for model in config.models}


@contextmanager
def running(api: FastAPI) -> Iterator[str]:
    """Serve until the block ends; gives the address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(api, host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


def api_of(config: ServeConfig, made: dict[str, LocalBackend]) -> FastAPI:
    """The application over backends of this process."""
    return build_api(config, made)


def paused(seconds: float, is_over: Callable[[], bool]) -> bool:
    """Wait for something, a while."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if is_over():
            return True
        time.sleep(0.1)
    return False
