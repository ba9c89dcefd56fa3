import pytest
import torch

from retort.evaluation.speed import memory_mb, peak_memory_mb, reset_peak_memory

CPU = torch.device("cpu")


def test_the_peak_sees_what_was_allocated_and_freed_again() -> None:
    reset_peak_memory(CPU)
    before = memory_mb(CPU)
    block = torch.ones(64 * 2**20 // 4)
    del block
    assert peak_memory_mb(CPU) - before == pytest.approx(64, abs=16)
    reset_peak_memory(CPU)
    assert peak_memory_mb(CPU) - before < 32
