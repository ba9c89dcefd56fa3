"""The API over real HTTP: the official client, curl, every format, bad requests, keys, disconnects."""

import asyncio
import base64
import contextlib
import io
import json
import secrets
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import psutil
import pytest
import soundfile
import torch
from fastapi.routing import APIRoute

from retort.serving.backends import LocalBackend
from retort.serving.formats import KINDS
from retort.serving.gate import OPEN_ROUTES
from retort.serving.requests import AudioFormat
from retort.serving.settings import Limits, ServeConfig
from retort.serving.speaking import Snippet
from tests.inference.speaking import speaking_model
from tests.patience import HANG_S, comes
from tests.serving.running import Stub, api_of, api_of_stub, backends, running, settings

KEY = "a-key-for-the-tests-0001"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ServeConfig:
    return settings(speaking_model(tmp_path_factory.mktemp("api")))


@pytest.fixture(scope="module")
def made(config: ServeConfig) -> dict[str, LocalBackend]:
    return backends(config)


@pytest.fixture(scope="module")
def seed(made: dict[str, LocalBackend]) -> int:
    """With which the random weights end an utterance of a second or more by themselves."""
    return good_seed(made["tiny"])


def good_seed(backend: LocalBackend) -> int:
    from retort.inference.speaker import Request, Wish

    engine = backend.speaker.__class__(
        backend.speaker.synthesizer, max_slots=1, max_conditions=1, guard=backend.speaker.guard.replace(retries=0)
    )
    for candidate in range(500):
        ticket = engine.add(Wish(Request("one two", "s0", candidate), backend.decoding))
        sounds = []
        while engine.num_active:
            sounds += [sound for sound in engine.step() if sound.ticket == ticket]
        if sounds[-1].outcome == "said" and sum(sound.samples_N.numel() for sound in sounds) > 16_000:
            return candidate
    raise AssertionError("no seed ends")


@pytest.fixture(scope="module")
def address(config: ServeConfig, made: dict[str, LocalBackend]) -> Iterator[str]:
    with running(api_of(config, made)) as url:
        yield url


def body(seed: int, **changes: object) -> dict[str, object]:
    return {"model": "tiny", "input": "one two", "voice": "s0", "seed": seed, **changes}


def speak(address: str, wanted: dict[str, object], **options: object) -> httpx.Response:
    return httpx.post(f"{address}/v1/audio/speech", json=wanted, **options)  # type: ignore[arg-type]


def test_the_official_client_just_works(address: str, seed: int) -> None:
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="unused")
    assert {model.id for model in client.models.list()} == {"tiny", "other"}
    assert client.models.retrieve("tiny").owned_by == "retort"
    for name in KINDS:
        answer = client.audio.speech.create(
            model="tts-1", voice="s0", input="one two", response_format=name, extra_body={"seed": seed}
        )
        assert len(answer.content) > 1000
    with client.audio.speech.with_streaming_response.create(
        model="tiny", voice="s0", input="one two", response_format="pcm", extra_body={"seed": seed}
    ) as stream:
        parts = list(stream.iter_bytes())
    assert b"".join(parts) == speak(address, body(seed, response_format="pcm")).content
    with pytest.raises(openai.BadRequestError) as caught:
        client.audio.speech.create(model="tiny", voice="nobody", input="one")
    assert caught.value.param == "voice"
    with pytest.raises(openai.NotFoundError):
        client.audio.speech.create(model="gone", voice="s0", input="one")


def test_curl_writes_a_file_that_plays(address: str, seed: int, tmp_path: Path) -> None:
    out = tmp_path / "out.wav"
    command = [
        "curl", "-sS", "--fail", f"{address}/v1/audio/speech", "-H", "Content-Type: application/json", "-o", str(out),
        "-d", json.dumps(body(seed, response_format="wav")),
    ]  # fmt: skip
    subprocess.run(command, check=True, timeout=HANG_S)
    sound, rate = soundfile.read(out)
    assert rate == 24_000
    assert len(sound) > 20_000


