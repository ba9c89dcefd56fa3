"""Who leaves is counted as one who left, however the server learns of it."""

import asyncio
import json
import socket

import httpx
import pytest
import torch

from retort.serving.speaking import Snippet
from tests.serving.running import Stub, api_of_stub, paused, running
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
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            connection.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
            assert stub.under_way.wait(20)
            if wanted["response_format"] == "pcm":
                assert b" 200 " in connection.recv(1000)
        assert paused(20, lambda: is_counted_as_left(httpx.get(f"{url}/metrics").text))


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
