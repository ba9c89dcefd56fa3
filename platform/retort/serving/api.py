"""The HTTP API: OpenAI's ``/v1/audio/speech`` and what surrounds it, as one ASGI application over any backends."""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from retort.audio.provenance import Marking, Provenance
from retort.errors import ConfigError, DataError
from retort.serving import detect
from retort.serving.answers import Answer, collect, in_pieces
from retort.serving.backends import Ask, Backend, Description
from retort.serving.bodies import read_body
from retort.serving.catalogue import Catalogue, Chosen, in_time
from retort.serving.detect import Detector
from retort.serving.errors import ApiError, as_api_error, overloaded
from retort.serving.formats import KINDS
from retort.serving.gate import OPEN_ROUTES, PROVENANCE, Gate, MarkGate
from retort.serving.head import HeadAsGet
from retort.serving.keys import ApiKeys
from retort.serving.metrics import Metrics
from retort.serving.origins import NO_FRAMES, OriginGate
from retort.serving.refusals import CountRefusals, note_model
from retort.serving.requests import SpeechRequest, ignored_fields, in_header, parse_speech_request, unread_characters
from retort.serving.settings import ServeConfig
from retort.serving.speaking import OverloadedError, Snippet
from retort.serving.uploads import REQUEST_BODY, STATUSES
from retort.text.reading import shown

_log = logging.getLogger(__name__)

_SHED_S = 0.25
"""How long a replica's refusal stands for the requests that follow, if no stream of this front end ends before: in a
flood, asking costs more than answering."""
NAMING = ("X-Ignored-Fields", "X-Unread-Characters")
"""Headers that name what a request held in vain."""
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
    catalogue = speech.catalogue
    _add_gates(api, config, speech)
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
    api.add_api_route("/v1/models", catalogue.models, methods=["GET"], summary="Models that are served.")
    api.add_api_route("/v1/models/{name:path}", catalogue.model, methods=["GET"], summary="One model.")
    api.add_api_route("/v1/audio/models", catalogue.audio_models, methods=["GET"], summary="Models, by name.")
    api.add_api_route("/v1/audio/voices", catalogue.voices, methods=["GET"], summary="Voices of each model.")
    api.add_api_route(
        "/v1/audio/voices", catalogue.uploads.create, methods=["POST"], summary="Add a voice.",
        responses={status: {"description": text} for status, text in STATUSES.items()},
        openapi_extra={"requestBody": REQUEST_BODY},
    )  # fmt: skip
    api.add_api_route(
        "/v1/audio/voices/{voice:path}", catalogue.uploads.delete, methods=["DELETE"], summary="Remove an added voice.",
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


def _add_gates(api: FastAPI, config: ServeConfig, speech: "Speech") -> None:
    """What stands around every route; the last one is outermost."""
    if speech.provenance is not None:
        api.add_middleware(MarkGate)
    keys = None if config.api_keys is None else ApiKeys(config.api_keys)
    api.add_middleware(Gate, keys=keys, client_header=config.client_header)
    api.add_middleware(OriginGate, origins=config.cors_origins, hosts=config.hosts)
    if config.cors_origins:
        methods, shown = ("GET", "HEAD", "POST", "DELETE"), ("X-Seed", "X-Model", *NAMING, PROVENANCE)
        api.add_middleware(
            CORSMiddleware, allow_origins=config.cors_origins, allow_methods=methods, allow_headers=("*",),
            expose_headers=shown,
        )  # fmt: skip
    api.add_middleware(HeadAsGet)
    api.add_middleware(CountRefusals, metrics=speech.metrics, uncounted=OPEN_ROUTES)


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
        self._refused: dict[str, tuple[float, float]] = {}
        """Until when requests for a model are refused here, after one was refused there."""
        self.catalogue = Catalogue(config, self.backends)
        defaults = {"model": config.answering_model, "voice": config.default_voice}
        self._defaults = {field: value for field, value in defaults.items() if value is not None}
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

    async def create(self, request: Request) -> Response:
        """Speak."""
        begun = time.monotonic()
        limits = self.config.limits
        body = await read_body(request, max_bytes=limits.max_body_bytes, timeout_s=limits.body_timeout_s)
        wanted = parse_speech_request(
            body, max_characters=limits.max_characters, defaults=self._defaults, lenient=self.config.lenient
        )
        name = self.catalogue.resolve(wanted.model)
        note_model(request, name)
        chosen = await self.catalogue.choose(wanted.voice_id, name)
        if wanted.language is not None and wanted.language.partition("-")[0].lower() not in self.languages(name):
            known = ", ".join(self.languages(name))
            raise ApiError(400, f"{name} speaks {known} only", param="language")
        is_stream = "stream_format" in wanted.model_fields_set or wanted.response_format not in _SIZED
        seed = secrets.randbits(53) if wanted.seed is None else wanted.seed
        ask = Ask(wanted.input, chosen.voice, seed, wanted.max_seconds, is_stream, chosen.uploaded)
        headers = {"X-Seed": str(seed), "X-Model": in_header(name), **ignored_fields(wanted.ignored)}
        first, later = await self._begin(request, name, ask)
        if first.unread:
            _log.warning(
                "%s cannot read these characters of a request, and left them out: %s", name, shown(first.unread)
            )
        headers |= unread_characters(first.unread)
        async with _closing_at_errors(later):
            said_by = await self._who_said(first, chosen)
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

    async def _begin(self, request: Request, name: str, ask: Ask) -> tuple[Snippet, AsyncIterator[Snippet]]:
        """The first piece, once it is there, and the others: until then an error can still have a status of its own."""
        until, retry_after_s = self._refused.get(name, (0.0, 0.0))
        if time.monotonic() < until:
            raise overloaded(retry_after_s)
        pieces = self.backends[name].speak(ask)
        try:
            async with in_time(self.config.limits.deadline_s):
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

    async def _who_said(self, first: Snippet, chosen: Chosen) -> Description:
        """What the model is that said a piece: a new version may have begun to answer since it was described.

        Raises:
            ApiError: the voice that was added is in another space than the new version's.
        """
        description = chosen.description
        if first.fingerprint in ("", description.fingerprint):
            return description
        said_by = await self.catalogue.description(description.name, max_age_s=0.0)
        if chosen.uploaded is not None and said_by.voice_space != description.voice_space:
            raise overloaded(1.0)
        return said_by

    def _marking(self, wanted: SpeechRequest, said_by: Description) -> Marking | None:
        """What marks an answer; its statement says neither the text nor whose voice it is."""
        if self.provenance is None:
            return None
        facts = {"model": said_by.name, "fingerprint": said_by.fingerprint, "format": wanted.response_format}
        return self.provenance.begin(**facts)

    def languages(self, name: str) -> tuple[str, ...]:
        """Languages of a model."""
        return next(model.languages for model in self.config.models if model.name == name)


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


async def _answer_error(request: Request, error: Exception) -> JSONResponse:
    del request
    told = as_api_error(error)
    return JSONResponse(told.body(), status_code=told.status, headers=told.headers)


async def _live() -> JSONResponse:
    return JSONResponse({"status": "alive"})


async def _page() -> HTMLResponse:
    page = files("retort.serving").joinpath("page.html").read_text("utf-8")
    return HTMLResponse(page, headers=NO_FRAMES)
