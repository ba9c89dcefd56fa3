"""From a model's folder to its speaker: the one place that tells families apart."""

from dataclasses import dataclass
from pathlib import Path

from retort.errors import ConfigError
from retort.inference.backends import DecodePrecision
from retort.inference.diffusion_speaker import DiffusionSpeaker
from retort.inference.diffusion_synthesizer import DiffusionSynthesizer
from retort.inference.speaker import Speaker
from retort.inference.speech import GuardConfig, SpeechEngine
from retort.inference.synthesizer import Synthesizer
from retort.inference.zero_shot_making import ZeroShotMaker
from retort.inference.zero_shot_speaker import ZeroShotSpeaker
from retort.models.weights import (
    SavedCodecLM,
    SavedMelDiffusion,
    SavedVocoder,
    SavedZeroShot,
    load_codec_lm,
    read_saved,
)


@dataclass(frozen=True)
class Room:
    """What a speaker makes room for.

    Attributes:
        slots: utterances at once.
        max_seconds: longest speech, whatever the text.
        max_text_tokens: longest text.
        guard: against runaways.
    """

    slots: int = 1
    max_seconds: float = 30.0
    max_text_tokens: int = 512
    guard: GuardConfig = GuardConfig()  # noqa: RUF009 - frozen


def open_speaker(
    folder: Path,
    *,
    precision: DecodePrecision = "fp32",
    device: str = "cpu",
    room: Room = Room(),
) -> Speaker:
    """The speaker of a model's folder.

    Args:
        folder: with the model and all that it speaks with.
        precision: number format of its steps; a zero-shot model, which is small, always computes in fp32.
        device: where it runs.
        room: how many may join, and how long they may be.

    Raises:
        ConfigError: it holds a vocoder, which turns mels into sound and knows no texts.
        DataError: the folder holds no model that can speak.
    """
    match read_saved(folder):
        case SavedCodecLM():
            synthesizer = Synthesizer.beside(load_codec_lm(folder), folder, precision=precision, device=device)
            return SpeechEngine(
                synthesizer,
                max_slots=room.slots,
                max_seconds=room.max_seconds,
                max_text_tokens=room.max_text_tokens,
                guard=room.guard,
            )
        case SavedMelDiffusion():
            return DiffusionSpeaker(
                DiffusionSynthesizer.open(folder, precision=precision, device=device),
                max_slots=room.slots,
                max_seconds=room.max_seconds,
                max_text_tokens=room.max_text_tokens,
                guard=room.guard,
            )
        case SavedZeroShot():
            return ZeroShotSpeaker(
                ZeroShotMaker.open(folder, device=device),
                max_slots=room.slots,
                max_seconds=room.max_seconds,
                max_text_tokens=room.max_text_tokens,
                guard=room.guard,
            )
        case SavedVocoder():
            raise ConfigError(
                f"{folder} is a vocoder, which does not speak by itself: it turns mels into sound; give the folder of "
                "a model that makes tokens or mels of texts"
            )
