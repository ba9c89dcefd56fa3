"""Sound from mel features without weights: fast Griffin-Lim, for whole utterances and for streams.

Griffin and Lim (ICASSP 1984) look for phases whose spectrum is consistent, by going to samples and back; the momentum
is that of Perraudin, Balazs and Soendergaard (WASPAA 2013).
"""

import math
from collections import deque
from functools import lru_cache

import torch
from torch import Tensor

from retort.audio.inverse_stream import InverseStream, overlap_add
from retort.audio.mel import MEL_FLOOR, MelConfig, mel_to_magnitude, window

_MOMENTUM = 0.99
_TINY = 1e-12


def griffin_lim(log_mel_MT: Tensor, config: MelConfig, *, num_iterations: int = 32, seed: int = 0) -> Tensor:
    """Samples [T * hop_samples] whose log-mel is close to the given one; the same seed gives the same samples."""
    stream = whole_mel_stream(config, num_iterations=num_iterations, seed=seed)
    pushed = [stream.push(log_mel_MT[:, t : t + 1]) for t in range(log_mel_MT.shape[1])]
    return torch.cat([*pushed, stream.finish()])


def whole_mel_stream(config: MelConfig, *, num_iterations: int = 32, seed: int = 0) -> "GriffinLimStream":
    """What gives the samples of :func:`griffin_lim` little by little, frame by frame, where all frames are there."""
    return GriffinLimStream(
        config, block_frames=1, num_iterations=num_iterations, first_piece=32, piece=32, look_ahead=4, seed=seed
    )


