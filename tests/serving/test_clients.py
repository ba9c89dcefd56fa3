"""Clients that nobody here wrote: what they send at their defaults, and what they read back and send again."""

import base64
import http.client
import io
import json
import socket
import subprocess
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
import torch
from fastapi import FastAPI

from retort.config import validate
from retort.errors import ConfigError
from retort.serving.api import build_api
from retort.serving.catalogue import OPENAI_VOICES, openai_voices
from retort.serving.settings import ServeConfig, ServedModel
from retort.serving.speaking import Snippet
from tests.patience import HANG_S
from tests.serving.clients.record import PACKAGES, command_of, version_of
from tests.serving.running import Stub, api_of_stub, running

RECORDED = sorted((Path(__file__).parent / "clients").glob("*.http"))
VOICES = ("zoe", "ada", "max")
EXPECTED = {"alloy": "ada", "ash": "max", "ballad": "zoe", "cedar": "ada", "coral": "max", "verse": "ada"}
"""In the order of the alphabet, again and again."""


def second() -> Stub:
    """Says a tone of a second."""
    tone_N = 0.3 * torch.sin(torch.arange(24_000) * (2 * torch.pi * 440 / 24_000))
    return Stub(Snippet(tone_N, "said"), voices=VOICES)


def is_the_second(sound: bytes) -> bool:
    """Whether bytes are the tone, in MP3 or as raw samples."""
    if sound[:3] == b"ID3" or sound[0] == 0xFF:
        samples_N, rate = soundfile.read(io.BytesIO(sound), dtype="float32")
    else:
        samples_N, rate = np.frombuffer(sound, "<i2").astype(np.float32) / 32768, 24_000
    loudest_hz = np.argmax(np.abs(np.fft.rfft(samples_N))) * rate / len(samples_N)
    return bool(abs(len(samples_N) / rate - 1.0) < 0.15 and abs(loudest_hz - 440) < 5)


def test_every_client_of_the_folder_was_recorded() -> None:
    assert [path.name for path in RECORDED] == sorted(f"{script}.http" for script in PACKAGES)


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_what_clients_send_at_their_defaults_is_spoken(path: Path) -> None:
    """Byte by byte, as it was recorded from each."""
    _, _, request = path.read_bytes().partition(b"\n")
    wanted = json.loads(request.partition(b"\r\n\r\n")[2])
    stub = second()
    with running(api_of_stub(stub)) as url:
        address = httpx.URL(url)
        with socket.create_connection((address.host, address.port or 80), timeout=HANG_S) as connection:
            connection.sendall(request)
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            sound = answer.read()
    assert answer.status == 200, sound
    assert stub.asks[0].voice == openai_voices(VOICES)[wanted["voice"]]
    if wanted.get("stream_format") == "sse":
        events = [json.loads(event.removeprefix(b"data: ")) for event in sound.split(b"\n\n") if event]
        assert events[-1]["type"] == "speech.audio.done"
        sound = b"".join(base64.b64decode(event["audio"]) for event in events[:-1])
    assert is_the_second(sound)


