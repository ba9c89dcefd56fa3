"""Mels of phones in the voice of a prompt: a zero-shot model, one utterance at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from retort.audio.files import Audio, normalise_loudness, resample
from retort.audio.mel import log_mel
from retort.data.tokens import refuse_mismatch
from retort.inference.inversion import Inverter, SoundStream, inversion_beside
from retort.models.weights import LoadedZeroShot, load_zero_shot
from retort.models.zero_shot.timbre import (
    TimbreEncoder,
    TimbreEncoderConfig,
    open_timbre_encoder,
    timbre_encoder_beside,
    timbre_encoder_name,
    timbre_encoder_parameters,
)
from retort.models.zero_shot.voices import StoredVoice, read_voices
from retort.nn.phone_conditions import voice_prompts
from retort.nn.phone_numbers import phone_numbers


@dataclass(frozen=True)
class MelWish:
    """What a mel is made from.

    Attributes:
        phones: their numbers in the model's inventory.
        prompt_SM: natural-log mel of a recording of the voice.
        timbre_E: of the voice, by the frozen speaker encoder.
        seed: of the prior's noise.
        noise_scale: of the prior; 0 says the same with every seed.
        tempo: how much faster than the model's own durations.
        frames_P: durations to keep instead of those; None leaves them to the model.
    """

    phones: Sequence[int]
    prompt_SM: Tensor
    timbre_E: Tensor
    seed: int
    noise_scale: float
    tempo: float = 1.0
    frames_P: Tensor | None = None


class ZeroShotMaker:
    """A zero-shot model on its device, with its folder's voices.

    An utterance is computed by itself, so that it is the same bits in any company: the model takes a few thousandths of
    the utterance's time, and no batch would make up for padding.

    Args:
        loaded: the model.
        voices: of its folder, by name.
        inverter: makes sound of its mels, on the CPU.
        timbre: the frozen speaker encoder, by which voices of recordings are told.
        device: where it runs.
    """

    def __init__(
        self,
        loaded: LoadedZeroShot,
        voices: dict[str, StoredVoice],
        inverter: Inverter,
        timbre: TimbreEncoderConfig,
        *,
        device: str = "cpu",
    ) -> None:
        self.loaded, self.voices, self.inverter, self.device = loaded, voices, inverter, torch.device(device)
        self.timbre = timbre
        self.model = loaded.model.to(self.device).eval()
        self.mel = loaded.lineage.mel
        self.prompt_max_frames = max(len(voice.prompt_SM) for voice in voices.values())
        """Of what the model was trained with; longer prompts are cropped."""

    @classmethod
    def open(cls, folder: Path, *, device: str = "cpu") -> "ZeroShotMaker":
        """Open a model folder.

        Raises:
            ConfigError: it holds a model of another family.
            DataError: a part is missing or damaged.
        """
        loaded = load_zero_shot(folder)
        inverter = inversion_beside(folder, loaded.lineage.mel)
        return cls(loaded, read_voices(folder), inverter, timbre_encoder_beside(folder), device=device)

    def numbers(self, phones: Sequence[str]) -> list[int]:
        """Of phones of the model's inventory, in IPA with stress; an empty string is a pause."""
        return phone_numbers(phones, self.loaded.lineage.phones)

    @torch.inference_mode()
    def make(self, wish: MelWish) -> tuple[Tensor, Tensor]:
        """Natural-log mel [T, M] and the frames [P] of its phones, on the CPU."""
        voice = voice_prompts([wish.prompt_SM], [wish.timbre_E]).to(self.device)
        said = self.model.synthesise(
            torch.tensor([list(wish.phones)], device=self.device),
            voice,
            torch.tensor([wish.seed], device=self.device),
            noise_scale=wish.noise_scale,
            tempo=wish.tempo,
            frames_BP=None if wish.frames_P is None else wish.frames_P[None].to(self.device),
        )
        return said.mel_BTM[0].float().cpu(), said.frames_BP[0].cpu()

    def sound_stream(self) -> SoundStream:
        """Gives the sound of a mel little by little, frame by frame: by the folder's vocoder, or Griffin-Lim."""
        return self.inverter.whole()

    @cached_property
    def encoder_parameters(self) -> int:
        """Of the frozen speaker encoder, where the one that it would be told new voices by is its own; else 0."""
        return timbre_encoder_parameters(self.timbre) if self.has_encoder else 0

    @cached_property
    def has_encoder(self) -> bool:
        """Whether it would be told new voices by the speaker encoder that it was trained with, and so can be."""
        return timbre_encoder_name(self.timbre) == self.loaded.lineage.timbre_encoder

    @cached_property
    def encoder(self) -> TimbreEncoder:
        """The frozen speaker encoder.

        Raises:
            DataError: it is another one than the model was trained with.
            MissingRequirementError: it is not installed.
        """
        wanted, found = self.loaded.lineage.timbre_encoder, timbre_encoder_name(self.timbre)
        cure = "use the version that the model was trained with, or train the model again: its folder then carries it"
        refuse_mismatch("timbre encoder", "the model", wanted, "this installation", found, cure)
        return open_timbre_encoder(self.timbre, self.mel, device=self.device)

    def voice_of(self, audio: Audio) -> tuple[Tensor, Tensor]:
        """Prompt [S, M] and timbre [E] of a recording: its beginning, as far as a prompt reaches, and all of it.

        It is as loud as the recordings that the model was trained on.

        Raises:
            DataError: no voice is heard in it.
        """
        samples_N = resample(audio.samples_N, audio.sample_rate, self.mel.sample_rate)
        target_lufs = self.loaded.lineage.target_lufs
        if target_lufs is not None:
            samples_N = normalise_loudness(samples_N, self.mel.sample_rate, target_lufs)
        timbre_E = self.encoder.embed(samples_N, self.mel.sample_rate)
        return log_mel(samples_N, self.mel).T[: self.prompt_max_frames].contiguous(), timbre_E
