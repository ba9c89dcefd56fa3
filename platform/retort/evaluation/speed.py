"""Speed and memory of decoding: every system decodes the same number of frames, in turns, and the best round counts.

Tokens are codec tokens: frames times codebooks. The real-time factor is decoding plus codec, over the audio's length.
"""

import gc
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from retort.inference.sampling import SamplerConfig
from retort.inference.synthesizer import Request, Synthesizer
from retort.nn.guidance import Guidance

_TIMED_UTTERANCES = 2


@dataclass(frozen=True)
class SpeedCase:
    """One system to time."""

    synthesizer: Synthesizer
    guidance: Guidance
    scale_input: float | None = None


@dataclass(frozen=True)
class Speed:
    """What was measured at one batch size.

    Attributes:
        batch_size: utterances decoded together.
        tokens_per_second: codec tokens a second over the whole batch, without the codec.
        rtf: (decoding + codec) seconds per second of audio.
        first_frame_ms: time until the first frame's tokens.
        nfe: network evaluations per step, counted in rows per utterance.
    """

    batch_size: int
    tokens_per_second: float
    rtf: float
    first_frame_ms: float
    nfe: int


def measure_speed(
    cases: Mapping[str, SpeedCase], request: Request, *, batch_size: int, num_frames: int, rounds: int
) -> dict[str, Speed]:
    """Time every case ``rounds`` times, in turns, after one warm-up each."""
    results: dict[str, Speed] = {}
    for round_number in range(rounds + 1):
        for name, case in cases.items():
            speed = _one_round(case, request, batch_size, num_frames)
            known = results.get(name)
            if round_number and (known is None or speed.tokens_per_second > known.tokens_per_second):
                results[name] = speed
    return results


def _one_round(case: SpeedCase, request: Request, batch_size: int, num_frames: int) -> Speed:
    synthesizer = case.synthesizer
    requests = [Request(request.text, request.speaker, seed, request.prompt_KP) for seed in range(batch_size)]
    conditions = synthesizer.conditions(requests, scale_input=case.scale_input)

    def run(frames: int) -> tuple[float, list[torch.Tensor]]:
        _wait(synthesizer.device)
        start = time.perf_counter()
        decoded = synthesizer.decoder.decode(
            conditions,
            guidance=case.guidance,
            sampler=SamplerConfig(),
            seeds=[r.seed for r in requests],
            max_frames=frames,
            stop_at_eos=False,
        )
        _wait(synthesizer.device)
        return time.perf_counter() - start, [item.codes_KT for item in decoded]

    first_s, _ = run(1)
    decode_s, codes = run(num_frames)
    start = time.perf_counter()
    # The codec takes one utterance after the other, so a few stand for all.
    few = codes[:_TIMED_UTTERANCES]
    samples = sum(synthesizer.codec.decode(item).numel() for item in few)
    codec_s = (time.perf_counter() - start) * len(codes) / len(few)
    audio_samples = samples * len(codes) / len(few)
    return Speed(
        batch_size=batch_size,
        tokens_per_second=batch_size * num_frames * synthesizer.codec.num_codebooks / decode_s,
        rtf=(decode_s + codec_s) / (audio_samples / synthesizer.codec.sample_rate),
        first_frame_ms=1e3 * first_s,
        nfe=len(case.guidance.conditions),
    )


def measure_peak_memory(
    open_case: Callable[[], SpeedCase], request: Request, *, batch_size: int, num_frames: int
) -> float:
    """Memory in MiB that one system takes to be loaded and to decode a batch.

    Call it in a fresh process: an allocator keeps what an earlier system took, and would hide what this one needs.
    """
    before = _memory_before()
    case = open_case()
    device = case.synthesizer.device
    reset_peak_memory(device)
    requests = [Request(request.text, request.speaker, seed, request.prompt_KP) for seed in range(batch_size)]
    case.synthesizer.decoder.decode(
        case.synthesizer.conditions(requests, scale_input=case.scale_input),
        guidance=case.guidance,
        sampler=SamplerConfig(),
        seeds=list(range(batch_size)),
        max_frames=num_frames,
        stop_at_eos=False,
    )
    _wait(device)
    return peak_memory_mb(device) - (0.0 if device.type == "cuda" else before)


def _memory_before() -> float:
    gc.collect()
    return memory_mb(torch.device("cpu"))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


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
