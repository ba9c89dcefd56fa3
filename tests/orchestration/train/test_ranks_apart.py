"""What differs between ranks, and must."""

import random

import numpy as np
import torch

from retort.nn.dropout import Dropout
from retort.orchestration.train.worker import seed_rank


def drawn(seed: int, rank: int) -> tuple[object, ...]:
    seed_rank(seed, rank)
    masked = Dropout(0.5).train()(torch.ones(64))
    return random.random(), float(np.random.random()), tuple(torch.rand(4).tolist()), tuple(masked.tolist())


def test_ranks_drop_different_units_and_every_rank_the_same_again() -> None:
    one, other, again = drawn(3, 0), drawn(3, 1), drawn(3, 0)
    assert one == again
    assert all(a != b for a, b in zip(one, other, strict=True))
    assert all(a != b for a, b in zip(drawn(4, 0), one, strict=True))
