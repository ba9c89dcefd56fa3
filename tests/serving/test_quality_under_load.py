"""Company changes nothing: what 64 are told at once are the bits that each of them is told alone."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import httpx
import pytest
import torch
from torch import Tensor

from retort.inference.opening import Room, open_speaker
from retort.inference.speaker import Request, Speaker, Wish
from tests.evaluation.asked import own_server
from tests.inference.speaking import speaking_model
from tests.patience import HANG_S
from tests.serving.running import PATIENT, PATIENT_LIMITS

MANY = 64
TEXTS = ("one", "two three", "four five six seven", "eight nine", "zero")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return speaking_model(tmp_path_factory.mktemp("load"), mean_frames=12)


def requests(count: int) -> list[Request]:
    return [Request(TEXTS[n % len(TEXTS)], f"s{n % 2}", 1000 + n) for n in range(count)]


def said(speaker: Speaker, asked: Sequence[Request]) -> list[Tensor]:
    """The samples of requests that are all there from the beginning, as many at once as there are slots."""
    waiting, sounds = list(enumerate(asked)), dict[int, list[Tensor]]()
    number_of = dict[int, int]()
    while waiting or speaker.num_active:
        while waiting and speaker.num_free:
            number, request = waiting.pop(0)
            number_of[speaker.add(Wish(request))] = number
        for sound in speaker.step():
            sounds.setdefault(number_of[sound.ticket], []).append(sound.samples_N)
    return [torch.cat(sounds[number]) for number in range(len(asked))]


@pytest.mark.parametrize("precision", ["fp32", "fastest"])
def test_an_engine_says_the_same_bits_at_64_as_at_1(model: Path, precision: Literal["fp32", "fastest"]) -> None:
    asked = requests(MANY)
    alone = said(open_speaker(model, precision=precision, room=Room(1, 30.0, 200, PATIENT)), asked)
    together = said(open_speaker(model, precision=precision, room=Room(MANY, 30.0, 200, PATIENT)), asked)
    assert sum(sound.numel() > 0 for sound in alone) > MANY // 2
    assert len({sound.numel() for sound in alone}) > 5, "they end at different times, so others join and leave"
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


def test_the_application_says_the_same_bits_to_64_clients_as_to_1(model: Path) -> None:
    """More than there are slots, so that some wait; what runs away, runs away in any company."""
    patient = PATIENT_LIMITS.replace(max_waiting_seconds=1e6)
    with own_server(model, slots=16, limits=patient) as url, httpx.Client(timeout=HANG_S, trust_env=False) as http:

        def ask(request: Request) -> tuple[int, bytes]:
            body = {
                "model": "tiny", "input": request.text, "voice": request.speaker, "seed": request.seed,
                "response_format": "pcm",
            }  # fmt: skip
            try:
                answer = http.post(f"{url}/v1/audio/speech", json=body)
            except httpx.TransportError:
                return 0, b""  # the stream broke: a runaway after its first sound
            return answer.status_code, answer.content if answer.status_code == 200 else b""

        alone = [ask(request) for request in requests(MANY)]
        with ThreadPoolExecutor(MANY) as pool:
            together = list(pool.map(ask, requests(MANY)))
    assert together == alone
    assert sum(status == 200 and len(sound) > 0 for status, sound in alone) > MANY // 2
