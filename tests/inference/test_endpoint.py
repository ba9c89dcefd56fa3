"""The client of speech services, against real HTTP servers: one that misbehaves as it is told to, and ours."""

import asyncio
import json
import logging
import random
import threading
import time

import numpy as np
import pytest
import torch
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse

from retort.audio.files import AudioRejected, wav_bytes
from retort.config import validate
from retort.errors import ConfigError, StorageError
from retort.inference.endpoint import EndpointConfig, Pace, RefusedText, SpeechEndpoint
from retort.serving.speaking import Snippet
from tests.serving.running import Stub, api_of_stub, running

KEY = "SECRET-API-KEY-0123456789"
TONE = torch.sin(torch.arange(12_000) / 24_000 * 2 * torch.pi * 200) * 0.2


class Service:
    """Answers with what it is told, one after the other; then with a tone."""

    def __init__(self, *answers):
        self.answers, self.seen, self.times = list(answers), [], []
        self.at_once = self.most_at_once = 0
        self.api = FastAPI()
        self.api.post("/v1/audio/speech")(self.speech)

    async def speech(self, request: Request) -> Response:
        self.seen.append((dict(request.headers), await request.json()))
        self.times.append(time.monotonic())
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            answer = self.answers.pop(0) if self.answers else Response(wav_bytes(TONE, 24_000))
            if isinstance(answer, float):
                await asyncio.sleep(answer)
                answer = Response(wav_bytes(TONE, 24_000))
            return answer
        finally:
            self.at_once -= 1


def refusal(status, message="no", **headers):
    return Response(json.dumps({"error": {"message": message}}), status, headers=headers)


class Waits(list):
    """Remembers how long was waited for, and does not wait."""

    def __call__(self, seconds):
        self.append(seconds)


def client_of(url, waits=None, key=KEY, **changes):
    config = validate({"base_url": f"{url}/v1/", "model": "m", **changes}, EndpointConfig, where="test")
    return SpeechEndpoint(config, key, sleep=Waits() if waits is None else waits)


def test_a_request_is_openais_and_the_answer_is_the_recording():
    service = Service()
    with running(service.api) as url:
        client = client_of(url, send_seed=True, extra={"speed": 1.25})
        answer = client.speak("Hello.", "v", seed=7)
    headers, body = service.seen[0]
    assert body == {
        "model": "m", "input": "Hello.", "voice": "v", "response_format": "wav", "seed": 7, "speed": 1.25,
    }  # fmt: skip
    assert headers["authorization"] == f"Bearer {KEY}"
    assert torch.allclose(answer.audio.samples_N, TONE, atol=1e-4)
    assert 0 < answer.first_sound_s <= answer.total_s
    assert answer.attempts == 1


def test_without_a_key_and_a_seed_neither_is_sent():
    service = Service()
    with running(service.api) as url:
        client_of(url, key=None).speak("Hello.", "v", seed=7)
    assert "authorization" not in service.seen[0][0]
    assert "seed" not in service.seen[0][1]


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504])
def test_what_may_pass_is_asked_again_after_pauses_that_grow(status):
    waits, service = Waits(), Service(*(refusal(status) for _ in range(3)))
    with running(service.api) as url:
        assert client_of(url, waits).speak("Hello.", "v").attempts == 4
    for number, pause in enumerate(waits):
        assert 0.5 * 2**number * 0.5 <= pause <= 0.5 * 2**number * 1.5
    assert len({body["input"] for _, body in service.seen}) == 1


def test_pauses_differ_between_clients():
    random.seed(0)
    found = []
    for _ in range(2):
        waits, service = Waits(), Service(refusal(503))
        with running(service.api) as url:
            client_of(url, waits).speak("Hello.", "v")
        found += waits
    assert found[0] != found[1]


