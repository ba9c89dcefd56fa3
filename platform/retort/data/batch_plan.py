"""Which rows a training batch holds, whatever the rows are: a plan that is a pure function of a seed."""

from collections.abc import Iterator, Sequence

import torch


class BatchPlan:
    """Which rows are in batch ``number``: epochs of shuffled batches, each a pure function of the seed.

    Within an epoch every row comes once. Rows of similar length share a batch, which saves padding.

    Args:
        lengths: of the rows, in frames.
        max_rows: rows in a batch.
        max_frames: longest padded size of a batch, in frames summed over its rows; a longer row is a batch of its own.
        seed: of the order.
    """

    def __init__(self, lengths: Sequence[int], *, max_rows: int, max_frames: int, seed: int) -> None:
        self.lengths, self.max_rows, self.max_frames, self.seed = lengths, max_rows, max_frames, seed
        self._epochs: list[list[list[int]]] = []

    def indices(self, number: int) -> list[int]:
        """Rows of batch ``number`` (0-based), counted over all epochs."""
        epoch = 0
        while True:
            if epoch == len(self._epochs):
                self._epochs.append(self.epoch(epoch))
            plan = self._epochs[epoch]
            if number < len(plan):
                return plan[number]
            number -= len(plan)
            epoch += 1

    def epoch(self, epoch: int) -> list[list[int]]:
        """Batches of one epoch: shuffled, grouped by length within windows to save padding, shuffled again."""
        generator = torch.Generator().manual_seed(mix_seed(self.seed, 0, epoch))
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        window = self.max_rows * 16
        batches: list[list[int]] = []
        for begin in range(0, len(order), window):
            batches.extend(self._cut(sorted(order[begin : begin + window], key=self.lengths.__getitem__)))
        shuffled = torch.randperm(len(batches), generator=generator).tolist()
        return [batches[i] for i in shuffled]

    def _cut(self, indices: Sequence[int]) -> Iterator[list[int]]:
        current: list[int] = []
        for i in indices:  # ascending lengths: the newest row is the longest
            full = len(current) + 1 > self.max_rows
            if current and (full or (len(current) + 1) * self.lengths[i] > self.max_frames):
                yield current
                current = []
            current.append(i)
        yield current


def mix_seed(seed: int, purpose: int, number: int) -> int:
    """Distinct 63-bit seeds for each purpose and number."""
    return (seed * 0x9E3779B97F4A7C15 + purpose * 0xBF58476D1CE4E5B9 + number * 0x94D049BB133111EB) % (1 << 63)
