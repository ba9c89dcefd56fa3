"""From pieces of sound to the bytes of a response: a whole file, a stream of a file, or events."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from retort.audio.provenance import Marking
from retort.audio.watermark import SAMPLE_RATE
from retort.inference.speaker import Outcome
from retort.serving.backends import Description
from retort.serving.errors import ApiError
from retort.serving.formats import SpeechEncoder, whole_file
from retort.serving.metrics import Metrics
from retort.serving.requests import SpeechRequest
from retort.serving.speaking import Snippet

_WHY: dict[Outcome, str] = {
    "too_long": "the model did not end the utterance within the length that its text allows",
    "loop": "the model repeated itself",
    "no_sound": "the model made no sound",
    "not_a_number": "the model computed something that is not a number",
}


class BrokenSpeechError(Exception):
    """Ends a response in the middle: the connection breaks, so that nobody takes the part for the whole."""


@dataclass
class Answer:
    """One response that is being made."""

    request: SpeechRequest
    description: Description
    metrics: Metrics
    begun: float
    marking: Marking | None = None
    _is_first: bool = True
    _encoder: SpeechEncoder = field(init=False)

    def __post_init__(self) -> None:
        self._encoder = SpeechEncoder(
            self.request.response_format,
            self.description.sample_rate,
            speed=self.request.speed,
            marking=self.marking,
        )

    @property
    def media_type(self) -> str:
        """Of the response."""
        return "text/event-stream" if self.request.stream_format == "sse" else self._encoder.media_type

    @property
    def num_samples(self) -> int:
        """Encoded so far, at ``SAMPLE_RATE``."""
        return self._encoder.num_samples

    def encode(self, piece: Snippet) -> bytes:
        """Bytes of a piece; the last piece closes the file.

        Raises:
            ApiError: 500, where the utterance failed.
        """
        name = self.description.name
        if self._is_first and piece.samples_N.numel():
            self.metrics.first_audio.labels(name).observe(time.monotonic() - self.begun)
            self._is_first = False
        self.refuse_failed(piece)
        return self._encoder.push(piece.samples_N) + (self._encoder.finish() if piece.outcome is not None else b"")

    def refuse_failed(self, piece: Snippet) -> None:
        """Nothing, unless the utterance failed.

        Raises:
            ApiError: 500.
        """
        if piece.outcome in _WHY:
            self.metrics.runaways.labels(self.description.name, piece.outcome).inc()
            raise ApiError(500, _WHY[piece.outcome], kind="server_error", code="generation_unstable")

    def count(self, status: str) -> None:
        """Note how it went."""
        name, seconds = self.description.name, self.num_samples / SAMPLE_RATE
        self.metrics.count(name, status)
        self.metrics.audio.labels(name).inc(seconds)
        if status == "200" and seconds:
            self.metrics.real_time_factor.labels(name).observe((time.monotonic() - self.begun) / seconds)


async def collect(pieces: AsyncIterator[Snippet], answer: Answer) -> bytes:
    """The whole file.

    Raises:
        ApiError: 500, where the utterance failed.
    """
    body = b"".join([answer.encode(piece) async for piece in pieces])
    answer.count("200")
    comment = "" if answer.marking is None else answer.marking.comment(is_whole=True)
    return whole_file(answer.request.response_format, body, answer.num_samples, comment)


async def in_pieces(pieces: AsyncIterator[Snippet], answer: Answer, *, slow_reader_s: float) -> AsyncIterator[bytes]:
    """The bytes of a stream as they come.

    A failure becomes an ``error`` event, or breaks the connection: a part must never look like a finished file.

    Raises:
        BrokenSpeechError: the utterance failed.
        CancelledError: the client read too slowly.
    """
    as_events, status = answer.request.stream_format == "sse", "broken"
    try:
        async for piece in pieces:
            data = answer.encode(piece)
            if not data:
                continue
            # Whoever takes nothing at all never comes back from here, so an alarm ends the response.
            alarm = asyncio.get_running_loop().call_later(slow_reader_s, _end, asyncio.current_task())
            yield _event("speech.audio.delta", audio=base64.b64encode(data).decode()) if as_events else data
            alarm.cancel()
        if as_events:
            usage = {"input_tokens": len(answer.request.input), "output_tokens": answer.num_samples}
            usage["total_tokens"] = sum(usage.values())
            marked = {} if answer.marking is None else {"provenance": answer.marking.token(is_whole=True)}
            yield _event("speech.audio.done", usage=usage, **marked)
        status = "200"
    except (GeneratorExit, asyncio.CancelledError):
        status = "499"
        raise
    except Exception as error:
        if not as_events:
            raise BrokenSpeechError(str(error)) from error
        failed = error if isinstance(error, ApiError) else ApiError(500, "the speech broke off", kind="server_error")
        yield _event("error", **failed.body())
    finally:
        answer.count(status)
        await pieces.aclose()  # type: ignore[attr-defined]


def _end(response: "asyncio.Task[object] | None") -> None:
    if response is not None:
        response.cancel()


def _event(kind: str, **fields: object) -> bytes:
    return b"data: " + json.dumps({"type": kind, **fields}).encode() + b"\n\n"
