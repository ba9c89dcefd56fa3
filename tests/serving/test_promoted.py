"""An API whose model is replaced by another version while it runs."""

import httpx
import pytest
import torch

from retort.serving.backends import Description
from retort.serving.speaking import Snippet
from tests.serving.running import Stub, api_of_stub, running
from tests.serving.test_api import body, speak


class Promoted(Stub):
    """Says what it is by :attr:`version`, and how often it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        self.promote("old", 24_000)

    def promote(self, fingerprint: str, sample_rate: int, *voices: str) -> None:
        self.version = Description("tiny", fingerprint, ("s0", *voices), sample_rate, "fp32", 0, "c")
        self.pieces = (Snippet(torch.zeros(sample_rate), "said", fingerprint=fingerprint),)

    async def describe(self) -> Description:
        self.asked += 1
        return self.version


def seconds_of(wav: bytes) -> float:
    return int.from_bytes(wav[40:44], "little") / int.from_bytes(wav[28:32], "little")


def test_a_promoted_version_is_described_as_it_is() -> None:
    stub = Promoted()
    with running(api_of_stub(stub)) as address:
        wanted = body(1, response_format="wav")
        assert [seconds_of(speak(address, wanted).content) for _ in range(3)] == [1.0] * 3
        assert stub.asked == 1, "not again for each request"
        stub.promote("new", 16_000, "s1")
        assert seconds_of(speak(address, wanted).content) == pytest.approx(1.0, abs=0.01)
        assert httpx.get(f"{address}/v1/models/tiny").json()["fingerprint"] == "new"
        assert speak(address, {**wanted, "voice": "s1"}).status_code == 200


def test_a_voice_that_came_with_a_promotion_is_found() -> None:
    stub = Promoted()
    with running(api_of_stub(stub)) as address:
        wanted = body(1, response_format="wav", voice="s1")
        assert speak(address, wanted).status_code == 400
        stub.promote("new", 24_000, "s1")
        assert httpx.get(f"{address}/v1/audio/voices?legacy=true").json()["voices"][:2] == ["s0", "s1"]
        assert speak(address, wanted).status_code == 200
