"""Whatever goes wrong is told in OpenAI's shape, and tells nothing of the server's insides."""

import asyncio

import httpx
import openai
import pytest
import ray.exceptions
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import DeploymentUnavailableError

from tests.serving.running import Stub, api_of_stub, running
from tests.serving.test_api import body, speak


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nope", 404), ("DELETE", "/v1/audio/speech", 405), ("POST", "/v1/models/tiny", 405)],
)
def test_what_the_router_refuses_is_told_in_openais_shape(method: str, path: str, status: int) -> None:
    with running(api_of_stub(Stub())) as url:
        answer = httpx.request(method, url + path)
        assert answer.status_code == status
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["type"] == "invalid_request_error"
        assert ("allow" in answer.headers) == (status == 405)


def failing(error: Exception) -> httpx.Response:
    with running(api_of_stub(Stub(error=error))) as url:
        answer = speak(url, body(1))
        counted = f'retort_requests_total{{model="tiny",status="{answer.status_code}"}} 1.0'
        assert counted in httpx.get(f"{url}/metrics").text
    return answer


def test_what_nobody_expected_is_a_500_that_says_nothing_of_it() -> None:
    answer = failing(RuntimeError("/secret/path"))
    assert answer.status_code == 500
    assert answer.json()["error"] == {
        "message": "the server failed", "type": "server_error", "param": None, "code": "internal_error",
    }  # fmt: skip
    assert "/secret/path" not in answer.text


def test_what_nobody_expected_reaches_the_server_which_logs_it() -> None:
    async def ask() -> None:
        transport = httpx.ASGITransport(api_of_stub(Stub(error=RuntimeError("unexpected"))))
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            await client.post("/v1/audio/speech", json=body(1))

    with pytest.raises(RuntimeError, match="unexpected"):
        asyncio.run(ask())


@pytest.mark.parametrize(
    "error",
    [
        ray.exceptions.ActorDiedError(),
        ray.exceptions.ActorUnavailableError("gone", None),
        DeploymentUnavailableError(DeploymentID(name="model-tiny")),
    ],
)
def test_a_replica_that_is_gone_is_asked_again_later(error: Exception) -> None:
    answer = failing(error)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert answer.json()["error"]["code"] == "unavailable"
    assert "actor" not in answer.text.lower()


def test_the_official_client_understands_them() -> None:
    with running(api_of_stub(Stub(error=RuntimeError()))) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)
        with pytest.raises(openai.InternalServerError) as failed:
            client.audio.speech.create(model="tiny", voice="s0", input="one")
        assert failed.value.code == "internal_error"
        with pytest.raises(openai.NotFoundError) as absent:
            client.embeddings.create(model="tiny", input="one")
        assert absent.value.type == "invalid_request_error"
