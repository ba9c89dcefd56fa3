"""Spectra of frames to sound, little by little: the least-squares inverse of a short-time transform."""

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from retort.audio.mel import MelConfig, window


class InverseStream:
    """Adds up windowed frames, and gives the samples that no later frame reaches; the first is frame 0's centre."""

    def __init__(self, config: MelConfig) -> None:
        self._config = config
        # Sums that later frames may still add to; they begin at sample ``self._begin``, first half a window early.
        self._sum, self._weight = torch.zeros(0), torch.zeros(0)
        self._begin = -(config.window_samples // 2)
        self.num_frames = 0

    def push(self, spectrum_TF: Tensor) -> Tensor:
        """Add frames, perhaps none; returns the samples that became final."""
        config, count = self._config, spectrum_TF.shape[0]
        if not count:
            return torch.zeros(0)
        hop, width = config.hop_samples, config.window_samples
        frames_TW = torch.fft.irfft(spectrum_TF, n=config.fft_size)[:, :width] * window(config)
        sound_N, weight_N = overlap_add(frames_TW[None], hop)[0], weight(config, count)
        begin = self.num_frames * hop - width // 2 - self._begin
        grown = begin + sound_N.shape[0] - self._sum.shape[0]
        self._sum, self._weight = functional.pad(self._sum, (0, grown)), functional.pad(self._weight, (0, grown))
        self._sum[begin:] += sound_N
        self._weight[begin:] += weight_N
        self.num_frames += count
        return self._take(self.num_frames * hop - width // 2 - self._begin)

    def finish(self) -> Tensor:
        """The samples that wait for frames which do not come, as far as the last frame's hop goes."""
        return self._take(self.num_frames * self._config.hop_samples - self._begin)

    def _take(self, final: int) -> Tensor:
        samples = self._sum[:final] / self._weight[:final].clamp(min=1e-3)
        early = max(0, -self._begin)
        self._sum, self._weight, self._begin = self._sum[final:], self._weight[final:], self._begin + final
        return samples[early:]


def overlap_add(frames_BTW: Tensor, hop: int) -> Tensor:
    """Samples [B, (T - 1) * hop + W]; a few sums of whole hops, several times faster than ``fold``."""
    num_items, num_frames, width = frames_BTW.shape
    num_hops = -(-width // hop)
    hops_BTRN = functional.pad(frames_BTW, (0, num_hops * hop - width)).view(num_items, num_frames, num_hops, hop)
    summed_BTN = frames_BTW.new_zeros(num_items, num_frames + num_hops - 1, hop)
    for index in range(num_hops):
        summed_BTN[:, index : index + num_frames] += hops_BTRN[:, :, index]
    return summed_BTN.flatten(1)[:, : (num_frames - 1) * hop + width]


@lru_cache(maxsize=32)
def weight(config: MelConfig, num_frames: int) -> Tensor:
    """Sum of the squared windows of so many frames, [N]."""
    return overlap_add(window(config).square().expand(1, num_frames, -1), config.hop_samples)[0]