@pytest.mark.slow
@pytest.mark.parametrize("script", PACKAGES)
def test_the_clients_themselves_say_it(script: str) -> None:
    missing = [package for package in PACKAGES[script] if version_of(script, package) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed for {script}; run `make clients`")
    with running(api_of_stub(second())) as url:
        said = subprocess.run(command_of(script, url), capture_output=True, timeout=HANG_S)
    assert said.returncode == 0, said.stderr.decode()
    assert is_the_second(said.stdout)


def test_open_webui_lists_what_it_then_asks_for() -> None:
    """As its public source reads: ids and names of ``voices``, ids of ``models``, and a body of its page's."""
    stub = second()
    assert len(set(OPENAI_VOICES)) == 13
    with running(api_of_stub(stub)) as url:
        voices = {voice["id"]: voice["name"] for voice in httpx.get(f"{url}/v1/audio/voices").json()["voices"]}
        models = [model["id"] for model in httpx.get(f"{url}/v1/audio/models").json()["models"]]
        assert list(voices) == [*sorted(VOICES), *OPENAI_VOICES]
        for model in (*models, "tts-1"):
            for voice in voices:
                body = {"input": "one two", "voice": voice, "model": model}
                answer = httpx.post(f"{url}/v1/audio/speech", json=body)
                assert answer.status_code == 200, answer.text
    assert {ask.voice for ask in stub.asks} == set(VOICES)


@pytest.mark.parametrize("alias", [*EXPECTED, "Alloy", "VERSE"])
def test_openais_voices_stand_for_the_models_own(alias: str) -> None:
    stub = second()
    with running(api_of_stub(stub)) as url:
        listed = {voice["id"]: voice for voice in httpx.get(f"{url}/v1/audio/voices").json()["data"]}
        answer = httpx.post(f"{url}/v1/audio/speech", json={"model": "tiny", "input": "one", "voice": alias})
    assert (answer.status_code, stub.asks[0].voice) == (200, EXPECTED[alias.lower()])
    assert listed[alias.lower()]["alias_of"] == {"tiny": EXPECTED[alias.lower()]}


@pytest.mark.parametrize(
    "model",
    [
        "tts-1", "tts-1-hd", "tts-1-1106", "gpt-4o-mini-tts", "gpt-4o-mini-tts-2025-12-15", "gpt-7-tts", "tts-3",
        "openai/tts-1", "GPT-4o-mini-TTS", "house",
    ],
)  # fmt: skip
def test_openais_models_and_aliases_stand_for_ours(model: str) -> None:
    with running(api_of_stub(second(), model_aliases={"house": "tiny"})) as url:
        answer = httpx.post(f"{url}/v1/audio/speech", json={"model": model, "input": "one", "voice": "ada"})
        assert (answer.status_code, answer.headers["x-model"]) == (200, "tiny")
        assert httpx.get(f"{url}/v1/models/{model}").json()["id"] == "tiny"
    if model != "house":
        with running(api_of_stub(second(), default_model=None)) as url:
            assert httpx.get(f"{url}/v1/models/{model}").json()["id"] == "tiny", "the only one there is"


def of_two(**settings: object) -> FastAPI:
    """The application over two models."""
    models = tuple(ServedModel(name=name, path=Path()) for name in ("tiny", "large"))
    return build_api(ServeConfig(models=models).replace(**settings), {"tiny": second(), "large": second()})


@pytest.mark.parametrize("model", ["tts-1", "gpt-4o-mini-tts-2025-12-15", "OpenAI/tts-1-hd"])
def test_of_several_models_without_a_default_the_refusal_names_the_key_and_the_models(model: str) -> None:
    body = {"model": model, "input": "one", "voice": "ada"}
    with running(of_two()) as url:
        refused = httpx.post(f"{url}/v1/audio/speech", json=body), httpx.get(f"{url}/v1/models/{model}")
        other = httpx.post(f"{url}/v1/audio/speech", json=body | {"model": "kokoro"}).json()["error"]["message"]
    for answer in refused:
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
        told = answer.json()["error"]["message"]
        assert "there are large, tiny;" in told
        assert "`default_model`" in told
    assert other == "no such model; there are large, tiny"
    with running(of_two(default_model="large")) as url:
        assert httpx.post(f"{url}/v1/audio/speech", json=body).headers["x-model"] == "large"
    with running(of_two(model_aliases={model: "tiny"})) as url:
        assert httpx.post(f"{url}/v1/audio/speech", json=body).headers["x-model"] == "tiny"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("日本 7", "%E6%97%A5%E6%9C%AC 7"), ("mod\u00e8le", "mod%C3%A8le"), ("a/b%20c", "a/b%20c"),
        ("x\r\ny: z", "x%0D%0Ay: z"),
    ],
)  # fmt: skip
def test_a_model_of_any_name_is_told_in_a_header(name: str, told: str) -> None:
    api = build_api(ServeConfig(models=(ServedModel(name=name, path=Path()),)), {name: second()})
    with running(api) as url:
        answer = httpx.post(f"{url}/v1/audio/speech", json={"model": name, "input": "one", "voice": "ada"})
    assert (answer.status_code, answer.headers["x-model"]) == (200, told)
    assert "y" not in answer.headers


