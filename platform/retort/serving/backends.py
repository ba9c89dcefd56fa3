"""What the API needs of a model, wherever it runs: in this process, or behind a handle of Ray Serve."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from retort.inference.speech import SpeechEngine, Wish
from retort.inference.synthesizer import Request
from retort.serving.settings import Limits, ServedModel
from retort.serving.speaking import Piece, Speaking


@dataclass(frozen=True)
class Ask:
    """One request to a model.

    Attributes:
        text: what to say.
        voice: whose voice.
        seed: the same seed gives the same samples.
        max_seconds: a shorter limit than the server's, or None.
        is_streamed: pieces as soon as they are final; otherwise one piece at the end, with one retry.
    """

    text: str
    voice: str
    seed: int
    max_seconds: float | None = None
    is_streamed: bool = True


@dataclass(frozen=True)
class Description:
    """A model that is served.

    Attributes:
        name: what clients call it.
        fingerprint: of its weights.
        voices: whose voices it has.
        sample_rate: of its pieces, Hz.
        weight_format: number format of its steps.
        created: seconds since the epoch.
    """

    name: str
    fingerprint: str
    voices: tuple[str, ...]
    sample_rate: int
    weight_format: str
    created: int


@dataclass(frozen=True)
class Numbers:
    """What a replica is doing."""

    in_flight_s: float
    waiting_s: float
    cancelled: int
    frames_after_cancel: int


class Backend(Protocol):
    """A model that speaks."""

    def speak(self, ask: Ask) -> AsyncIterator[Piece]:
        """The pieces; leaving the iterator cancels.

        Raises:
            ConfigError: the voice or the length is not possible.
            DataError: the text has nothing to say.
            OverloadedError: too much speech waits.
        """
        ...

    async def describe(self) -> Description:
        """What it is."""
        ...

    async def numbers(self) -> list[Numbers]:
        """Of each replica that answers."""
        ...


class LocalBackend:
    """A model in this process.

    Args:
        model: settings.
        engine: made from them.
        limits: of the application.
        created: when the model was written, seconds since the epoch.
    """

    def __init__(self, model: ServedModel, engine: SpeechEngine, limits: Limits, *, created: int = 0) -> None:
        self.model, self.engine, self.created = model, engine, created
        self.guidance = model.guidance.build()
        self.speaking = Speaking(engine, max_waiting_s=limits.max_waiting_seconds)

    async def speak(self, ask: Ask) -> AsyncIterator[Piece]:
        """See :class:`Backend`."""
        wish = Wish(
            Request(ask.text, ask.voice, ask.seed),
            self.guidance,
            self.model.sampler,
            scale_input=self.model.scale_input,
            max_seconds=ask.max_seconds,
            is_streamed=ask.is_streamed,
        )
        pieces = self.speaking.speak(wish)
        try:
            async for piece in pieces:
                yield piece
        finally:
            await pieces.aclose()  # type: ignore[attr-defined]

    async def describe(self) -> Description:
        """See :class:`Backend`."""
        synthesizer = self.engine.synthesizer
        return Description(
            name=self.model.name,
            fingerprint=synthesizer.loaded.fingerprint,
            voices=tuple(sorted(synthesizer.voices)),
            sample_rate=synthesizer.codec.sample_rate,
            weight_format=self.engine.weight_format,
            created=self.created,
        )

    async def numbers(self) -> list[Numbers]:
        """See :class:`Backend`."""
        speaking, admission = self.speaking, self.speaking.admission
        return [
            Numbers(admission.in_flight_s, admission.waiting_s, speaking.num_cancelled, speaking.frames_after_cancel)
        ]
