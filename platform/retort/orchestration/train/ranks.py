"""The ranks of a run and the few things that they must agree on."""

import uuid
from dataclasses import dataclass
from pathlib import Path
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

    def see_one_folder(self, folder: Path) -> bool:
        """Whether all ranks see the same files below ``folder``; every rank must call it."""
        if self.world_size == 1:
            return True
        sign = folder / f".sign-{self.from_rank_zero(uuid.uuid4().hex)}"
        if self.rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            sign.touch()
        self.barrier()
        seen = self.sum(torch.tensor([float(sign.exists())]))
        self.barrier()
        if self.rank == 0:
            sign.unlink()
        return bool(seen.item() == self.world_size)

    def barrier(self) -> None:
        """Wait for all."""
        if self.world_size > 1:
            torch.distributed.barrier()

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over the ranks, in place."""
        if self.world_size > 1:
            torch.distributed.all_reduce(tensor)
        return tensor
