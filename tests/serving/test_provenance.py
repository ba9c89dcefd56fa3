"""Marked speech over HTTP: every route that can say something, in every format, alone and as a stream."""

import base64
import io
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from fastapi import FastAPI
from fastapi.responses import Response, StreamingResponse
from fastapi.routing import APIRoute

from retort.audio.marked_files import raw_samples, read_marked
from retort.audio.provenance import COMMENT, Provenance
from retort.errors import RetortError
from retort.serving.api import build_api
from retort.serving.gate import PROVENANCE, MarkGate
from retort.serving.settings import ServeConfig, ServedModel
from retort.serving.speaking import Snippet
from tests.audio.test_provenance import config as provenance_config
from tests.audio.test_watermark import babble
from tests.serving.running import Stub, running

SOUND = babble(6.0, seed=2)
MODEL = ServedModel(name="tiny", path=Path())


def api(folder: Path, **changes: Any) -> FastAPI:
    provenance = provenance_config(folder, **changes)
    pieces = [Snippet(part) for part in torch.from_numpy(SOUND).split(7_000)]
    stub = Stub(*pieces, Snippet(torch.zeros(0), "said"))
    return build_api(ServeConfig(models=(MODEL,), provenance=provenance), {"tiny": stub})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("provenance")


@pytest.fixture(scope="module")
def made(folder: Path) -> FastAPI:
    return api(folder)


@pytest.fixture(scope="module")
def address(made: FastAPI) -> Iterator[str]:
    with running(made) as url:
        yield url


