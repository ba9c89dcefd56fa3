"""Speed and memory of speaking: every system says the same number of seconds, in turns, and the best round counts.

The real-time factor is all work over the audio's length; what else it costs, each family says in its own figures.
"""

import gc
import resource
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from retort.inference.decoding import Decoding
from retort.inference.speaker import Request, Speaker, Timing


@dataclass(frozen=True)
class SpeedCase:
    """One system to time; ``decoding`` None is the plain one of its family."""

    speaker: Speaker
    request: Request
    decoding: Decoding | None = None

    def time(self, *, batch_size: int, seconds: float) -> Timing:
        """Say a batch of the request with different seeds."""
        requests = [replace(self.request, seed=seed) for seed in range(batch_size)]
        return self.speaker.time(requests, self.speaker.decoding(self.decoding), seconds=seconds)


@dataclass(frozen=True)
class Speed:
    """What was measured at one batch size.

    Attributes:
        batch_size: utterances said together.
        rtf: seconds of work per second of audio.
        first_audio_ms: time until the first part of the sound could be made.
        figures: the family's own costs by their names in a summary, such as ``tokens_per_second`` and ``nfe``.
    """

    batch_size: int
    rtf: float
    first_audio_ms: float
    figures: Mapping[str, float]


def measure_speed(cases: Mapping[str, SpeedCase], *, batch_size: int, seconds: float, rounds: int) -> dict[str, Speed]:
    """Time every case ``rounds`` times, in turns, after one warm-up each; what made no sound has no speed."""
    best: dict[str, Timing] = {}
    for round_number in range(rounds + 1):
        for name, case in cases.items():
            timing = case.time(batch_size=batch_size, seconds=seconds)
            if round_number and timing.audio_s and (name not in best or timing.compute_s < best[name].compute_s):
                best[name] = timing
    return {name: Speed(batch_size, timing.rtf, 1e3 * timing.first_s, timing.figures) for name, timing in best.items()}


def measure_peak_memory(
    open_case: Callable[[], SpeedCase], *, batch_size: int, seconds: float, device: torch.device
) -> float:
    """Memory in MiB that one system takes to be loaded and to say a batch.

    Call it in a fresh process: an allocator keeps what an earlier system took, and would hide what this one needs.
    """
    before = _memory_before()
    case = open_case()
    reset_peak_memory(device)
    case.time(batch_size=batch_size, seconds=seconds)
    return peak_memory_mb(device) - (0.0 if device.type == "cuda" else before)


def _memory_before() -> float:
    gc.collect()
    return memory_mb(torch.device("cpu"))


def reset_peak_memory(device: torch.device) -> None:
    """Start counting the peak anew; on Linux through ``/proc/self/clear_refs``."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    control = Path("/proc/self/clear_refs")
    if control.exists():
        control.write_text("5")


def memory_mb(device: torch.device) -> float:
    """Memory in use now, MiB: of the process, or of the GPU's tensors."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / 2**20
    return _status_mb("VmRSS")


def peak_memory_mb(device: torch.device) -> float:
    """Peak since :func:`reset_peak_memory`, MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return _status_mb("VmHWM")


def _status_mb(field: str) -> float:
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
