"""What only speaks as a system: a service that is asked over HTTP, somebody else's or our own, or a black-box teacher.

Each is asked for what a model here would be asked for. Nothing is known of a service but what it says: it has no
tokens, no speed of its own and no end of speech, and no fingerprint, so what it said yesterday may not be what it says
today.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from pydantic import Field

from retort.audio.files import AudioRejected
from retort.errors import DataError, RetortError, StorageError
from retort.evaluation.sounds import ANY_SOUND
from retort.inference.black_box.callable import CallableConfig
from retort.inference.black_box.command import CommandConfig
from retort.inference.black_box.hibari import HibariConfig
from retort.inference.black_box.opening import facts_of, open_black_box
from retort.inference.black_box.teacher import Line, Unspoken
from retort.inference.endpoint import EndpointConfig, Pace, SpeechEndpoint
from retort.inference.speaker import Request, Spoken


class ServiceConfig(EndpointConfig):
    """An OpenAI-compatible speech service, in whose voices the rows are asked for."""

    voices: dict[str, str] = Field(default_factory=dict)
    """Name of a row's speaker to the service's voice."""
    voice: str | None = Field(default=None, min_length=1)
    """Voice of all other speakers; ``None`` asks for them by their own names, as Retort's services have them."""
    concurrency: int = Field(default=4, ge=1)
    """Requests at the same time, of each worker."""

    def voice_of(self, speaker: str) -> str:
        """What the service is to call the speaker of a row."""
        return self.voices.get(speaker, self.voice or speaker)

    @property
    def asked(self) -> Mapping[str, Any]:
        """What decides what is said: neither the key, nor how fast or how often the service is asked."""
        decides = {"base_url", "model", "response_format", "send_seed", "extra", "voices", "voice"}
        return self.model_dump(mode="json", include=decides)


class Asked(Protocol):
    """What answers requests with sound, wherever it computes."""

    def speak(self, requests: Sequence[Request]) -> Sequence[Spoken | RetortError]:
        """The sound of each request, or why there is none; voices in requests do not count, their speakers do."""
        ...


class Service:
    """Asks a service for several lines at once.

    Args:
        config: see there.
        key: for the service, or None.
        share: of the job's requests a minute that go through this one.
    """

    def __init__(self, config: ServiceConfig, key: str | None, share: float = 1.0) -> None:
        per_minute = None if config.max_per_minute is None else config.max_per_minute * share
        self.config = config
        # What it sends is judged, whatever it is: a bad sound is a failure in a table.
        self._client = SpeechEndpoint(config, key, pace=Pace(per_minute), limits=ANY_SOUND)

    def speak(self, requests: Sequence[Request]) -> list[Spoken | RetortError]:
        """See :class:`Asked`.

        Raises:
            ConfigError: the service refuses the key or the model, so that no line can be said.
            StorageError: it answered none of several lines: it is away, and no line is to blame.
        """
        with ThreadPoolExecutor(self.config.concurrency) as pool:
            said = list(pool.map(self._say, requests))
        lost = [found for found in said if isinstance(found, StorageError)]
        if len(lost) == len(requests) > 1:
            raise lost[0]
        return said

    def _say(self, request: Request) -> Spoken | RetortError:
        try:
            answer = self._client.speak(request.text, self.config.voice_of(request.speaker), seed=request.seed)
        except (DataError, StorageError) as error:
            return error
        return Spoken(answer.audio.samples_N, answer.audio.sample_rate)


class BlackBoxService:
    """Asks a black-box teacher of this machine: in a row's own voice where it has that one, else in its first.

    Args:
        config: which.

    Raises:
        RetortError: it is not there, or not what it should be.
    """

    def __init__(self, config: HibariConfig | CommandConfig | CallableConfig) -> None:
        self._teacher, self._voices = open_black_box(config), facts_of(config).voices

    def speak(self, requests: Sequence[Request]) -> list[Spoken | RetortError]:
        """See :class:`Asked`."""
        return [self._say(request) for request in requests]

    def _say(self, request: Request) -> Spoken | RetortError:
        voice = request.speaker if request.speaker in self._voices else self._voices[0]
        try:
            said = self._teacher.speak(Line(request.text, voice, request.seed % (1 << 31)))
        except AudioRejected as fault:
            return fault
        except Unspoken as fault:
            return DataError(f"{fault.code}: {fault.detail}")
        return Spoken(said.samples_N, said.sample_rate)