@pytest.mark.parametrize("name", KINDS)
def test_a_stream_is_the_file_and_the_same_seed_the_same_sound(address: str, seed: int, name: AudioFormat) -> None:
    whole = speak(address, body(seed, response_format=name))
    stream = speak(address, body(seed, response_format=name, stream_format="audio"))
    assert whole.status_code == stream.status_code == 200
    assert whole.headers["content-type"] == KINDS[name].media_type
    assert whole.headers["x-seed"] == str(seed)
    head = {"wav": 44, "flac": 42}.get(name, 0)  # the headers that hold a length
    assert whole.content[head:] == stream.content[head:]
    if name == "wav":
        assert struct.unpack("<I", stream.content[40:44])[0] == 0xFFFFFFFF
        assert struct.unpack("<I", whole.content[40:44])[0] == len(whole.content) - 44
        assert int(whole.headers["content-length"]) == len(whole.content)


def test_a_seed_that_was_drawn_is_one_that_javascript_can_send_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "randbits", lambda bits: 2**bits - 1)
    with running(api_of_stub(Stub(Snippet(torch.zeros(100), "said")))) as url:
        drawn = int(speak(url, {"model": "tiny", "input": "one", "voice": "s0"}).headers["x-seed"])
    assert 2**32 < drawn <= 2**53
    assert int(float(drawn)) == drawn


def test_events_carry_the_same_bytes_and_end_with_done(address: str, seed: int) -> None:
    events = speak(address, body(seed, response_format="pcm", stream_format="sse"))
    assert events.headers["content-type"].startswith("text/event-stream")
    told = [json.loads(line.removeprefix("data: ")) for line in events.text.split("\n\n") if line]
    assert [event["type"] for event in told] == ["speech.audio.delta"] * (len(told) - 1) + ["speech.audio.done"]
    sound = b"".join(base64.b64decode(event["audio"]) for event in told[:-1])
    assert sound == speak(address, body(seed, response_format="pcm")).content
    assert told[-1]["usage"]["output_tokens"] == len(sound) // 2


