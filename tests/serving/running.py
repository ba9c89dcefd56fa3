"""A real HTTP server over a model with random weights, in this process."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from retort.audio.files import Audio
from retort.inference.speech import GuardConfig
from retort.inference.voices import Voice
from retort.serving.api import build_api
from retort.serving.backends import Ask, Description, LocalBackend, Numbers
from retort.serving.settings import Limits, ServeConfig, ServedModel
from retort.serving.speaking import Snippet
from tests.patience import HANG_S, comes

PATIENT_LIMITS = Limits(max_text_tokens=200, deadline_s=HANG_S, body_timeout_s=60.0)
PATIENT = GuardConfig(seconds_per_character=0.2, extra_seconds=3.0, retries=1)


def settings(model: Path, **changes: object) -> ServeConfig:
    """Two names for one model; random weights rarely end by themselves, so the guard is patient."""
    served = tuple(ServedModel(name=name, path=model, precision="fp32", slots=4) for name in ("tiny", "other"))
    config = ServeConfig(models=served, default_model="tiny", guard=PATIENT, limits=PATIENT_LIMITS)
    return config.replace(**changes)


def backends(config: ServeConfig) -> dict[str, LocalBackend]:
    """In this process."""
    return {model.name: LocalBackend(model, config) for model in config.models}


@contextmanager
def running(api: FastAPI) -> Iterator[str]:
    """Serve until the block ends; gives the address."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(api, log_level="error"))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    assert comes(lambda: server.started, every_s=0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def api_of(config: ServeConfig, made: dict[str, LocalBackend]) -> FastAPI:
    """The application over backends of this process."""
    return build_api(config, made)


class Stub:
    """A backend without a model: says the pieces that it is given, then raises or goes on for ever.

    Args:
        pieces: what every request gets.
        error: raised after them.
        is_endless: more of the last piece follows until the client leaves.
        voices: that it says it has.
    """

    def __init__(
        self,
        *pieces: Snippet,
        error: Exception | None = None,
        is_endless: bool = False,
        voices: tuple[str, ...] = ("s0",),
    ) -> None:
        self.pieces, self.error, self.is_endless, self.has = pieces, error, is_endless, voices
        self.asks: list[Ask] = []
        self.under_way = threading.Event()
        """Set once more is wanted than the pieces."""

    async def speak(self, ask: Ask) -> AsyncIterator[Snippet]:
        """See :class:`Backend`."""
        self.asks.append(ask)
        for piece in self.pieces:
            yield piece
        self.under_way.set()
        if self.error is not None:
            raise self.error
        while self.is_endless:
            await asyncio.sleep(0.01)
            yield self.pieces[-1]

    async def describe(self) -> Description:
        """See :class:`Backend`."""
        return Description("tiny", "f", self.has, 24_000, "fp32", 0, "c")

    async def voice_of(self, audio: Audio) -> Voice:
        """See :class:`Backend`."""
        raise AssertionError("no voice is added in these tests")

    async def numbers(self) -> list[Numbers]:
        """See :class:`Backend`."""
        return []


def api_of_stub(stub: Stub, **settings: object) -> FastAPI:
    """The application over one model, ``tiny``."""
    config = ServeConfig(models=(ServedModel(name="tiny", path=Path()),), default_model="tiny")
    return build_api(config.replace(**settings), {"tiny": stub})
