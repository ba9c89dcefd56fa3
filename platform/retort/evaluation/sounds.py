"""Sound inside a page: what systems said, as data that an HTML file holds, within a budget of bytes."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from retort.audio.files import Audio, AudioLimits, read_audio, wav_bytes
from retort.evaluation import figures

MAX_SOUND_BYTES = 14_000_000
"""Encoded sound that a page takes in; base64 makes a third more of it, and the page must stay below 20 MB."""

ANY_SOUND = AudioLimits(
    min_duration_s=0.0,
    max_duration_s=1e9,
    max_bytes=1 << 40,
    max_samples=1 << 40,
    silence_dbfs=float("-inf"),
    max_clipped_fraction=1.0,
)
"""What is judged: any sound at all."""


def read_any_sound(encoded: bytes) -> Audio:
    """A recording or a system's sound, to be judged: what is no good to train on is a failure in a table, not refused.

    Raises:
        AudioRejected: there is nothing to judge: no sound, no samples, or a cut.
    """
    return read_audio(encoded, limits=ANY_SOUND)


@dataclass(frozen=True)
class AudioSample:
    """What a system said for the utterance ``id``: mono samples [N] in -1..1."""

    id: str
    system: str
    samples_N: Tensor
    sample_rate: int

    def finite(self) -> Tensor:
        """The samples [N] on the CPU; what is not finite is silence."""
        return torch.nan_to_num(self.samples_N.detach().cpu().float(), nan=0.0, posinf=0.0, neginf=0.0)

    def wav(self) -> bytes:
        """As a WAV file."""
        return wav_bytes(self.finite(), self.sample_rate)

    def uri(self) -> str:
        """As an address that holds the sound itself."""
        return figures.data_uri("audio/wav", self.wav())


def fitting(samples: Sequence[AudioSample]) -> tuple[dict[str, list[AudioSample]], int]:
    """Samples by utterance, whole utterances in order while they fit; and how many utterances there was no room for."""
    by_id: dict[str, list[AudioSample]] = {}
    for sample in samples:
        by_id.setdefault(sample.id, []).append(sample)
    kept, taken = {}, 0
    for utterance, said in by_id.items():
        size = sum(44 + 2 * sample.samples_N.numel() for sample in said)
        if taken + size <= MAX_SOUND_BYTES:
            taken += size
            kept[utterance] = said
    return kept, len(by_id) - len(kept)


def fingerprint_of(samples: Sequence[AudioSample]) -> str:
    """Names what can be heard: 16 hexadecimal digits of the systems, the utterances and their sound."""
    total = hashlib.sha256()
    for sample in sorted(samples, key=lambda sample: (sample.id, sample.system)):
        sound = hashlib.sha256(sample.wav()).hexdigest()
        total.update(f"{sample.id}\0{sample.system}\0{sound}\n".encode())
    return total.hexdigest()[:16]
