"""A denoiser of mels behind the API: sentence by sentence, in every format, and what it cannot do is said."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import soundfile

from retort.errors import ConfigError
from retort.inference.decoding import CodecLMDecoding, MelDiffusionDecoding
from retort.inference.diffusion_sampling import DDIMSolver
from retort.nn.diffusion_guidance import RampedGuidance
from retort.orchestration.say import say
from retort.serving.backends import LocalBackend
from retort.serving.settings import ServeConfig
from tests.inference.speaking import STUDENT, speaking_denoiser
from tests.serving.running import api_of, backends, running, settings

TEXT = "One two."


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ServeConfig:
    config = settings(speaking_denoiser(tmp_path_factory.mktemp("api"), mean_frames=12.0, **STUDENT))
    models = [model.replace(part_characters=len(TEXT)).model_dump(mode="json") for model in config.models]
    return config.replace(models=models, layout="together")


@pytest.fixture(scope="module")
def made(config: ServeConfig) -> dict[str, LocalBackend]:
    return backends(config)


@pytest.fixture(scope="module")
def address(config: ServeConfig, made: dict[str, LocalBackend]) -> Iterator[str]:
    with running(api_of(config, made)) as url:
        yield url


def ask(address: str, **changes: Any) -> httpx.Response:
    body = {"model": "tiny", "input": TEXT, "voice": "s0", "seed": 3, **changes}
    return httpx.post(f"{address}/v1/audio/speech", json=body)


def test_it_is_listed_and_speaks_in_every_format(address: str, made: dict[str, LocalBackend]) -> None:
    (listed,) = (model for model in httpx.get(f"{address}/v1/models").json()["data"] if model["id"] == "tiny")
    assert made["tiny"].speaker.facts.fingerprint in str(listed)
    whole = ask(address, response_format="wav")
    assert whole.status_code == 200, whole.text
    sound, rate = soundfile.read(io.BytesIO(whole.content))
    assert rate == 24_000
    assert len(sound) > 0.02 * rate
    for kind in ("pcm", "flac", "mp3", "opus"):
        assert ask(address, response_format=kind).status_code == 200
    assert ask(address, response_format="wav").content == whole.content, "the same seed, the same bytes"


def test_sentences_come_one_after_the_other(address: str) -> None:
    alone = ask(address, response_format="pcm").content
    body = {"model": "tiny", "input": f"{TEXT} {TEXT} {TEXT}", "voice": "s0", "seed": 3, "response_format": "pcm"}
    with httpx.stream("POST", f"{address}/v1/audio/speech", json=body) as response:
        assert response.status_code == 200
        together = b"".join(response.iter_bytes())
    assert len(together) > len(alone) > 0
    assert ask(address, stream_format="sse", response_format="pcm").text.count("speech.audio.done") == 1


def test_what_it_cannot_do_is_refused(address: str, config: ServeConfig) -> None:
    unknown = ask(address, voice="eve")
    assert unknown.status_code == 400
    assert unknown.json()["error"]["code"] == "voice_not_found"
    for decoding, message in (
        (MelDiffusionDecoding(guidance=RampedGuidance(scale=2.0)), "guide twice"),
        (MelDiffusionDecoding(solver=DDIMSolver(num_steps=8)), "knows 4 steps, 8 were asked for"),
        (CodecLMDecoding(), "is a mel_diffusion, its decoding was given as kind: codec_lm"),
    ):
        with pytest.raises(ConfigError, match=message):
            LocalBackend(config.models[0].replace(decoding=decoding.model_dump(mode="json")), config)


def test_say_writes_what_the_speaker_says(tmp_path: Path, config: ServeConfig, made: dict[str, LocalBackend]) -> None:
    folder = config.models[0].path
    said = say("one two", folder, tmp_path / "out.wav", speaker="s1", seed=5)
    samples, rate = soundfile.read(tmp_path / "out.wav")
    assert said["seconds"] == pytest.approx(len(samples) / rate)
    assert said["model"] == made["tiny"].speaker.facts.fingerprint
    with pytest.raises(ConfigError, match="guide twice"):
        say("one two", folder, tmp_path / "out.wav", guidance_scale=2.0)
