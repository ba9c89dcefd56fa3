"""What the API needs of a model, wherever it runs: in this process, or behind a handle of Ray Serve."""

import asyncio
import math
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from retort.audio.files import Audio, resample
from retort.inference.speech import SpeechEngine, Wish, in_parts
from retort.inference.synthesizer import Request, Synthesizer
from retort.serving.settings import ServeConfig, ServedModel
from retort.serving.speaking import Piece, Speaking
from retort.store.results import result_of


@dataclass(frozen=True)
class Ask:
    """One request to a model.

    Attributes:
        text: what to say.
        voice: whose voice.
        seed: the same seed gives the same samples.
        max_seconds: a shorter limit than the server's, or None.
        is_streamed: pieces as soon as they are final; otherwise one piece at the end.
        prompt_KP: codes of an uploaded voice, which replace those of ``voice``.
    """

    text: str
    voice: str
    seed: int
    max_seconds: float | None = None
    is_streamed: bool = True
    prompt_KP: Tensor | None = None


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
        codec_fingerprint: of the codec that its voices are in.
    """

    name: str
    fingerprint: str
    voices: tuple[str, ...]
    sample_rate: int
    weight_format: str
    created: int
    codec_fingerprint: str


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

    async def encode(self, audio: Audio) -> Tensor:
        """A speaker prompt [K, P] of a recording, in the model's codec."""
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
        ConfigError: the guidance is not valid for the model.
        DataError: the folder holds no model that can speak.
    """

    def __init__(self, model: ServedModel, config: ServeConfig) -> None:
        torch.set_num_threads(model.threads)
        # The thread that speaks and those that talk to clients share the interpreter; by default, each may keep it for
        # 5 ms. A request passes it several times, and a piece of sound a hundred times: once an operation of the codec.
        sys.setswitchinterval(0.00005)
        folder = result_of(model.path)
        synthesizer = Synthesizer.open(folder, precision=model.precision, device="cuda" if model.gpus else "cpu")
        self.model, self.guidance = model, model.guidance.build()
        self.created = int(folder.stat().st_mtime)
        synthesizer.loaded.lineage.check_guidance(self.guidance)
        self.engine = SpeechEngine(
            synthesizer,
            max_slots=model.slots,
            max_conditions=len(self.guidance.conditions),
            max_seconds=config.limits.max_seconds,
            max_text_tokens=config.limits.max_text_tokens,
            guard=config.guard,
        )
        self.engine.warm_up()
        self.speaking = Speaking(self.engine, max_waiting_s=config.limits.max_waiting_seconds)

    async def speak(self, ask: Ask) -> AsyncIterator[Piece]:
        """See :class:`Backend`."""
        wish = Wish(
            Request(ask.text, ask.voice, ask.seed, ask.prompt_KP),
            self.guidance,
            self.model.sampler,
            scale_input=self.model.scale_input,
            max_seconds=ask.max_seconds,
            is_streamed=ask.is_streamed,
        )
        parts = in_parts(wish, self.model.part_characters)
        pieces = self.speaking.speak(*parts, max_seconds=ask.max_seconds or math.inf)
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
            codec_fingerprint=synthesizer.loaded.lineage.codec_fingerprint,
        )

    async def encode(self, audio: Audio) -> Tensor:
        """See :class:`Backend`."""
        codec = self.engine.synthesizer.codec
        samples_N = resample(audio.samples_N, audio.sample_rate, codec.sample_rate)
        return await asyncio.to_thread(codec.encode, samples_N)

    async def numbers(self) -> list[Numbers]:
        """See :class:`Backend`."""
        speaking, admission = self.speaking, self.speaking.admission
        return [
            Numbers(admission.in_flight_s, admission.waiting_s, speaking.num_cancelled, speaking.frames_after_cancel)
        ]
