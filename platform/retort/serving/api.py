"""The HTTP API: OpenAI's ``/v1/audio/speech`` and what surrounds it, as one ASGI application over any backends."""

import asyncio
import math
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from retort.audio.provenance import Marking, Provenance
from retort.errors import ConfigError, DataError
from retort.inference.voices import Voice
from retort.serving import detect
from retort.serving.answers import Answer, collect, in_pieces
from retort.serving.backends import Ask, Backend, Description
from retort.serving.bodies import read_body
from retort.serving.detect import Detector
from retort.serving.errors import ApiError, as_api_error, overloaded
from retort.serving.formats import KINDS
from retort.serving.gate import PROVENANCE, Gate, MarkGate
from retort.serving.keys import ApiKeys
from retort.serving.metrics import Metrics
from retort.serving.requests import SpeechRequest, parse_speech_request
from retort.serving.settings import ServeConfig
from retort.serving.speaking import OverloadedError, Snippet
from retort.serving.uploads import REQUEST_BODY, STATUSES, Uploads

OPENAI_NAMES = ("tts-1", "tts-1-hd", "gpt-4o-mini-tts")
_SHED_S = 0.25
"""How long a replica's refusal stands for the requests that follow, if no stream of this front end ends before: in a
flood, asking costs more than answering."""
_KNOWN_S = 1.0
"""How long a voice that a model did not have is believed to be missing."""
_SIZED = ("wav", "flac")
"""Formats whose header holds a length: they are sent whole unless a stream is asked for."""


def build_api(config: ServeConfig, backends: Mapping[str, Backend]) -> FastAPI:
    """The application.

    Args:
        config: limits, keys, names.
        backends: by model name.
    """
    api = FastAPI(title="Retort", version="1", docs_url=None, redoc_url=None)
    speech = Speech(config, backends)
    if speech.provenance is not None:
        api.add_middleware(MarkGate)
    api.add_middleware(Gate, keys=None if config.api_keys is None else ApiKeys(config.api_keys))
    # What nobody expected is answered too, and then raised on to the server, which logs it.
    for kind in (ApiError, HTTPException, Exception):
        api.add_exception_handler(kind, _answer_error)
    # First, because routes are tried in order, twice under Ray Serve.
    api.add_api_route(
        "/v1/audio/speech",
        speech.create,
        methods=["POST"],
        summary="Speak a text.",
        response_class=Response,
        responses={
            200: {"content": {kind.media_type: {} for kind in KINDS.values()} | {"text/event-stream": {}}},
            **{status: {"description": text} for status, text in _STATUSES.items()},
        },
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": SpeechRequest.model_json_schema()}},
            }
        },
    )
    api.add_api_route("/health/live", _live, methods=["GET"], summary="The process answers.")
    api.add_api_route("/health/ready", speech.ready, methods=["GET"], summary="Every model has passed its warm-up.")
    api.add_api_route("/metrics", speech.metrics_page, methods=["GET"], summary="Prometheus metrics.")
    api.add_api_route("/v1/models", speech.models, methods=["GET"], summary="Models that are served.")
    api.add_api_route("/v1/models/{name:path}", speech.model, methods=["GET"], summary="One model.")
    api.add_api_route("/v1/audio/voices", speech.voices, methods=["GET"], summary="Voices of each model.")
    api.add_api_route(
        "/v1/audio/voices", speech.uploads.create, methods=["POST"], summary="Add a voice.",
        responses={status: {"description": text} for status, text in STATUSES.items()},
        openapi_extra={"requestBody": REQUEST_BODY},
    )  # fmt: skip
    api.add_api_route(
        "/v1/audio/voices/{voice_id}", speech.uploads.delete, methods=["DELETE"], summary="Remove an added voice.",
        responses={404: {"description": "No such voice was added."}},
    )  # fmt: skip
    detection = Detector(config, speech.provenance)
    api.add_api_route(
        "/v1/audio/detect", detection.create, methods=["POST"], summary="Look for the marks of this server's speech.",
        responses={status: {"description": text} for status, text in detect.STATUSES.items()},
        openapi_extra={"requestBody": detect.REQUEST_BODY},
    )  # fmt: skip
    api.add_api_route("/", _page, methods=["GET"], include_in_schema=False, response_class=HTMLResponse)
    return api


_STATUSES = {
    400: "A field is wrong; `error.param` names it.",
    401: "No valid API key.",
    404: "No such model.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The body is not plain JSON.",
    429: "Too much speech is waiting; see Retry-After.",
    500: "The model did not say the text properly, or the server failed.",
    503: "No sound within the deadline, or the model is being started.",
}


