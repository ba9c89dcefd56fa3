"""What the API needs of a model, wherever it runs: in this process, or behind a handle of Ray Serve."""

import asyncio
import math
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

import torch

from retort.audio.files import Audio
from retort.inference.opening import Room, open_speaker
from retort.inference.speaker import Request, Wish, in_parts
from retort.inference.voices import Voice
from retort.serving.settings import ServeConfig, ServedModel
from retort.serving.speaking import Snippet, Speaking
from retort.store.results import result_of


@dataclass(frozen=True)
class Ask:
    """One request to a model.

    Attributes:
        text: what to say.
        voice: whose voice.
        seed: the same seed gives the same samples.
        max_seconds: a shorter limit than the server's, or None.
        is_streamed: snippets as soon as they are final; otherwise one at the end.
        uploaded: a voice that was added, which replaces the model's ``voice``.
    """

    text: str
    voice: str
    seed: int
    max_seconds: float | None = None
    is_streamed: bool = True
    uploaded: Voice | None = None


@dataclass(frozen=True)
class Description:
    """A model that is served.

    Attributes:
        name: what clients call it.
        fingerprint: of its weights.
        voices: whose voices it has.
        sample_rate: of its snippets, Hz.
        number_format: of its steps.
        created: seconds since the epoch.
        voice_space: fingerprint of the space that its voices are in.
        takes_voices: whether it speaks in voices that are added.
    """

    name: str
    fingerprint: str
    voices: tuple[str, ...]
    sample_rate: int
    number_format: str
    created: int
    voice_space: str
    takes_voices: bool = True


@dataclass(frozen=True)
class Numbers:
    """What a replica is doing."""

    in_flight_s: float
    waiting_s: float
    cancelled: int
    frames_after_cancel: int


class Backend(Protocol):
    """A model that speaks."""

    def speak(self, ask: Ask) -> AsyncIterator[Snippet]:
        """The snippets; leaving the iterator cancels.

        Raises:
            ConfigError: the voice or the length is not possible.
            DataError: the text has nothing to say.
            OverloadedError: too much speech waits.
        """
        ...

    async def describe(self) -> Description:
        """What it is."""
        ...

    async def voice_of(self, audio: Audio) -> Voice:
        """The voice of a recording, in the model's space."""
        ...

    async def numbers(self) -> list[Numbers]:
        """Of each replica that answers."""
        ...


class LocalBackend:
    """A model in this process: loaded, its number format chosen, and warm.

    Args:
        model: settings of the model.
        config: settings of the application.

    Raises:
        ConfigError: the decoding is not valid for the model.
        DataError: the folder holds no model that can speak.
    """

    def __init__(self, model: ServedModel, config: ServeConfig) -> None:
        torch.set_num_threads(model.threads)
        # The thread that speaks and those that talk to clients share the interpreter; by default, each may keep it for
        # 5 ms. A request passes it several times, and a piece of sound a hundred times: once an operation of the codec.
        sys.setswitchinterval(0.00005)
        folder = result_of(model.path)
        room = Room(model.slots, config.limits.max_seconds, config.limits.max_text_tokens, config.guard)
        device = "cuda" if model.gpus else "cpu"
        self.model, self.created = model, int(folder.stat().st_mtime)
        self.speaker = open_speaker(folder, precision=model.precision, device=device, room=room)
        self.decoding = self.speaker.decoding(model.decoding)
        self.speaker.prepare(self.decoding)
        self.speaker.warm_up()
        self.speaking = Speaking(self.speaker, max_waiting_s=config.limits.max_waiting_seconds)

    async def speak(self, ask: Ask) -> AsyncIterator[Snippet]:
        """See :class:`Backend`."""
        request = Request(ask.text, ask.voice, ask.seed, ask.uploaded)
        wish = Wish(request, self.decoding, ask.max_seconds, ask.is_streamed)
        # Which of them say nothing to this model is seen once it is their turn: reading takes longer than refusing.
        parts = in_parts(wish, self.model.part_characters)
        snippets = self.speaking.speak(*parts, max_seconds=ask.max_seconds or math.inf)
        try:
            async for snippet in snippets:
                yield snippet
        finally:
            await snippets.aclose()  # type: ignore[attr-defined]

    async def describe(self) -> Description:
        """See :class:`Backend`."""
        speaker = self.speaker
        return Description(
            name=self.model.name,
            fingerprint=speaker.facts.fingerprint,
            voices=speaker.voices,
            sample_rate=speaker.sample_rate,
            number_format=speaker.number_format,
            created=self.created,
            voice_space=speaker.voice_space,
            takes_voices=speaker.abilities.takes_voices,
        )

    async def voice_of(self, audio: Audio) -> Voice:
        """See :class:`Backend`."""
        return await asyncio.to_thread(self.speaker.voice_of, audio)

    async def numbers(self) -> list[Numbers]:
        """See :class:`Backend`."""
        speaking, admission = self.speaking, self.speaking.admission
        return [
            Numbers(admission.in_flight_s, admission.waiting_s, speaking.num_cancelled, speaking.frames_after_cancel)
        ]
