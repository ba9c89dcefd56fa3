import subprocess
import sys

import pytest

# In a process of its own, as the evaluation measures it: in a long-lived one the allocator answers from what an
# earlier test has freed, and no page is new.
_ALLOCATE = """
import torch
from retort.evaluation.speed import memory_mb, peak_memory_mb, reset_peak_memory

cpu = torch.device("cpu")
torch.ones(1)
reset_peak_memory(cpu)
before = memory_mb(cpu)
block = torch.ones(64 * 2**20 // 4)
del block
print(peak_memory_mb(cpu) - before)
reset_peak_memory(cpu)
print(peak_memory_mb(cpu) - before)
"""


def test_the_peak_sees_what_was_allocated_and_freed_again() -> None:
    done = subprocess.run([sys.executable, "-c", _ALLOCATE], capture_output=True, text=True, check=True)
    seen, after_reset = (float(line) for line in done.stdout.split())
    assert seen == pytest.approx(64, abs=16)
    assert after_reset < 32
