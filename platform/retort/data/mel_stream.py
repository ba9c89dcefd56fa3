"""Batches of mels, as resumable as those of tokens (:mod:`retort.data.stream`).

Nothing here is random but the order: time, noise and dropped conditions are drawn by the method.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from retort.config import Config
from retort.data.batch_plan import BatchPlan
from retort.data.mels import MelRow, MelSet
from retort.errors import DataError
from retort.nn.mel_conditions import MelConditions, pad_conditions


class MelBatchConfig(Config):
    """How batches of mels are formed."""

    max_utterances: int = Field(ge=1)
    """Rows per micro-batch and worker."""
    max_frames: int = Field(ge=1)
    """Longest padded size of a micro-batch, in mel frames summed over its rows."""


@dataclass(frozen=True)
class MelBatch:
    """One batch.

    Attributes:
        conditions: latents, voices, and which mel frames are valid.
        mel_BTM: raw log-mel in fp32; 0 where ``conditions.mask_BT`` is off. The model normalises it.
        row_B: index of each row in the set.
    """

    conditions: MelConditions
    mel_BTM: Tensor
    row_B: Tensor

    @property
    def num_valid(self) -> Tensor:
        """Number of valid mel frames."""
        return self.conditions.mask_BT.sum()

    def to(self, device: torch.device) -> "MelBatch":
        """Move every tensor."""
        return MelBatch(self.conditions.to(device), self.mel_BTM.to(device), self.row_B.to(device))


def mel_batch(rows: Sequence[MelRow], row_B: Tensor | None = None) -> MelBatch:
    """Rows of unequal length as one batch; ``row_B`` counts from 0 if it is not given."""
    conditions = pad_conditions(
        [row.latents_LD for row in rows],
        [row.voice_PM for row in rows],
        [len(row.mel_TM) for row in rows],
        rows[0].mel_TM.shape[1],
    )
    mel_BTM = pad_sequence([row.mel_TM for row in rows], batch_first=True)
    return MelBatch(conditions, mel_BTM, torch.arange(len(rows)) if row_B is None else row_B)


class MelStream:
    """Batches of one rank, by number: batch ``n`` is a pure function of the seed.

    Args:
        rows: what is trained on.
        config: sizes.
        seed: of the order.
        rank: which of the workers this is.
        world_size: number of workers.

    Raises:
        DataError: there are no rows.
    """

    def __init__(self, rows: MelSet, config: MelBatchConfig, *, seed: int, rank: int = 0, world_size: int = 1) -> None:
        if len(rows) == 0:
            raise DataError("there are no mels to train on; check the split and the rejects of `retort generate`")
        self.rows, self.config, self.seed = rows, config, seed
        self.rank, self.world_size = rank, world_size
        self.lengths: list[int] = rows.column("num_frames")
        self._plan = BatchPlan(self.lengths, max_rows=config.max_utterances, max_frames=config.max_frames, seed=seed)

    @property
    def unit(self) -> str:
        """What :meth:`num_valid` counts."""
        return "mel_frames"

    def batch(self, n: int) -> MelBatch:
        """Batch ``n`` (0-based) of this rank."""
        indices = self._plan.indices(n * self.world_size + self.rank)
        return mel_batch([self.rows[i] for i in indices], torch.tensor(indices))

    def ids(self, n: int) -> list[str]:
        """Of the rows in batch ``n`` of this rank."""
        names: list[str] = self.rows.column("id")
        return [names[index] for index in self._plan.indices(n * self.world_size + self.rank)]

    def iterate(self, start: int, stop: int) -> Iterator[MelBatch]:
        """Batches ``start .. stop - 1``."""
        for n in range(start, stop):
            yield self.batch(n)

    def num_valid(self, stop: int) -> int:
        """Valid mel frames in batches ``0 .. stop - 1`` of all ranks together."""
        return sum(self.lengths[i] for number in range(stop * self.world_size) for i in self._plan.indices(number))