class Speech:
    """The handlers, with what they share."""

    def __init__(self, config: ServeConfig, backends: Mapping[str, Backend]) -> None:
        self.config, self.backends, self.metrics = config, dict(backends), Metrics()
        self._described: dict[str, tuple[Description, float]] = {}
        """What each model is, and when it said so."""
        self._refused: dict[str, tuple[float, float]] = {}
        """Until when requests for a model are refused here, after one was refused there."""
        self.uploads = Uploads(config, self.backends, self.description)
        self.provenance = None if config.provenance is None else Provenance(config.provenance)

    async def ready(self) -> JSONResponse:
        """200 when every model answers; a replica that answers has passed its warm-up."""
        try:
            async with asyncio.timeout(5.0):
                await asyncio.gather(*(backend.describe() for backend in self.backends.values()))
        except Exception as error:  # noqa: BLE001 - whatever is wrong, the answer is no
            return JSONResponse({"status": "unavailable", "reason": type(error).__name__}, status_code=503)
        return JSONResponse({"status": "ready", "models": sorted(self.backends)})

    async def metrics_page(self) -> Response:
        """The exposition format of Prometheus."""
        for name, backend in self.backends.items():
            numbers = await backend.numbers()
            self.metrics.in_flight.labels(name).set(sum(n.in_flight_s for n in numbers))
            self.metrics.waiting.labels(name).set(sum(n.waiting_s for n in numbers))
            self.metrics.after_cancel.labels(name).set(sum(n.frames_after_cancel for n in numbers))
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def models(self) -> JSONResponse:
        """OpenAI's list of models."""
        described = [await self.description(name, max_age_s=0.0) for name in self.backends]
        return JSONResponse({"object": "list", "data": list(map(_model, described))})

    async def model(self, name: str) -> JSONResponse:
        """One of them."""
        return JSONResponse(_model(await self.description(self.resolve(name), max_age_s=0.0)))

    async def voices(self, model: str | None = None) -> JSONResponse:
        """Voices of one model or of all, with the models that have them."""
        names = list(self.backends) if model is None else [self.resolve(model)]
        owners: dict[str, list[str]] = {}
        for name in names:
            for voice in (await self.description(name, max_age_s=0.0)).voices:
                owners.setdefault(voice, []).append(name)
        listed = [{"id": voice, "name": voice, "models": owners[voice]} for voice in sorted(owners)]
        listed += [{"id": added.id, "name": added.name, "models": names} for added in self.uploads.list()]
        return JSONResponse({"object": "list", "data": listed, "voices": [voice["id"] for voice in listed]})

    async def create(self, request: Request) -> Response:
        """Speak."""
        begun = time.monotonic()
        limits = self.config.limits
        body = await read_body(request, max_bytes=limits.max_body_bytes, timeout_s=limits.body_timeout_s)
        wanted = parse_speech_request(body, max_characters=limits.max_characters)
        name = self.resolve(wanted.model)
        description, uploaded = await self._voice(wanted, name)
        if wanted.language is not None and wanted.language.partition("-")[0].lower() not in self.languages(name):
            known = ", ".join(self.languages(name))
            raise ApiError(400, f"{name} speaks {known} only", param="language")
        is_stream = "stream_format" in wanted.model_fields_set or wanted.response_format not in _SIZED
        seed = secrets.randbits(53) if wanted.seed is None else wanted.seed
        ask = Ask(wanted.input, wanted.voice_id, seed, wanted.max_seconds, is_stream, uploaded)
        headers = {"X-Seed": str(seed), "X-Model": name}
        try:
            first, later = await self._begin(request, name, ask)
            async with _closing_at_errors(later):
                said_by = await self._who_said(first, description, uploaded)
                marking = self._marking(wanted, said_by)
                answer = Answer(wanted, said_by, self.metrics, begun, marking)
                if wanted.stream_format != "sse":  # whose client is told by an event, whenever it fails
                    answer.refuse_failed(first)
            pieces = self._from(first, later, name)
            if is_stream:
                headers |= {} if marking is None else {PROVENANCE: marking.token()}
                events = in_pieces(pieces, answer, slow_reader_s=limits.slow_reader_s)
                return StreamingResponse(events, media_type=answer.media_type, headers=headers)
            async with aclosing(pieces):  # type: ignore[type-var]
                whole = await _unless_left(request, collect(pieces, answer))
            headers |= {} if marking is None else {PROVENANCE: marking.token(is_whole=True)}
            return Response(whole, media_type=answer.media_type, headers=headers)
        except asyncio.CancelledError:  # so Ray Serve ends a request whose client has left
            self.metrics.count(name, "499")
            raise
        except Exception as error:
            self.metrics.count(name, str(as_api_error(error).status))
            raise

    async def _begin(self, request: Request, name: str, ask: Ask) -> tuple[Snippet, AsyncIterator[Snippet]]:
        """The first piece, once it is there, and the others: until then an error can still have a status of its own."""
        until, retry_after_s = self._refused.get(name, (0.0, 0.0))
        if time.monotonic() < until:
            raise overloaded(retry_after_s)
        pieces = self.backends[name].speak(ask)
        try:
            async with self._in_time():
                first = await _unless_left(request, anext(pieces))
        except OverloadedError as error:
            self._refused[name] = (time.monotonic() + _SHED_S, error.retry_after_s)
            raise overloaded(error.retry_after_s) from None
        except ApiError:
            await pieces.aclose()  # type: ignore[attr-defined]
            raise
        except (ConfigError, DataError) as error:
            raise ApiError(400, str(error), param="input") from None
        return first, pieces

    async def _from(self, first: Snippet, pieces: AsyncIterator[Snippet], name: str) -> AsyncIterator[Snippet]:
        try:
            yield first
            async for piece in pieces:
                yield piece
        finally:
            self._refused.pop(name, None)
            await pieces.aclose()  # type: ignore[attr-defined]

    async def _who_said(self, first: Snippet, description: Description, uploaded: Voice | None) -> Description:
        """What the model is that said a piece: a new version may have begun to answer since it was described.

        Raises:
            ApiError: the voice that was added is in another space than the new version's.
        """
        if first.fingerprint in ("", description.fingerprint):
            return description
        said_by = await self.description(description.name, max_age_s=0.0)
        if uploaded is not None and said_by.voice_space != description.voice_space:
            raise overloaded(1.0)
        return said_by

    async def _voice(self, wanted: SpeechRequest, name: str) -> tuple[Description, Voice | None]:
        """The model, and the voice if it is one that was added.

        Raises:
            ApiError: there is no such voice.
        """
        description = await self.description(name)
        uploaded = self.uploads.voice(wanted.voice_id, description)
        if uploaded is None and wanted.voice_id not in description.voices:
            description = await self.description(name, max_age_s=_KNOWN_S)
            uploaded = self.uploads.voice(wanted.voice_id, description)
        if uploaded is None and wanted.voice_id not in description.voices:
            raise self.uploads.no_voice(wanted.voice_id, description)
        return description, uploaded

    def _marking(self, wanted: SpeechRequest, said_by: Description) -> Marking | None:
        """What marks an answer; its statement says neither the text nor whose voice it is."""
        if self.provenance is None:
            return None
        facts = {"model": said_by.name, "fingerprint": said_by.fingerprint, "format": wanted.response_format}
        return self.provenance.begin(**facts)

    def resolve(self, name: str) -> str:
        """The model behind a name.

        Raises:
            ApiError: 404.
        """
        if name in OPENAI_NAMES and name not in self.backends and self.config.default_model is not None:
            return self.config.default_model
        if name not in self.backends:
            known = ", ".join(sorted(self.backends))
            raise ApiError(404, f"no such model; there are {known}", param="model", code="model_not_found")
        return name

    def languages(self, name: str) -> tuple[str, ...]:
        """Languages of a model."""
        return next(model.languages for model in self.config.models if model.name == name)

    async def description(self, name: str, *, max_age_s: float = math.inf) -> Description:
        """What a model is, or was at most so long ago: a promotion may have changed that.

        Raises:
            ApiError: 503 when it does not say so in time.
        """
        if name not in self._described or time.monotonic() - self._described[name][1] > max_age_s:
            async with self._in_time():
                self._described[name] = (await self.backends[name].describe(), time.monotonic())
        return self._described[name][0]

    @asynccontextmanager
    async def _in_time(self) -> AsyncIterator[None]:
        """The deadline, as an answer."""
        try:
            async with asyncio.timeout(self.config.limits.deadline_s):
                yield
        except TimeoutError:
            raise ApiError(
                503, "no sound within the deadline", kind="server_error", code="deadline", headers={"Retry-After": "1"}
            ) from None


