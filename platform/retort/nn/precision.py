"""Which number format to compute in."""

from pathlib import Path
from typing import Literal

import torch

Precision = Literal["fp32", "bf16", "auto"]


def pick_dtype(precision: Precision, device: torch.device | str = "cpu") -> torch.dtype:
    """The dtype of a precision; ``auto`` is bf16 where ``device`` multiplies it natively, else fp32."""
    match precision:
        case "fp32":
            return torch.float32
        case "bf16":
            return torch.bfloat16
        case "auto":
            return torch.bfloat16 if multiplies_bf16(torch.device(device)) else torch.float32


def multiplies_bf16(device: torch.device) -> bool:
    """Whether products of bf16 matrices run natively: on GPUs that have it, and on CPUs with AVX-512 BF16 or AMX."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return False
    flags = set(next((line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")), "").split())
    return bool(flags & {"avx512_bf16", "amx_bf16"})
