"""A vocoder's sound while mels still arrive, with the cost of each frame paid once."""

import math

import torch
from torch import Tensor

from retort.audio.inverse_stream import InverseStream
from retort.audio.mel import MEL_FLOOR
from retort.models.vocoder import Frames, Source, Vocoder, with_silence


class VocoderStream:
    """Gives the samples of :func:`vocoded`, but for the last bits, while mels come in blocks of one size.

    Each layer keeps the frames that its next ones need. Everything is computed in shapes that depend only on a block's
    place, so the samples are the same bits whether blocks come one by one or all at once.

    Args:
        vocoder: in evaluation mode.
        block_frames: frames of a block.
        seed: of the noise.
    """

    def __init__(self, vocoder: Vocoder, *, block_frames: int, seed: int = 0) -> None:
        self._vocoder, self._block_frames = vocoder, block_frames
        self._trunk = vocoder.trunk.stream()
        self._source = None if vocoder.pitch is None else _SourceStream(vocoder, seed)
        self._inverse = InverseStream(vocoder.config.mel)
        self._waiting_MT = torch.zeros(vocoder.config.mel.num_mels, 0)
        self._has_begun = False

    @torch.no_grad()
    def push(self, log_mel_MT: Tensor) -> Tensor:
        """Add one block of features [M, block_frames]; returns the samples that became final, maybe none."""
        if log_mel_MT.shape[1] != self._block_frames:
            raise ValueError(f"a block has {self._block_frames} frames, got {log_mel_MT.shape[1]}")
        self._waiting_MT = torch.cat([self._waiting_MT, log_mel_MT], dim=1)
        return self._inverse.push(self._spectrum(log_mel_MT))

    @torch.no_grad()
    def finish(self) -> Tensor:
        """The remaining samples; together with what was pushed out, ``num_frames * hop_samples``."""
        if not self._has_begun:
            return torch.zeros(0)
        silence_MT = torch.full((self._vocoder.config.mel.num_mels, self._vocoder.reach), math.log(MEL_FLOOR))
        return torch.cat([self._inverse.push(self._spectrum(silence_MT)), self._inverse.finish()])

    def _spectrum(self, new_MT: Tensor) -> Tensor:
        """Spectrum [T, F] of the frames that became ready."""
        vocoder, given_MT = self._vocoder, new_MT
        if not self._has_begun:
            new_MT = with_silence(new_MT, vocoder.reach, 0)
        trunk_BTD = self._trunk.push(vocoder.normalised(new_MT[None]))
        count = trunk_BTD.shape[1]
        if self._source is not None:
            self._source.push(given_MT)
        self._has_begun = True
        if not count:
            return torch.zeros(0, vocoder.config.mel.fft_size // 2 + 1, dtype=torch.complex64)
        ready_MT, self._waiting_MT = self._waiting_MT[:, :count], self._waiting_MT[:, count:]
        source = None if self._source is None else self._source.take(count)
        return vocoder.spectrum(Frames(vocoder.said(trunk_BTD), ready_MT.T[None], source))[0]


class _SourceStream:
    """Pulses and noise for frames as they become ready."""

    def __init__(self, vocoder: Vocoder, seed: int) -> None:
        assert vocoder.pitch is not None
        self._vocoder, self._reader = vocoder, vocoder.pitch
        self._trunk = vocoder.pitch.trunk.stream()
        self._generator = torch.Generator().manual_seed(seed)
        # Pitch and voicing that wait for frames begin ``overhang`` frames before the next one, as the sounds do.
        self._last_BT: Tensor | None = None
        self._has_begun = False
        self._phase_B = torch.zeros(1)
        self._voiced_BT = torch.zeros(1, 0)
        self._pulses_BN, self._noise_BN = torch.zeros(1, 0), torch.zeros(1, 0)

    def push(self, new_MT: Tensor) -> None:
        vocoder, hop = self._vocoder, self._vocoder.config.mel.hop_samples
        if not self._has_begun:
            new_MT = with_silence(new_MT, self._reader.reach + vocoder.overhang, 0)
        self._has_begun = True
        trunk_BTD = self._trunk.push(vocoder.normalised(new_MT[None]))
        if not trunk_BTD.shape[1]:
            return
        found = self._reader.said(trunk_BTD)
        pitch_BT = found.hz() if self._last_BT is None else torch.cat([self._last_BT, found.hz()], dim=1)
        self._voiced_BT = torch.cat([self._voiced_BT, found.voiced_BT.sigmoid()], dim=1)
        self._last_BT = pitch_BT[:, -1:]
        pulses_BN, self._phase_B = vocoder.pulses(pitch_BT, self._phase_B)
        noise_BN = noise_of(self._generator, pitch_BT.shape[1] - 1, hop)[None]
        self._pulses_BN = torch.cat([self._pulses_BN, pulses_BN], dim=1)
        self._noise_BN = torch.cat([self._noise_BN, noise_BN], dim=1)

    def take(self, count: int) -> Source:
        """Of the next ``count`` frames."""
        overhang, hop = self._vocoder.overhang, self._vocoder.config.mel.hop_samples
        end, done = (count - 1 + 2 * overhang) * hop, count * hop
        voiced_BT = self._voiced_BT[:, overhang : overhang + count]
        source = Source(self._pulses_BN[:, :end], self._noise_BN[:, :end], voiced_BT)
        self._pulses_BN, self._noise_BN = self._pulses_BN[:, done:], self._noise_BN[:, done:]
        self._voiced_BT = self._voiced_BT[:, count:]
        return source


@torch.no_grad()
def vocoded(vocoder: Vocoder, log_mel_MT: Tensor, *, seed: int = 0) -> Tensor:
    """Samples [T * hop_samples] of a whole mel, in one piece; the same seed gives the same samples."""
    mel, num_frames = vocoder.config.mel, log_mel_MT.shape[1]
    if not num_frames:
        return torch.zeros(0)
    generator = torch.Generator().manual_seed(seed)
    noise_N = noise_of(generator, vocoder.num_noise(num_frames) // mel.hop_samples, mel.hop_samples)
    samples_BN: Tensor = vocoder(with_silence(log_mel_MT, vocoder.reach, vocoder.reach)[None], noise_N[None])
    return samples_BN[0]


def noise_of(generator: torch.Generator, num_hops: int, hop: int) -> Tensor:
    """Standard noise [N], drawn hop by hop: then it does not depend on how many are drawn at once."""
    return torch.cat([torch.randn(hop, generator=generator) for _ in range(num_hops)] or [torch.zeros(0)])