def test_voices_and_models_are_listed(address: str) -> None:
    voices = httpx.get(f"{address}/v1/audio/voices").json()
    assert voices["voices"][:2] == [{"id": "s0", "name": "s0"}, {"id": "s1", "name": "s1"}]
    assert voices["data"][0] == {"id": "s0", "name": "s0", "models": ["tiny", "other"]}
    assert httpx.get(f"{address}/v1/audio/voices?model=tiny").json()["data"][0]["models"] == ["tiny"]
    assert httpx.get(f"{address}/health/live").json() == {"status": "alive"}
    assert httpx.get(f"{address}/health/ready").json()["status"] == "ready"


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"input": ""}, 400, "input"), ({"input": "\U0001f600 !"}, 400, "input"), ({"input": "x" * 4097}, 400, "input"),
        ({"voice": "nobody"}, 400, "voice"), ({"model": "gone"}, 404, "model"), ({"speed": 9}, 400, "speed"),
        ({"language": "de"}, 400, "language"), ({"ref_audio": "file:///etc/passwd"}, 400, "ref_audio"),
        ({"input": "one " * 1000}, 400, "input"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_in_openais_shape(
    address: str, seed: int, change: dict[str, object], status: int, param: str
) -> None:
    answer = speak(address, body(seed, **change))
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert answer.json()["error"]["param"] == param


def test_bodies_are_counted_while_they_arrive(address: str) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(1000):
            yield b'{"input": "' + b"x" * 10_000

    headers = {"Content-Type": "application/json"}
    url = f"{address}/v1/audio/speech"
    with contextlib.suppress(httpx.WriteError, httpx.RemoteProtocolError):  # it may hang up on what it does not read
        assert httpx.post(url, content=endless(), headers=headers).status_code == 413
    assert httpx.post(url, content=b"x" * 100_000, headers=headers).status_code == 413
    assert httpx.post(url, content=b"{}", headers={"Content-Type": "text/plain"}).status_code == 415
    gzip = {**headers, "Content-Encoding": "gzip"}
    assert httpx.post(url, content=b"{}", headers=gzip).status_code == 415


def test_a_gigabyte_is_cut_off_and_takes_no_memory(address: str) -> None:
    """The client and the server are in this process: neither may keep what was sent."""
    host, port = address.removeprefix("http://").split(":")
    head = f"POST /v1/audio/speech HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    part, process, sent = b"10000\r\n" + b"x" * 65_536 + b"\r\n", psutil.Process(), 0
    before = largest = process.memory_info().rss
    with socket.create_connection((host, int(port)), timeout=HANG_S) as connection:
        connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        with contextlib.suppress(ConnectionError):
            while sent < 2**30:
                connection.sendall(part)
                sent += len(part)
                largest = max(largest, process.memory_info().rss)
    assert sent < 2**26, "what the sockets hold, and no more"
    assert largest - before < 2**26


def test_a_body_that_does_not_come_is_given_up(config: ServeConfig, made: dict[str, LocalBackend]) -> None:
    hasty = config.replace(limits=Limits(body_timeout_s=0.2))
    with running(api_of(hasty, made)) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=HANG_S) as connection:
            head = f"POST /v1/audio/speech HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            connection.sendall(f"{head}Content-Length: 50\r\n\r\n{{".encode())
            assert b" 408 " in connection.recv(200)


def test_a_client_that_leaves_stops_the_work_within_a_frame(
    address: str, made: dict[str, LocalBackend], seed: int
) -> None:
    speaking = made["tiny"].speaking
    before = speaking.num_cancelled
    for _ in range(5):
        with httpx.stream(
            "POST", f"{address}/v1/audio/speech", json=body(seed, input="one two three four", response_format="pcm")
        ) as answer:
            next(answer.iter_raw(1))
    assert comes(lambda: not speaking.speaker.num_active and not speaking.admission.in_flight_s)
    assert speaking.frames_after_cancel <= speaking.num_cancelled - before


def test_a_failed_stream_never_looks_like_a_finished_file(config: ServeConfig, made: dict[str, LocalBackend]) -> None:
    """A limit that random weights overrun: a broken connection, an ``error`` event, or a 500."""
    engine = made["other"].speaker
    kept, engine.guard = engine.guard, engine.guard.replace(extra_seconds=0.3, seconds_per_character=0.001, retries=0)
    try:
        with running(api_of(config, made)) as url:
            outcomes = set()
            for seed in range(12):
                wanted = body(seed, model="other", response_format="pcm")
                events = speak(url, {**wanted, "stream_format": "sse"}).text
                if '"type": "error"' not in events:
                    continue
                assert "speech.audio.done" not in events
                outcomes.add("event")
                try:
                    answer = speak(url, wanted)
                    assert answer.status_code == 500  # nothing had been sent yet
                    outcomes.add("status")
                except httpx.RemoteProtocolError:
                    outcomes.add("broken")
                whole = speak(url, {**wanted, "response_format": "wav"})
                assert whole.status_code == 500
                assert whole.json()["error"]["code"] == "generation_unstable"
            assert "event" in outcomes
            assert outcomes & {"status", "broken"}
    finally:
        engine.guard = kept


def test_every_route_but_the_open_ones_needs_a_key(
    config: ServeConfig, made: dict[str, LocalBackend], tmp_path: Path, seed: int
) -> None:
    keys = tmp_path / "keys"
    keys.write_text(KEY)
    api = api_of(config.replace(api_keys=keys), made)
    with running(api) as url:
        routes = [route for route in api.routes if hasattr(route, "path")]
        assert len(routes) >= 8
        for route in routes:
            path = route.path.replace("{name:path}", "tiny")
            methods = route.methods if isinstance(route, APIRoute) else {"GET"}
            for method in methods:
                status = httpx.request(method, url + path).status_code
                if path in OPEN_ROUTES:
                    assert status == 200, path
                else:
                    assert status == 401, f"{method} {path} is not behind the gate"
        assert httpx.get(f"{url}/nowhere").status_code == 401, "not even what is absent is told"
        with_key = {"Authorization": f"Bearer {KEY}"}
        assert httpx.get(f"{url}/v1/models", headers=with_key).status_code == 200
        assert httpx.get(f"{url}/", auth=("anybody", KEY)).status_code == 200
        assert httpx.get(f"{url}/v1/models?api_key={KEY}").status_code == 401
        assert speak(url, body(seed), headers=with_key).status_code == 200
        refused = httpx.get(f"{url}/v1/models", headers={"Authorization": "Bearer wrong-key-0123456789"})
        assert refused.json()["error"]["code"] == "invalid_api_key"
        client = openai.OpenAI(base_url=f"{url}/v1", api_key=KEY)
        assert len(client.models.list().data) == 2


def test_guessing_keys_is_slowed_down_and_a_right_key_still_opens(
    config: ServeConfig, made: dict[str, LocalBackend], tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text(KEY)
    with running(api_of(config.replace(api_keys=keys), made)) as url, httpx.Client(base_url=url) as client:
        wrong = {"Authorization": "Bearer not-the-key-0123456789"}
        statuses = [client.get("/v1/models", headers=wrong).status_code for _ in range(40)]
        assert statuses == [401] * 30 + [429] * 10
        assert client.get("/v1/models", headers={"Authorization": f"Bearer {KEY}"}).status_code == 200


def test_a_request_that_gets_no_sound_in_time_is_given_up(
    config: ServeConfig, made: dict[str, LocalBackend], seed: int
) -> None:
    api = api_of(config.replace(limits=config.limits.replace(deadline_s=1e-4)), made)
    with running(api) as url:
        late = speak(url, body(seed))
    assert (late.status_code, late.json()["error"]["code"], late.headers["retry-after"]) == (503, "deadline", "1")
    assert comes(lambda: not made["tiny"].speaking.admission.in_flight_s), "and nothing is computed for it"


def test_no_address_in_a_request_is_ever_opened(address: str, seed: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.setblocking(False)
        url = f"http://127.0.0.1:{trap.getsockname()[1]}/voice.wav"
        for change in ({"ref_audio": url}, {"voice": url[:60]}, {"voice": {"id": url[:60]}}, {"input": url}):
            speak(address, body(seed, **change))
        assert speak(address, body(seed, ref_audio=url)).json()["error"]["param"] == "ref_audio"
        with pytest.raises(BlockingIOError):  # nobody is in the queue
            trap.accept()


@pytest.mark.parametrize("stalls_for_s", [0.5, 3600.0])
def test_who_reads_too_slowly_is_cut_off(
    config: ServeConfig, made: dict[str, LocalBackend], seed: int, stalls_for_s: float
) -> None:
    api = api_of(config.replace(limits=config.limits.replace(slow_reader_s=0.2)), made)
    wanted = json.dumps(body(seed, input="one two. " * 20, response_format="pcm")).encode()
    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "POST",
        "path": "/v1/audio/speech", "raw_path": b"/v1/audio/speech", "query_string": b"", "root_path": "",
        "scheme": "http", "headers": [(b"content-type", b"application/json")], "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }  # fmt: skip
    sent: list[dict[str, object]] = []

    async def request() -> bool:
        bodies = iter([{"type": "http.request", "body": wanted, "more_body": False}])

        async def receive() -> dict[str, object]:
            for message in bodies:
                return message
            await asyncio.sleep(3600)
            raise AssertionError

        async def send(message: dict[str, object]) -> None:
            sent.append(message)
            if message["type"] == "http.response.body":
                await asyncio.sleep(stalls_for_s)

        task = asyncio.ensure_future(api(scope, receive, send))
        await asyncio.wait({task}, timeout=HANG_S)
        return task.done()

    assert asyncio.run(request())
    assert sent[0]["status"] == 200
    assert all(message.get("more_body") for message in sent[1:]), "the stream is never closed as if it were whole"
    assert comes(lambda: not made["tiny"].speaking.admission.in_flight_s), "and nothing is computed for it"


def test_metrics_count_what_happened_and_name_no_voice(address: str, seed: int) -> None:
    speak(address, body(seed))
    text = httpx.get(f"{address}/metrics").text
    assert 'retort_requests_total{model="tiny",status="200"}' in text
    assert 'retort_first_audio_seconds_count{model="tiny"}' in text
    assert "retort_audio_seconds_in_flight" in text
    assert "s0" not in text


def test_speed_changes_the_length(address: str, seed: int) -> None:
    lengths = {}
    for speed in (1.0, 2.0):
        sound, _ = soundfile.read(io.BytesIO(speak(address, body(seed, response_format="wav", speed=speed)).content))
        lengths[speed] = len(sound)
    assert lengths[2.0] == pytest.approx(lengths[1.0] / 2, rel=0.1)