def speaking_routes(app: FastAPI) -> dict[str, list[dict[str, Any]]]:
    """Each route that can answer with sound, and every choice of its enumerations, from the document."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path, operations in app.openapi()["paths"].items():
        for operation in operations.values():
            content = operation["responses"].get("200", {}).get("content", {})
            if any(kind.startswith(("audio/", "text/event-stream")) for kind in content):
                schema = operation["requestBody"]["content"]["application/json"]["schema"]["properties"]
                choices = {name: field["enum"] for name, field in schema.items() if "enum" in field}
                found[path] = [dict(zip(choices, one, strict=True)) for one in itertools.product(*choices.values())]
    return found


def ask(url: str, wanted: dict[str, Any]) -> httpx.Response:
    return httpx.post(url, json={"model": "tiny", "input": "one", "voice": "s0", **wanted})


def sound_of(answer: httpx.Response) -> tuple[bytes, str]:
    """The bytes of the sound, and the statement beside it."""
    if not answer.headers["content-type"].startswith("text/event-stream"):
        return answer.content, answer.headers[PROVENANCE]
    events = [json.loads(line.removeprefix("data: ")) for line in answer.text.split("\n\n") if line]
    return b"".join(base64.b64decode(event["audio"]) for event in events[:-1]), events[-1]["provenance"]


def test_every_route_says_in_the_document_what_it_can_answer(made: FastAPI) -> None:
    routes = speaking_routes(made)
    assert set(routes) == {"/v1/audio/speech"}
    choices = routes["/v1/audio/speech"]
    assert len(choices) == 12
    assert {one["response_format"] for one in choices} == {"mp3", "opus", "aac", "flac", "wav", "pcm"}


def test_every_route_and_format_carries_both_marks(made: FastAPI, address: str) -> None:
    for path, choices in speaking_routes(made).items():
        # Left out, a stream is not asked for, and WAV and FLAC come whole.
        lone = [{"response_format": one["response_format"]} for one in choices]
        for wanted in [*choices, *{str(one): one for one in lone}.values()]:
            answer = ask(address + path, wanted)
            assert answer.status_code == 200, (wanted, answer.text)
            body, statement = sound_of(answer)
            assert answer.headers[PROVENANCE].count(".") == 2
            name = wanted["response_format"]
            fields = {"format": "pcm", "statement": statement} if name == "pcm" else {}
            found = httpx.post(address + "/v1/audio/detect", data=fields, files={"file": ("speech", body)}).json()
            assert found["watermark"]["found"], (wanted, found)
            assert found["signature"]["valid"] is True, (wanted, found)
            assert found["signature"]["claims"]["model"] == "tiny"
            assert found["signature"]["claims"]["format"] == name
            is_whole = name in ("wav", "flac") and "stream_format" not in wanted
            is_told_at_the_end = name == "pcm" and wanted.get("stream_format") == "sse"
            assert found["signature"]["intact"] is (True if is_whole or is_told_at_the_end else None), (wanted, found)


@pytest.mark.parametrize("name", ["wav", "flac", "pcm"])
def test_a_marked_stream_is_sample_for_sample_the_marked_whole(address: str, name: str) -> None:
    answers = [
        ask(f"{address}/v1/audio/speech", {"response_format": name, **how}).content
        for how in ({}, {"stream_format": "audio"})
    ]
    whole, stream = (
        (raw_samples(body) if name == "pcm" else read_marked(body, max_seconds=60)).samples_N for body in answers
    )
    assert np.array_equal(whole, stream)
    assert len(whole) == len(SOUND)
    assert not np.array_equal(whole, SOUND)


def test_the_comment_says_in_words_that_the_speech_is_synthetic(address: str) -> None:
    for name in ("mp3", "opus", "aac", "flac", "wav"):
        body = ask(f"{address}/v1/audio/speech", {"response_format": name}).content
        assert read_marked(body, max_seconds=60).comment.startswith(COMMENT), name
        assert b"Synthetic speech." in body[:2000], name


def test_speech_at_another_speed_is_marked_as_it_is_heard(address: str) -> None:
    answer = ask(f"{address}/v1/audio/speech", {"response_format": "pcm", "speed": 0.5})
    found = httpx.post(
        f"{address}/v1/audio/detect", data={"format": "pcm"}, files={"file": ("x", answer.content)}
    ).json()
    assert found["watermark"]["found"]


def test_sound_of_others_is_not_marked(address: str) -> None:
    from retort.audio.files import wav_bytes

    files = {"file": ("x.wav", wav_bytes(torch.from_numpy(SOUND), 24_000))}
    found = httpx.post(f"{address}/v1/audio/detect", files=files).json()
    assert found["marked"] is False
    assert found["signature"] is None
    assert found["watermark"]["is_weak"] is True


@pytest.mark.parametrize(
    ("files", "fields", "status", "param"),
    [
        ({}, {"format": "pcm"}, 400, "file"),
        ({"file": ("x", b"")}, {}, 422, "file"),
        ({"file": ("x", b"RIFF\xff\xff\xff\xffWAVEnonsense")}, {}, 422, "file"),
        ({"file": ("x", b"#EXTM3U\nhttp://127.0.0.1:9/x.wav\n")}, {}, 422, "file"),
        ({"file": ("x", b"ffconcat version 1.0\nfile /etc/passwd\n")}, {}, 422, "file"),
        ({"file": ("x", b"ab")}, {"format": "mp3"}, 400, "format"),
        ({"file": ("x", b"ab")}, {"other": "1"}, 400, "other"),
    ],
    ids=["no file", "empty", "nonsense", "a playlist", "a list of files", "another format", "another field"],
)
def test_what_cannot_be_searched_is_refused(
    address: str, files: Any, fields: dict[str, str], status: int, param: str
) -> None:
    # httpx sends a form of several parts only if there is a file.
    sent = files or {"format": (None, "pcm")}
    answer = httpx.post(f"{address}/v1/audio/detect", data=fields if files else {}, files=sent)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["param"] == param


def test_a_server_that_marks_nothing_says_so_and_changes_nothing(tmp_path: Path) -> None:
    stub = Stub(Snippet(torch.from_numpy(SOUND), "said"))
    with running(build_api(ServeConfig(models=(MODEL,)), {"tiny": stub})) as url:
        answer = ask(f"{url}/v1/audio/speech", {"response_format": "wav"})
        assert PROVENANCE not in answer.headers
        assert len(answer.content) == 44 + 2 * len(SOUND)
        refused = httpx.post(f"{url}/v1/audio/detect", files={"file": ("x", b"ab")})
    assert refused.status_code == 403
    assert refused.json()["error"]["code"] == "provenance_off"


def test_without_its_key_the_application_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(RetortError, match="cannot be read"):
        api(tmp_path, watermark={"kind": "spread_spectrum", "key_file": str(tmp_path / "gone")})


def test_a_new_route_that_forgets_the_mark_says_nothing(tmp_path: Path) -> None:
    rogue = api(tmp_path)

    async def forgetful() -> Response:
        return Response(b"sound", media_type="audio/wav")

    async def forgetful_stream() -> StreamingResponse:
        async def pieces() -> Any:
            yield b"data: sound\n\n"

        return StreamingResponse(pieces(), media_type="text/event-stream")

    rogue.add_api_route("/v2/one", forgetful, methods=["GET"])
    rogue.add_api_route("/v2/two", forgetful_stream, methods=["GET"])
    with running(rogue) as url:
        for path in ("/v2/one", "/v2/two"):
            answer = httpx.get(url + path)
            assert answer.status_code == 500
            assert answer.json()["error"]["code"] == "not_marked"
            assert b"sound" not in answer.content


def test_the_gate_stands_around_every_route_of_the_application(made: FastAPI) -> None:
    assert MarkGate in [middleware.cls for middleware in made.user_middleware]
    paths = {route.path for route in made.routes if isinstance(route, APIRoute)}
    assert "/v1/audio/detect" in paths


def test_a_watermark_that_fails_breaks_the_answer_and_no_sound_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no mark")

    monkeypatch.setattr(Provenance, "begin", fail)
    with running(api(tmp_path)) as url:
        answer = ask(f"{url}/v1/audio/speech", {"response_format": "wav"})
    assert answer.status_code == 500
    assert io.BytesIO(answer.content).read(4) != b"RIFF"
