"""A client of OpenAI-compatible speech services: ``POST {base_url}/audio/speech``, whoever runs them.

One request of a line may be sent several times: where the service says that it is busy or broken, or does not answer,
after a pause that grows, with jitter, and not beyond the line's deadline. What it refuses is not asked again.
"""

import contextlib
import json
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, JsonValue, field_validator, model_validator

from retort.audio.files import Audio, AudioRejected, read_audio
from retort.audio.limits import DEFAULT_LIMITS, AudioLimits
from retort.config import Config
from retort.errors import ConfigError, DataError, MissingRequirementError, StorageError

RETRYABLE = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_OF_THE_TEXT = frozenset({400, 413, 422})
_OUT_OF_MONEY = "insufficient_quota"
_UNSTABLE = "generation_unstable"
"""What Retort's services say of a runaway; the same seed runs away again."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
_PCM_RATE = 24_000
_SHOWN = 300
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


class EndpointConfig(Config):
    """A speech service. The key is never written here: a variable or a file that holds it is named."""

    base_url: Annotated[str, Field(pattern=r"^https?://")]
    """Up to ``/v1``, such as ``http://127.0.0.1:8000/v1``."""
    model: str = Field(min_length=1)
    api_key_env: str | None = None
    """Name of the environment variable that holds the key, on every node that asks."""
    api_key_file: Path | None = None
    """File whose first line is the key, where every node sees it."""
    response_format: Literal["wav", "flac", "mp3", "opus", "aac", "pcm"] = "wav"
    """``pcm`` is 16-bit, 24 kHz, one channel, as OpenAI has it."""
    send_seed: bool = False
    """Send ``seed``: Retort's services take it, OpenAI's do not."""
    extra: dict[str, JsonValue] = Field(default_factory=dict)
    """More fields of the request, such as ``{speed: 1.1, instructions: calm}``."""
    max_per_minute: float | None = Field(default=None, gt=0)
    """Requests that the job sends in a minute, retries among them; ``None`` is no limit."""
    timeout_s: float = Field(default=60.0, gt=0)
    """Of one request."""
    deadline_s: float = Field(default=180.0, gt=0)
    """Of one line with all its retries."""
    max_attempts: int = Field(default=6, ge=1)

    @field_validator("base_url")
    @classmethod
    def _holds_no_secret(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.username or parts.password or parts.query or parts.fragment or not parts.hostname:
            raise ValueError(
                "it is a scheme, a host and a path, without user, password or query; name the key beside it"
            )
        return url.rstrip("/")

    @model_validator(mode="after")
    def _one_key(self) -> Self:
        if self.api_key_env is not None and self.api_key_file is not None:
            raise ValueError("api_key_env and api_key_file are two places for one key; give one of them")
        name = self.api_key_env
        # The value in the place of its name is not repeated.
        if name is not None and not (name.isascii() and name.isidentifier() and name == name.upper()):
            raise ValueError("api_key_env is the name of a variable, in capitals, such as SPEECH_API_KEY, not the key")
        if {"model", "input", "voice", "response_format", "seed", "stream_format"} & set(self.extra):
            raise ValueError("extra holds a field that has a key of its own, or one that is filled in for each line")
        return self

    @property
    def key_source(self) -> str:
        """Where its key comes from, for messages."""
        return self.api_key_env or (str(self.api_key_file) if self.api_key_file else "no key: name one in api_key_env")


class RefusedText(DataError):  # noqa: N818 (it reads as the verdict that it is)
    """The service takes requests, and not this text."""


@dataclass(frozen=True)
class Answer:
    """What a service sent.

    Attributes:
        audio: the recording.
        first_sound_s: from the request that was answered to its first byte.
        total_s: from that request to its last byte.
        attempts: requests that were sent for it.
    """

    audio: Audio
    first_sound_s: float
    total_s: float
    attempts: int


@dataclass
class Pace:
    """Lets through so many a minute, evenly; threads share one."""

    per_minute: float | None
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    _next: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def wait(self) -> None:
        """Until the next may go."""
        if self.per_minute is None:
            return
        with self._lock:
            now = self.clock()
            mine = max(now, self._next)
            self._next = mine + 60.0 / self.per_minute
        if mine > now:
            self.sleep(mine - now)


class SpeechEndpoint:
    """A service that is asked for speech, by several threads at once if need be.

    Args:
        config: see there.
        key: what ``config`` says where to find, or None.
        pace: how many requests a minute; left out: the config's.
        limits: what a recording may be.
        sleep: waits; tests pass their own.

    Raises:
        MissingRequirementError: ``httpx`` is not installed.
    """

    def __init__(
        self,
        config: EndpointConfig,
        key: str | None,
        *,
        pace: Pace | None = None,
        limits: AudioLimits = DEFAULT_LIMITS,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        try:
            import httpx
        except ImportError:
            raise MissingRequirementError("the client of speech services needs httpx; run: pip install httpx") from None
        self.config, self._key, self._sleep, self._limits = config, key, sleep, limits
        self._pace = pace or Pace(config.max_per_minute, sleep)
        self._http = httpx
        # A proxy is for hosts outside; redirects, which would carry the key elsewhere, are not followed.
        is_here = urlsplit(config.base_url).hostname in _LOOPBACK
        self._client = httpx.Client(
            headers={} if key is None else {"Authorization": f"Bearer {key}"},
            timeout=httpx.Timeout(config.timeout_s),
            trust_env=not is_here,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
        )

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def speak(self, text: str, voice: str, *, seed: int | None = None) -> Answer:
        """Ask for one line.

        Raises:
            AudioRejected: what came is no recording.
            ConfigError: the service refuses the key, the model or the request, whatever the text.
            RefusedText: it refuses this text.
            StorageError: it did not answer within the deadline or the attempts.
        """
        body = self._body(text, voice, seed)
        self._pace.wait()  # whose turn has not come is not late
        end, last = time.monotonic() + self.config.deadline_s, "no request was sent"
        for attempt in range(1, self.config.max_attempts + 1):
            left = end - time.monotonic()
            if left <= 0:
                break
            began = time.monotonic()
            try:
                sound, first = self._request(body, min(left, self.config.timeout_s))
            except _Again as again:
                last = again.reason
                pause = again.after_s if again.after_s is not None else _pause_s(attempt)
                if attempt == self.config.max_attempts or time.monotonic() + pause > end:
                    break
                self._sleep(pause)
                self._pace.wait()
                continue
            return Answer(self._decoded(sound), first - began, time.monotonic() - began, attempt)
        raise StorageError(
            f"{self.config.base_url} gives no answer, the last time: {self._without_key(last)}; see to the service, or "
            "raise deadline_s and max_attempts, and run the same command again: it goes on where it stopped"
        )

    def _body(self, text: str, voice: str, seed: int | None) -> dict[str, JsonValue]:
        config = self.config
        given: dict[str, JsonValue] = {"model": config.model, "input": text, "voice": voice}
        seeded: dict[str, JsonValue] = {"seed": seed} if config.send_seed and seed is not None else {}
        return {**config.extra, **given, **seeded, "response_format": config.response_format}

    def _request(self, body: Mapping[str, Any], seconds: float) -> tuple[bytes, float]:
        """The sound, and when its first byte came; ``seconds`` is for all of it."""
        http, end = self._http, time.monotonic() + seconds
        try:
            url = f"{self.config.base_url}/audio/speech"
            with self._client.stream("POST", url, json=body, timeout=seconds) as response:
                if response.status_code != 200:
                    said = _some(response.iter_bytes(), end)
                    self._refused(response.status_code, response.headers, said, has_seed="seed" in body)
                pieces, size, first = list[bytes](), 0, 0.0
                for piece in response.iter_bytes():
                    now = time.monotonic()
                    first, size = first or now, size + len(piece)
                    pieces.append(piece)
                    if size > DEFAULT_LIMITS.max_bytes:
                        raise AudioRejected("too_large", f"more than {DEFAULT_LIMITS.max_bytes} bytes came")
                    if now > end:
                        raise _Again(f"not all of the sound came within {seconds:.0f} s")
                return b"".join(pieces), first or time.monotonic()
        except http.TransportError as error:
            raise _Again(f"{type(error).__name__}: {error}") from None

    def _refused(self, status: int, headers: Mapping[str, str], said: str, *, has_seed: bool) -> None:
        """Raise what an answer other than 200 means."""
        base, told = self.config.base_url, self._without_key(_message(said))
        if status in (401, 403):  # what it says may repeat the key
            raise ConfigError(f"{base} refuses the key ({status}); it comes from {self.config.key_source}")
        if status == 500 and _UNSTABLE in said and has_seed:
            raise RefusedText(f"{base} does not say the text properly with this seed: {told}")
        if status in RETRYABLE and not (status == 429 and _OUT_OF_MONEY in said):
            raise _Again(f"{status} {told}", _retry_after_s(headers))
        if status in _OF_THE_TEXT:
            raise RefusedText(f"{base} refuses the text ({status}): {told}")
        raise ConfigError(
            f"{base} answers {status} to {self.config.model!r}: {told}; correct base_url (it ends with /v1), model or "
            "voices, or look into the account"
        )

    def _decoded(self, sound: bytes) -> Audio:
        if self.config.response_format != "pcm":
            return read_audio(sound, limits=self._limits)
        import torch

        from retort.audio.files import wav_bytes

        whole = bytearray(sound[: len(sound) // 2 * 2])
        if not whole:
            raise AudioRejected("empty", "the service sent no sound")
        samples_N = torch.frombuffer(whole, dtype=torch.int16).float() / 32768
        return read_audio(wav_bytes(samples_N, _PCM_RATE), limits=self._limits)  # through the checks of any recording

    def _without_key(self, text: str) -> str:
        return text if not self._key else text.replace(self._key, "(the key)")


class _Again(Exception):  # noqa: N818 (not an error that anybody sees)
    """An answer after which the same request may be sent again."""

    def __init__(self, reason: str, after_s: float | None = None) -> None:
        super().__init__(reason)
        self.reason, self.after_s = reason, after_s


def _pause_s(attempt: int) -> float:
    """Twice as long each time, and by half more or less, so that those who were refused together do not return so."""
    return min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** (attempt - 1)) * random.uniform(0.5, 1.5)


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """What ``Retry-After`` asks for, with a little jitter; dates are not understood, and pauses are our own then."""
    try:
        asked = float(headers.get("retry-after", ""))
    except ValueError:
        return None
    return asked * random.uniform(1.0, 1.1) if 0 <= asked < 24 * 3600 else None


def _some(pieces: Iterator[bytes], end: float) -> str:
    found = b""
    for piece in pieces:
        found += piece
        if len(found) > 1 << 16 or time.monotonic() > end:
            break
    return found.decode("utf-8", errors="replace")


def _message(said: str) -> str:
    """The message in an error of OpenAI's form, or the first characters of any other."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        said = str(json.loads(said)["error"]["message"])
    return " ".join(said.split())[:_SHOWN] or "nothing"