@pytest.mark.parametrize("model", ["gone", "whisper-1", "tts", "gpt-", "tts-1 hd", "kokoro", ""])
def test_models_that_are_nobodys_name_are_refused(model: str) -> None:
    with running(api_of_stub(second())) as url:
        answer = httpx.post(f"{url}/v1/audio/speech", json={"model": model, "input": "one", "voice": "ada"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400 if not model else 404, "model")


def test_aliases_of_the_file_win_over_openais_and_lose_to_the_models_own() -> None:
    stub = second()
    aliases = {"alloy": "zoe", "ada": "max", "narrator": "max", "lost": "nobody"}
    with running(api_of_stub(stub, voice_aliases=aliases)) as url:
        said = {}
        for voice in (*aliases, "echo"):
            answer = httpx.post(f"{url}/v1/audio/speech", json={"model": "tiny", "input": "one", "voice": voice})
            said[voice] = stub.asks[-1].voice if answer.status_code == 200 else answer.json()["error"]["code"]
        listed = [voice["id"] for voice in httpx.get(f"{url}/v1/audio/voices").json()["data"]]
    assert said == {"alloy": "zoe", "ada": "ada", "narrator": "max", "lost": "voice_not_found", "echo": "zoe"}
    assert len(listed) == len(set(listed)) == len(VOICES) + len(OPENAI_VOICES) + 1


def test_an_alias_of_no_model_does_not_start(tmp_path: Path) -> None:
    tree = {"models": [{"name": "tiny", "path": str(tmp_path)}], "model_aliases": {"house": "gone"}}
    with pytest.raises(ConfigError, match="model_aliases: 'house' leads to 'gone', none of tiny"):
        validate(tree, ServeConfig, where="serve.yaml")


def test_whatever_is_listed_is_taken_back_as_it_is_listed() -> None:
    stub = second()
    with running(api_of_stub(stub, voice_aliases={"narrator": "max"})) as url:
        listing = httpx.get(f"{url}/v1/audio/voices").json()
        plain = httpx.get(f"{url}/v1/audio/voices?legacy=true").json()["voices"]
        assert listing["voices"] == [{"id": voice["id"], "name": voice["name"]} for voice in listing["data"]]
        assert plain == [voice["id"] for voice in listing["data"]]
        for voice in (*listing["voices"], *listing["data"], *plain, {"name": "max"}, {"id": "max", "name": None}):
            answer = httpx.post(f"{url}/v1/audio/speech", json={"model": "tiny", "input": "one", "voice": voice})
            assert answer.status_code == 200, (voice, answer.text)
        for model in httpx.get(f"{url}/v1/models").json()["data"]:
            body = {"model": model["id"], "input": "one", "voice": "max", "seed": int(answer.headers["x-seed"])}
            assert httpx.post(f"{url}/v1/audio/speech", json=body).status_code == 200


def test_null_is_a_field_that_is_left_out() -> None:
    stub = second()
    body = {"model": "tiny", "input": "one", "voice": "ada"}
    nulls = dict.fromkeys(
        ("response_format", "speed", "stream_format", "instructions", "seed", "language", "max_seconds")
    )
    with running(api_of_stub(stub, default_voice="max")) as url:
        absent, null = (httpx.post(f"{url}/v1/audio/speech", json=wanted) for wanted in (body, body | nulls))
        whole = httpx.post(f"{url}/v1/audio/speech", json={**body, **nulls, "response_format": "wav"})
        assert httpx.post(f"{url}/v1/audio/speech", json={"input": "one", "voice": None}).status_code == 200
        missing = httpx.post(f"{url}/v1/audio/speech", json={**body, "input": None})
    assert (absent.status_code, null.status_code) == (200, 200)
    assert absent.content == null.content
    assert int(whole.headers["content-length"]) == 44 + 2 * 24_000, "no stream was asked for"
    assert stub.asks[-1].voice == "max", "the default voice, by the default model"
    assert missing.json()["error"]["message"] == "the field input is missing"


@pytest.mark.parametrize("change", [{"model": None}, {"voice": None}])
def test_without_defaults_null_is_missing(change: dict[str, None]) -> None:
    (field,) = change
    with running(of_two()) as url:
        body = {"model": "tiny", "input": "one", "voice": "ada", **change}
        answer = httpx.post(f"{url}/v1/audio/speech", json=body)
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, f"the field {field} is missing")


def test_a_lenient_server_ignores_what_it_does_not_know_and_says_so() -> None:
    body = {"model": "tiny", "input": "one", "voice": {"id": "ada", "style": 1}, "stream": True, "a\r\nb: c": 1}
    with running(api_of_stub(second(), lenient=True)) as url:
        answer = httpx.post(f"{url}/v1/audio/speech", json=body)
        many = httpx.post(f"{url}/v1/audio/speech", json=body | {f"x{number}": 0 for number in range(3000)})
        known = httpx.post(f"{url}/v1/audio/speech", json={**body, "speed": 9})
        plain = httpx.post(f"{url}/v1/audio/speech", json={"model": "tiny", "input": "one", "voice": "ada"})
    assert (answer.status_code, answer.headers["x-ignored-fields"]) == (200, "stream, a??b??c, voice.style")
    assert many.headers["x-ignored-fields"].endswith("x17, ...")
    assert known.json()["error"]["param"] == "speed", "what is known is checked as ever"
    assert "x-ignored-fields" not in plain.headers
    with running(api_of_stub(second())) as url:
        assert httpx.post(f"{url}/v1/audio/speech", json=body).json()["error"]["param"] == "style"


def test_head_is_answered_on_every_get_route_without_a_body() -> None:
    models = (ServedModel(name="tiny", path=Path()),)
    api = build_api(ServeConfig(models=models), {"tiny": second()})
    paths = [path for path, item in api.openapi()["paths"].items() if "get" in item]
    assert len(paths) >= 7
    with running(api) as url, httpx.Client(base_url=url) as client:
        for path in (*paths, "/", "/openapi.json"):
            address = path.replace("{name}", "tiny")
            got, head = client.get(address), client.head(address)
            assert (got.status_code, head.status_code, head.content) == (200, 200, b""), path
            assert head.headers["content-type"] == got.headers["content-type"]
        assert client.head("/nowhere").status_code == 404
        assert client.head("/v1/audio/speech").status_code == 405
        assert client.get("/health/live").status_code == 200, "the connection is still of use"
