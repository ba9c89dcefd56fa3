"""Batches of sound: segments of a corpus' recordings with their mels, as resumable as batches of tokens.

Which recordings, where their segments begin and the noise that goes along are pure functions of the seed, the batch's
number and the corpus. A segment that reaches beyond its recording goes on in silence, so nothing is masked.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from retort.audio.files import AudioRejected
from retort.audio.mel import MEL_FLOOR, MelConfig, log_mel
from retort.audio.pitch import measured_pitch
from retort.config import Config
from retort.data.batch_plan import BatchPlan, mix_seed
from retort.data.recordings import RecordingLoader
from retort.data.utterance import Utterance
from retort.errors import DataError

_SEGMENT, _NOISE = 11, 12
"""Purposes of seeds; the plan has 0."""


class SoundBatchConfig(Config):
    """How batches of segments are formed."""

    segments: int = Field(ge=1)
    """Rows per micro-batch and worker, each of another recording."""
    segment_frames: int = Field(default=48, ge=8)
    """Mel frames of a segment."""
    kept_recordings: int = Field(default=2000, ge=1)
    """Recordings that a worker keeps decoded, some 100 KiB for each second; others are read again."""


@dataclass(frozen=True)
class SoundBatch:
    """One batch of ``B`` segments of ``T`` frames.

    Attributes:
        samples_BN: sound [B, T * hop]; frame ``t`` is centred on ``t * hop``.
        mel_BMT: log-mels of the segment and of ``context`` frames before and after it.
        pitch_BT: Hz of the same frames, 0 where nothing is voiced.
        noise_BN: standard noise, as much as the model asked for.
        number: of the batch, over all ranks.
        num_frames: ``T``.
    """

    samples_BN: Tensor
    mel_BMT: Tensor
    pitch_BT: Tensor
    noise_BN: Tensor
    number: int
    num_frames: int

    @property
    def num_valid(self) -> Tensor:
        """Mel frames of all segments."""
        return torch.tensor(self.num_frames * len(self.samples_BN), device=self.samples_BN.device)

    def to(self, device: torch.device) -> "SoundBatch":
        """Move every tensor."""
        return replace(
            self,
            samples_BN=self.samples_BN.to(device),
            mel_BMT=self.mel_BMT.to(device),
            pitch_BT=self.pitch_BT.to(device),
            noise_BN=self.noise_BN.to(device),
        )


@dataclass(frozen=True)
class SoundNeeds:
    """What a model needs beside a segment: so many frames around it, and so many samples of noise."""

    context: int
    noise_samples: int


class SoundStream:
    """Batches of one rank, by number.

    Args:
        rows: recordings to train on; one that cannot be used is replaced by the next one that can.
        loader: of their samples, at the mels' rate.
        mel: of the features.
        config: sizes.
        needs: of the model, for segments of ``config.segment_frames``.
        seed: of the order, the segments and the noise.
        rank: which of the workers this is.
        world_size: number of workers.
    """

    def __init__(
        self,
        rows: Sequence[Utterance],
        loader: RecordingLoader,
        mel: MelConfig,
        config: SoundBatchConfig,
        needs: SoundNeeds,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.rows, self.loader, self.mel, self.config, self.needs = rows, loader, mel, config, needs
        self.seed, self.rank, self.world_size = seed, rank, world_size
        count = config.segments
        self._plan = BatchPlan([1] * len(rows), max_rows=count, max_frames=count, seed=seed)
        self._kept: OrderedDict[int, _Recording | None] = OrderedDict()

    @property
    def unit(self) -> str:
        """What :meth:`num_valid` counts."""
        return "mel_frames"

    def batch(self, n: int) -> SoundBatch:
        """Batch ``n`` (0-based) of this rank.

        Raises:
            DataError: no recording of the corpus can be used.
        """
        number, frames = n * self.world_size + self.rank, self.config.segment_frames
        hop, context = self.mel.hop_samples, self.needs.context
        generator = torch.Generator().manual_seed(mix_seed(self.seed, _SEGMENT, number))
        found = [self._usable(index) for index in self._plan.indices(number)]
        starts = [int(torch.randint(max(1, one.num_frames - frames), (), generator=generator)) for one in found]
        parts = [one.cut(start, frames, hop, context) for one, start in zip(found, starts, strict=True)]
        samples_BN, mel_BMT, pitch_BT = (torch.stack(part) for part in zip(*parts, strict=True))
        generator = torch.Generator().manual_seed(mix_seed(self.seed, _NOISE, number))
        noise_BN = torch.randn(len(parts), self.needs.noise_samples, generator=generator)
        return SoundBatch(samples_BN, mel_BMT, pitch_BT, noise_BN, number, frames)

    def ids(self, n: int) -> list[str]:
        """Of the rows in batch ``n`` of this rank."""
        return [self.rows[index].id for index in self._plan.indices(n * self.world_size + self.rank)]

    def num_valid(self, stop: int) -> int:
        """Mel frames in batches ``0 .. stop - 1`` of all ranks together."""
        rows = sum(len(self._plan.indices(number)) for number in range(stop * self.world_size))
        return rows * self.config.segment_frames

    def _usable(self, index: int) -> "_Recording":
        for shift in range(len(self.rows)):
            found = self._recording((index + shift) % len(self.rows))
            if found is not None:
                return found
        raise DataError(
            f"none of {len(self.rows)} recordings can be used, the first of them {self.rows[0].id!r}; run "
            "`retort prepare`, whose rejects say why"
        )

    def _recording(self, index: int) -> "_Recording | None":
        if index in self._kept:
            self._kept.move_to_end(index)
            return self._kept[index]
        try:
            samples_N = self.loader.load(self.rows[index])
            found = _Recording(samples_N, log_mel(samples_N, self.mel), measured_pitch(samples_N[None], self.mel)[0])
        except AudioRejected:
            found = None
        self._kept[index] = found
        if len(self._kept) > self.config.kept_recordings:
            self._kept.popitem(last=False)
        return found


@dataclass(frozen=True)
class _Recording:
    samples_N: Tensor
    mel_MT: Tensor
    pitch_T: Tensor

    @property
    def num_frames(self) -> int:
        return len(self.pitch_T)

    def cut(self, start: int, frames: int, hop: int, context: int) -> tuple[Tensor, Tensor, Tensor]:
        begin, end = start - context, start + frames + context
        return (
            _window(self.samples_N, start * hop, (start + frames) * hop, 0.0),
            _window(self.mel_MT, begin, end, math.log(MEL_FLOOR)),
            _window(self.pitch_T, begin, end, 0.0),
        )


def _window(values: Tensor, begin: int, end: int, outside: float) -> Tensor:
    """``values[..., begin:end]``, with ``outside`` where there is nothing."""
    inner = values[..., max(0, begin) : max(0, end)]
    before = max(0, -begin)
    return functional.pad(inner, (before, end - begin - before - inner.shape[-1]), value=outside)
