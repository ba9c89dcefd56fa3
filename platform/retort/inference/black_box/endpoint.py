"""A speech service as a teacher."""

import hashlib
from collections.abc import Mapping
from typing import Literal

from pydantic import Field, JsonValue

from retort.audio.files import Audio
from retort.inference.black_box.teacher import Line, TeacherFacts, Unspoken
from retort.inference.endpoint import EndpointConfig, Pace, RefusedText, SpeechEndpoint


class EndpointTeacherConfig(EndpointConfig):
    """An OpenAI-compatible service that says the lines."""

    kind: Literal["endpoint"]
    voices: tuple[str, ...] = Field(min_length=1)
    language: str = "en"
    licence: str = Field(min_length=1)
    """What the service's terms let you do with what it says; every row carries it."""
    concurrency: int = Field(default=4, ge=1)
    """Requests at the same time, of each worker."""


def endpoint_facts(config: EndpointTeacherConfig) -> TeacherFacts:
    """What it is: no more is known than what it is asked for."""
    tree = config.model_dump(mode="json", include={"base_url", "model", "extra", "response_format", "send_seed"})
    fingerprint = hashlib.sha256(repr(sorted(tree.items())).encode()).hexdigest()[:16]
    name = f"{config.model} at {config.base_url}"
    return TeacherFacts(name, fingerprint, config.licence, config.voices, config.language, config.concurrency)


class EndpointTeacher:
    """Asks the service.

    Args:
        config: see there.
        key: for the service, or None.
        share: of the job's requests a minute that this worker may send.
    """

    def __init__(self, config: EndpointTeacherConfig, key: str | None, share: float = 1.0) -> None:
        per_minute = None if config.max_per_minute is None else config.max_per_minute * share
        self.config, self.client = config, SpeechEndpoint(config, key, pace=Pace(per_minute))

    def speak(self, line: Line) -> Audio:
        """See :class:`BlackBox`."""
        try:
            return self.client.speak(line.text, line.voice, seed=line.seed).audio
        except RefusedText as error:
            raise Unspoken("refused_by_teacher", str(error)) from None

    def settings(self, line: Line) -> Mapping[str, JsonValue]:
        """See :class:`BlackBox`."""
        seed: dict[str, JsonValue] = {"seed": line.seed} if self.config.send_seed else {}
        return {**self.config.extra, **seed, "response_format": self.config.response_format}