def test_retry_after_is_kept():
    waits, service = Waits(), Service(refusal(429, **{"Retry-After": "17"}))
    with running(service.api) as url:
        client_of(url, waits).speak("Hello.", "v")
    assert 17.0 <= waits[0] <= 18.7


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (refusal(400, "too rude"), RefusedText, "too rude"),
        (refusal(422, "too rude"), RefusedText, "too rude"),
        (refusal(401, f"wrong key {KEY}"), ConfigError, "refuses the key.*SPEECH_KEY"),
        (refusal(403), ConfigError, "refuses the key"),
        (refusal(404, "no such model"), ConfigError, "no such model.*correct base_url"),
        (refusal(302, "", Location="http://elsewhere/"), ConfigError, "answers 302"),
        (Response('{"error": {"message": "pay", "code": "insufficient_quota"}}', 429), ConfigError, "pay"),
        (Response(b"<html>"), AudioRejected, "unreadable"),
        (Response(b""), AudioRejected, "empty"),
    ],
)
def test_what_is_refused_for_good_is_asked_once(answer, error, message):
    service = Service(answer)
    with running(service.api) as url, pytest.raises(error, match=message) as caught:
        client_of(url, api_key_env="SPEECH_KEY").speak("Hello.", "v")
    assert len(service.seen) == 1
    assert KEY not in str(caught.value)


def test_a_service_that_stays_broken_or_is_not_there_is_given_up_and_the_key_is_not_told(caplog):
    caplog.set_level(logging.DEBUG)
    service = Service(*(refusal(500, f"broken by {KEY}") for _ in range(9)))
    with (
        running(service.api) as url,
        pytest.raises(StorageError, match=r"500 broken by \(the key\).*goes on") as caught,
    ):
        client_of(url, max_attempts=3).speak("Hello.", "v")
    assert len(service.seen) == 3
    with pytest.raises(StorageError, match="ConnectError"):
        client_of("http://127.0.0.1:9", max_attempts=2).speak("Hello.", "v")
    assert KEY not in caplog.text + str(caught.value) + repr(caught.value.__context__)


def test_slow_answers_end_with_the_deadline_and_not_with_the_attempts():
    service = Service(*[30.0] * 9)
    with running(service.api) as url, pytest.raises(StorageError, match="ReadTimeout"):
        client_of(url, timeout_s=0.3, deadline_s=1.0).speak("Hello.", "v")
    assert 1 <= len(service.seen) <= 4


def test_sound_that_trickles_for_ever_is_given_up():
    async def trickle():
        while True:
            yield b"\0" * 64
            await asyncio.sleep(0.02)

    service = Service(StreamingResponse(trickle()))
    with running(service.api) as url, pytest.raises(StorageError, match="not all of the sound came"):
        client_of(url, timeout_s=0.5, max_attempts=1).speak("Hello.", "v")


def test_pcm_is_read_as_openai_means_it():
    service = Service(Response((TONE.numpy() * 32767).astype("<i2").tobytes()))
    with running(service.api) as url:
        audio = client_of(url, response_format="pcm").speak("Hello.", "v").audio
    assert audio.sample_rate == 24_000
    assert np.allclose(audio.samples_N, TONE, atol=1e-3)


def test_a_pace_is_kept_by_all_threads_together():
    now, lock = [0.0], threading.Lock()

    def sleep(seconds):
        waits.append(seconds)

    waits: list[float] = []
    pace = Pace(60.0, sleep, lambda: now[0])
    threads = [threading.Thread(target=pace.wait) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(waits) == pytest.approx([1.0, 2.0, 3.0, 4.0])
    now[0] = 100.0
    pace.wait()
    assert len(waits) == 4, "what was not used is not saved up, and nobody waits without need"
    assert not lock.locked()


def test_our_own_service_is_one():
    stub = Stub(Snippet(TONE, "said"))
    with running(api_of_stub(stub)) as url:
        for name in ("wav", "flac", "pcm", "mp3"):
            client = client_of(url, key=None, model="tiny", send_seed=True, response_format=name)
            assert client.speak("Hello.", "s0", seed=5).audio.duration_s == pytest.approx(0.5, abs=0.1)
        with pytest.raises(RefusedText, match="voice"):
            client.speak("Hello.", "nobody")
    assert {ask.seed for ask in stub.asks} == {5}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_url": "https://me:SECRET@host/v1"}, "without user, password"),
        ({"base_url": "https://host/v1?key=SECRET"}, "without user, password"),
        ({"base_url": "ftp://host"}, "base_url"),
        ({"api_key_env": "sk-SECRET"}, "the name of a variable"),
        ({"api_key_env": "KEY", "api_key_file": "key"}, "give one of them"),
        ({"api_key": "SECRET"}, "api_key"),
        ({"extra": {"voice": "x"}}, "key of its own"),
    ],
)
def test_a_secret_has_no_place_in_a_run_file(changes, message):
    with pytest.raises(ConfigError, match=message):
        validate({"base_url": "https://host/v1", "model": "m", **changes}, EndpointConfig, where="test")