@asynccontextmanager
async def _closing_at_errors(pieces: AsyncIterator[Snippet]) -> AsyncIterator[None]:
    """Let go of pieces that nobody will ask for."""
    try:
        yield
    except BaseException:
        await pieces.aclose()  # type: ignore[attr-defined]
        raise


async def _unless_left(request: Request, work: Any) -> Any:
    """The result of ``work``, unless the client hangs up first; then the work is cancelled.

    Raises:
        ApiError: 499, which nobody reads.
    """

    async def hang_up() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(hang_up())
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ApiError(499, "the client has left", code="client_left")
    finally:
        for pending in (task, gone):
            pending.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)  # what was being computed has let go


def _model(description: Description) -> dict[str, Any]:
    return {
        "id": description.name,
        "object": "model",
        "created": description.created,
        "owned_by": "retort",
        "fingerprint": description.fingerprint,
        "weight_format": description.number_format,
    }


async def _answer_error(request: Request, error: Exception) -> JSONResponse:
    del request
    told = as_api_error(error)
    return JSONResponse(told.body(), status_code=told.status, headers=told.headers)


async def _live() -> JSONResponse:
    return JSONResponse({"status": "alive"})


async def _page() -> HTMLResponse:
    return HTMLResponse(files("retort.serving").joinpath("page.html").read_text("utf-8"))