class GriffinLimStream:
    """Griffin-Lim that gives samples while features still arrive, with the cost of a fixed number of frames a piece.

    Pieces of frames get their phases one after the other, each with the phases before it fixed and with ``look_ahead``
    blocks after it in view (RTISI-LA: Zhu, Beauregard and Wyse, IEEE TASLP 15(5), 2007). Features come in blocks of one
    size, and everything is computed in shapes that depend only on a block's place, so the samples are the same bits
    whether blocks come one by one or all at once.

    Args:
        config: shape of the features.
        block_frames: frames of a block.
        num_iterations: rounds for each piece.
        first_piece: blocks of the first piece; a small one makes the first sound early.
        piece: blocks of the others.
        look_ahead: blocks after a piece that take part in its rounds.
        seed: of the first phases.
    """

    def __init__(
        self,
        config: MelConfig,
        *,
        block_frames: int,
        num_iterations: int,
        first_piece: int = 2,
        piece: int = 8,
        look_ahead: int = 1,
        seed: int = 0,
    ) -> None:
        self._config, self._block_frames, self._num_iterations = config, block_frames, num_iterations
        self._next_piece, self._piece, self._look_ahead = first_piece, piece, look_ahead
        self._generator = torch.Generator().manual_seed(seed)
        self._pending: deque[tuple[Tensor, Tensor]] = deque()
        """Features [M, frames] and phases [frames, F] of the blocks that have no final phases yet."""
        self._context = math.ceil(config.window_samples / config.hop_samples) - 1
        bins = config.fft_size // 2 + 1
        self._committed_TF = torch.zeros(0, bins, dtype=torch.complex64)
        self._inverse = InverseStream(config)
        self._num_frames = self._num_given = 0

    @torch.no_grad()
    def push(self, log_mel_MT: Tensor) -> Tensor:
        """Add one block of features [M, block_frames]; returns the samples that became final, maybe none."""
        if log_mel_MT.shape[1] != self._block_frames:
            raise ValueError(f"a block has {self._block_frames} frames, got {log_mel_MT.shape[1]}")
        self._num_frames += self._block_frames
        self._add(log_mel_MT)
        return self._give(self._solve())

    @torch.no_grad()
    def finish(self) -> Tensor:
        """The remaining samples; together with what was pushed out, ``num_frames * hop_samples``."""
        samples = []
        while self._inverse.num_frames < self._num_frames:
            self._add(torch.full((self._config.num_mels, self._block_frames), math.log(MEL_FLOOR)))
            samples.append(self._solve())
        # Silence overlaps the last frames.
        bins = self._config.fft_size // 2 + 1
        samples.append(self._commit(torch.zeros(self._context + 1, bins, dtype=torch.complex64)))
        missing = self._num_frames * self._config.hop_samples - self._num_given
        return self._give(torch.cat(samples)[:missing])

    def _give(self, samples_N: Tensor) -> Tensor:
        self._num_given += samples_N.shape[0]
        return samples_N

    def _add(self, log_mel_MT: Tensor) -> None:
        turns_TF = torch.rand(self._block_frames, self._config.fft_size // 2 + 1, generator=self._generator)
        self._pending.append((log_mel_MT, torch.polar(torch.ones_like(turns_TF), 2 * math.pi * turns_TF)))

    def _solve(self) -> Tensor:
        samples = []
        while len(self._pending) >= self._next_piece + self._look_ahead:
            blocks = [self._pending[i] for i in range(self._next_piece + self._look_ahead)]
            features_MT = torch.cat([features for features, _ in blocks], dim=1)
            magnitude_TF = mel_to_magnitude(features_MT[None], self._config)[0].T.contiguous()
            spectrum_TF = self._find_phases(magnitude_TF, torch.cat([phase for _, phase in blocks]))
            final = self._next_piece * self._block_frames
            for _ in range(self._next_piece):
                self._pending.popleft()
            self._keep_phases(spectrum_TF[final:])
            samples.append(self._commit(spectrum_TF[:final]))
            self._next_piece = self._piece
        return torch.cat(samples) if samples else torch.zeros(0)

    def _find_phases(self, magnitude_TF: Tensor, phase_TF: Tensor) -> Tensor:
        context = self._committed_TF.shape[0]
        spectrum_TF = torch.cat([self._committed_TF, magnitude_TF * phase_TF])
        transform = _transform(self._config, spectrum_TF.shape[0])
        previous_TF = torch.zeros_like(spectrum_TF)
        size_TF = torch.empty_like(magnitude_TF)
        open_TF = spectrum_TF[context:]
        for _ in range(self._num_iterations):
            rebuilt_TF = transform.forward(transform.inverse(spectrum_TF[None]))[0]
            torch.sub(rebuilt_TF, previous_TF, alpha=_MOMENTUM / (1 + _MOMENTUM), out=spectrum_TF)
            previous_TF = rebuilt_TF
            spectrum_TF[:context] = self._committed_TF
            torch.abs(open_TF, out=size_TF).add_(_TINY)
            torch.view_as_real(open_TF).mul_(torch.div(magnitude_TF, size_TF, out=size_TF)[..., None])
        return open_TF

    def _keep_phases(self, spectrum_TF: Tensor) -> None:
        """The blocks in view start their own rounds from the phases found so far."""
        for index in range(self._look_ahead):
            features_MT, _ = self._pending[index]
            part_TF = spectrum_TF[index * self._block_frames : (index + 1) * self._block_frames]
            self._pending[index] = (features_MT, part_TF / part_TF.abs().clamp(min=_TINY))

    def _commit(self, spectrum_TF: Tensor) -> Tensor:
        """Add final frames to the sound; returns the samples that no later frame reaches."""
        self._committed_TF = torch.cat([self._committed_TF, spectrum_TF])[-self._context :]
        return self._inverse.push(spectrum_TF)


@lru_cache(maxsize=32)
def _transform(config: MelConfig, num_frames: int) -> "Transform":
    return Transform(config, num_frames, torch.device("cpu"))


class Transform:
    """Short-time transform and its least-squares inverse for a fixed number of frames, with the window sums kept."""

    def __init__(self, config: MelConfig, num_frames: int, device: torch.device) -> None:
        self._hop, self._window_samples, self._fft_size = config.hop_samples, config.window_samples, config.fft_size
        self.lead_samples = config.window_samples // 2
        self._window = window(config).to(device)
        squares_BTW = self._window.square().expand(1, num_frames, -1)
        # The clamp only acts on the first and last samples, where the window is zero and nothing is known.
        self._gain = overlap_add(squares_BTW, self._hop).clamp(min=1e-3).reciprocal()

    def forward(self, samples_BN: Tensor) -> Tensor:
        """Spectrum [B, T, F] of samples that :meth:`inverse` made."""
        frames_BTW = samples_BN.unfold(-1, self._window_samples, self._hop) * self._window
        spectrum_BTF: Tensor = torch.fft.rfft(frames_BTW, n=self._fft_size)
        return spectrum_BTF

    def inverse(self, spectrum_BTF: Tensor) -> Tensor:
        """Samples [B, N], of which the first half window comes before the centre of frame 0."""
        frames_BTW = torch.fft.irfft(spectrum_BTF, n=self._fft_size)[..., : self._window_samples]
        return overlap_add(frames_BTW * self._window, self._hop) * self._gain
