"""The ranks of a run and the few things that they must agree on."""

import uuid
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among ``world_size`` processes."""

    rank: int = 0
    world_size: int = 1

    def from_rank_zero(self, value: T) -> T:
        """Rank 0's value on every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        torch.distributed.broadcast_object_list(box, src=0)
        return box[0]

    def agree_on_attempt(self) -> str:
        """32 hexadecimal digits that are new at each start and the same on every rank."""
        return self.from_rank_zero(uuid.uuid4().hex)

    def barrier(self) -> None:
        """Wait for all."""
        if self.world_size > 1:
            torch.distributed.barrier()

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over the ranks, in place."""
        if self.world_size > 1:
            torch.distributed.all_reduce(tensor)
        return tensor
