"""Who leaves is counted as one who left, however the server learns of it."""

import asyncio
import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
import torch

from retort.serving.speaking import OverloadedError, Snippet
from tests.patience import HANG_S, comes
from tests.serving.running import Stub, api_of_stub, running
from tests.serving.test_api import body


def endless() -> Stub:
    return Stub(Snippet(torch.ones(2400)), is_endless=True)


def is_counted_as_left(text: str) -> bool:
    counts = [line for line in text.splitlines() if line.startswith("retort_requests_total{")]
    return counts == ['retort_requests_total{model="tiny",status="499"} 1.0'] and (
        'retort_cancelled_total{model="tiny"} 1.0' in text
    )


@pytest.mark.parametrize(
    "wanted",
    [{"response_format": "wav"}, {"response_format": "pcm"}, {"response_format": "pcm", "stream_format": "sse"}],
)
def test_a_client_that_hangs_up_has_left(wanted: dict[str, object]) -> None:
    stub = endless()
    with running(api_of_stub(stub)) as url:
        host, port = url.removeprefix("http://").split(":")
        data = json.dumps(body(1, **wanted)).encode()
        head = f"POST /v1/audio/speech HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        with socket.create_connection((host, int(port)), timeout=HANG_S) as connection:
            connection.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
            assert stub.under_way.wait(HANG_S)
            if wanted["response_format"] == "pcm":
                assert b" 200 " in connection.recv(1000)
        assert comes(lambda: is_counted_as_left(httpx.get(f"{url}/metrics").text))


@pytest.mark.parametrize("name", ["wav", "pcm"])
def test_a_request_that_the_server_cancels_has_left(name: str) -> None:
    """As Ray Serve does when the client hangs up."""
    stub = endless()

    async def ask() -> str:
        transport = httpx.ASGITransport(api_of_stub(stub))
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            request = asyncio.ensure_future(client.post("/v1/audio/speech", json=body(1, response_format=name)))
            while not stub.under_way.is_set():
                await asyncio.sleep(0.01)
            request.cancel()
            await asyncio.gather(request, return_exceptions=True)
            return (await client.get("/metrics")).text

    assert is_counted_as_left(asyncio.run(ask()))


def test_a_stream_that_fails_is_broken_and_nobody_left() -> None:
    with running(api_of_stub(Stub(Snippet(torch.ones(2400)), error=RuntimeError()))) as url:
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.post(f"{url}/v1/audio/speech", json=body(1, response_format="pcm"))
        text = httpx.get(f"{url}/metrics").text
    assert 'retort_requests_total{model="tiny",status="broken"} 1.0' in text
    assert "retort_cancelled_total{" not in text


KEY = "a-key-for-the-tests-0001"


def refusals(text: str) -> dict[str, float]:
    """Counts by model and status, without what was said."""
    prefix, found = "retort_requests_total{", {}
    for line in text.splitlines():
        if line.startswith(prefix):
            labels, _, count = line.removeprefix(prefix).rpartition("} ")
            found[labels.replace('"', "")] = float(count)
    return found


def never() -> Iterator[bytes]:
    yield b'{"input": "'
    yield b"x" * 100_000


REFUSED: dict[str, tuple[dict[str, object], int]] = {
    "no JSON": ({"content": b"{", "headers": {"Content-Type": "application/json"}}, 400),
    "an unknown field": ({"json": body(1, colour="red")}, 400),
    "a voice that is not there": ({"json": body(1, voice="nobody")}, 400),
    "a model that is not there": ({"json": body(1, model="gone")}, 404),
    "a wrong key": ({"json": body(1), "headers": {"Authorization": "Bearer wrong-key-0123456789"}}, 401),
    "a body that grows": ({"content": never(), "headers": {"Content-Type": "application/json"}}, 413),
    "a kind of body": ({"content": b"{}", "headers": {"Content-Type": "text/plain"}}, 415),
    "another method": ({"method": "PUT", "json": body(1)}, 405),
    "another route": ({"path": "/nowhere", "method": "GET"}, 404),
    "uploads that are off": ({"path": "/v1/audio/voices", "content": b"{}"}, 403),
}


@pytest.mark.parametrize("name", REFUSED)
def test_whatever_is_refused_is_counted_once(name: str, tmp_path: Path) -> None:
    asked, status = REFUSED[name]
    keys = tmp_path / "keys"
    keys.write_text(KEY)
    options = {"method": "POST", "path": "/v1/audio/speech", **asked}
    headers = {"Authorization": f"Bearer {KEY}"}
    with running(api_of_stub(Stub(), api_keys=str(keys))) as url:
        path, method = options.pop("path"), options.pop("method")
        options["headers"] = headers | options.pop("headers", {})  # type: ignore[operator]
        with suppress(httpx.WriteError, httpx.RemoteProtocolError):  # it may hang up on what it does not read
            assert httpx.request(str(method), f"{url}{path}", **options).status_code == status  # type: ignore[arg-type]
        model = "tiny" if name == "a voice that is not there" else ""
        counted = refusals(httpx.get(f"{url}/metrics", headers=headers).text)
    assert counted == {f"model={model},status={status}": 1.0}


def test_a_body_that_does_not_come_and_a_key_that_is_guessed_are_counted(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(KEY)
    headers = {"Authorization": f"Bearer {KEY}"}
    with running(api_of_stub(Stub(), api_keys=str(keys), limits={"body_timeout_s": 0.2})) as url:
        host, port = url.removeprefix("http://").split(":")
        head = f"POST /v1/audio/speech HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {KEY}\r\n"
        with socket.create_connection((host, int(port)), timeout=HANG_S) as connection:
            connection.sendall(f"{head}Content-Type: application/json\r\nContent-Length: 50\r\n\r\n{{".encode())
            assert b" 408 " in connection.recv(200)
        with httpx.Client(base_url=url) as client:
            for _ in range(33):
                client.get("/v1/models")
        for path in ("/health/live", "/health/ready", "/v1/models"):
            assert httpx.get(f"{url}{path}", headers=headers).status_code == 200
        counted = refusals(httpx.get(f"{url}/metrics", headers=headers).text)
    assert counted == {"model=,status=408": 1.0, "model=,status=401": 30.0, "model=,status=429": 3.0}


def test_too_much_at_once_is_counted_for_its_model() -> None:
    with running(api_of_stub(Stub(error=OverloadedError(3.0)))) as url:
        statuses = [httpx.post(f"{url}/v1/audio/speech", json=body(1)).status_code for _ in range(3)]
        counted = refusals(httpx.get(f"{url}/metrics").text)
    assert statuses == [429] * 3
    assert counted == {"model=tiny,status=429": 3.0}
