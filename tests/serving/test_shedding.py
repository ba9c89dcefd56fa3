"""A flood costs the replicas little: their refusals stand for a while."""

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import torch

from retort.serving import api
from retort.serving.backends import Ask
from retort.serving.speaking import OverloadedError, Snippet
from tests.inference.speaking import speaking_model
from tests.serving.running import api_of, backends, running, settings


def body(seed: int) -> dict[str, object]:
    return {"model": "tiny", "input": "one two", "voice": "s0", "seed": seed, "response_format": "pcm"}


def speak(address: str, wanted: dict[str, object]) -> httpx.Response:
    return httpx.post(f"{address}/v1/audio/speech", json=wanted)


def test_a_refusal_stands_until_a_stream_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a flood, the replica is asked again when there is something new to learn."""
    monkeypatch.setattr(api, "_SHED_S", 1000.0)
    asked, may_end, is_full = [], threading.Event(), False

    async def speak_if_free(ask: Ask) -> AsyncIterator[Snippet]:
        asked.append(ask.seed)
        if is_full:
            raise OverloadedError(7.0)
        yield Snippet(torch.ones(4000))
        while not may_end.is_set():
            await asyncio.sleep(0.01)
        yield Snippet(torch.ones(4000), "said")

    config = settings(speaking_model(tmp_path))
    made = backends(config)
    monkeypatch.setattr(made["tiny"], "speak", speak_if_free)
    with running(api_of(config, made)) as url:
        with httpx.stream("POST", f"{url}/v1/audio/speech", json=body(1)) as first:
            is_full = True
            for number in (2, 3):
                refused = speak(url, body(number))
                assert (refused.status_code, refused.headers["retry-after"]) == (429, "7")
            assert asked == [1, 2], "the second refusal is the front end's own"
            is_full = False
            may_end.set()
            assert len(first.read()) == 2 * 12_000, "at 24 kHz"
        assert speak(url, body(4)).status_code == 200
        assert asked == [1, 2, 4]
