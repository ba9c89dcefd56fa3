"""Voices of a few harmonics and a hiss, a small vocoder, and batches of them without a corpus."""

import math
from pathlib import Path

import torch
from torch import Tensor

from retort.audio.mel import MelConfig
from retort.data.readers_manifest import ManifestConfig
from retort.data.recordings import AudioConfig, RecordingLoader
from retort.data.sound_stream import SoundBatchConfig, SoundNeeds, SoundStream
from retort.data.utterance import Utterance
from retort.models.vocoder import Vocoder, VocoderConfig

MEL = MelConfig(
    sample_rate=4000, num_mels=24, hop_samples=50, window_samples=200, fft_size=256, f_min_hz=0.0, f_max_hz=2000.0
)
TOY = VocoderConfig(mel=MEL, dim=16, hidden=32, num_blocks=3, pitch_dim=16)


def voice(seconds: float, *, seed: int = 0, mel: MelConfig = MEL) -> Tensor:
    """Samples [N]: a gliding voice with a formant, silent for a fifth of the time, and a hiss."""
    generator = torch.Generator().manual_seed(seed)
    rate, count = mel.sample_rate, int(seconds * mel.sample_rate)
    low, high = (100.0 + 150.0 * torch.rand(2, generator=generator)).tolist()
    times_N = torch.arange(count) / rate
    pitch_N = low + (high - low) * 0.5 * (1.0 - torch.cos(2 * math.pi * times_N))
    phase_N = 2 * math.pi * pitch_N.double().cumsum(0) / rate
    sound_N = torch.zeros(count)
    for harmonic in range(1, int(rate / 2 / max(low, high))):
        level = 1.0 / harmonic + math.exp(-(((harmonic * low - 700.0) / 200.0) ** 2))
        sound_N += level * torch.cos(harmonic * phase_N).float()
    is_on_N = (times_N * 2.0) % 1.0 < 0.8
    return 0.1 * sound_N * is_on_N + 0.003 * torch.randn(count, generator=generator)


class Voices(RecordingLoader):
    """Says :func:`voice` in place of reading files; the row's id is its seed."""

    def __init__(self) -> None:
        super().__init__(AudioConfig(), MEL.sample_rate, ManifestConfig(kind="manifest", path=Path("nowhere")))

    def load(self, utterance: Utterance) -> Tensor:
        return voice(1.0 + 0.1 * int(utterance.id), seed=int(utterance.id))


def toy_stream(
    model: Vocoder, *, segments: int = 4, frames: int = 24, rank: int = 0, world_size: int = 1, seed: int = 0
) -> SoundStream:
    """Batches of eight voices."""
    rows = [Utterance(str(i), "la", "s", "en", b"") for i in range(8)]
    config = SoundBatchConfig(segments=segments, segment_frames=frames)
    needs = SoundNeeds(model.reach, model.num_noise(frames))
    return SoundStream(rows, Voices(), MEL, config, needs, seed=seed, rank=rank, world_size=world_size)


def toy_vocoder(config: VocoderConfig = TOY, *, seed: int = 0) -> Vocoder:
    """With random weights, those that begin at zero included."""
    torch.manual_seed(seed)
    model = Vocoder(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model
