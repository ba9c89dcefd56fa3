"""What fails before any sound has a status of its own, in every format."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import torch

from retort.serving.backends import Ask
from retort.serving.formats import KINDS
from retort.serving.speaking import Snippet
from tests.inference.speaking import speaking_model
from tests.serving.running import api_of, backends, running, settings


def speak(address: str, **wanted: object) -> httpx.Response:
    body = {"model": "tiny", "input": "one two", "voice": "s0", **wanted}
    return httpx.post(f"{address}/v1/audio/speech", json=body)


def test_what_fails_before_any_sound_is_a_500_in_every_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(speaking_model(tmp_path))
    made = backends(config)
    with running(api_of(config, made)) as url:
        answers = [speak(url, seed=seed, max_seconds=1e-9) for seed in range(8)]
        assert {answer.status_code for answer in answers} <= {200, 500}, "and none breaks off"
        assert 500 in {answer.status_code for answer in answers}

    closed = []

    async def say_nothing(ask: Ask) -> AsyncIterator[Snippet]:
        try:
            yield Snippet(torch.zeros(0), "no_sound")
        finally:
            closed.append(ask)

    monkeypatch.setattr(made["tiny"], "speak", say_nothing)
    with running(api_of(config, made)) as url:
        for name in KINDS:
            answer = speak(url, response_format=name)
            assert (answer.status_code, answer.json()["error"]["code"]) == (500, "generation_unstable")
        events = speak(url, stream_format="sse")
        numbers = httpx.get(f"{url}/metrics").text
    assert (events.status_code, '"type": "error"' in events.text) == (200, True)
    assert len(closed) == len(KINDS) + 1
    assert f'retort_runaways_total{{model="tiny",outcome="no_sound"}} {len(closed)}.0' in numbers, "each counts once"
    assert f'retort_requests_total{{model="tiny",status="500"}} {len(KINDS)}.0' in numbers
