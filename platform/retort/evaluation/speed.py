"""Speed and memory of speaking: every system says the same number of seconds, in turns, and medians of rounds count.

The real-time factor is all work over the audio's length; what else it costs, each family says in its own figures. One
model is timed twice, as two openings of the same weights, which tells how much of a difference is noise.
"""

import gc
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from retort.errors import RetortError
from retort.evaluation.medians import Median, median_of
from retort.evaluation.metrics import METRICS
from retort.evaluation.noise_floor import Ratio, ratio_of
from retort.evaluation.turns import Clock, Figures, Round, Turns, column, take_turns, turns_of
from retort.inference.decoding import Decoding
from retort.inference.speaker import Request, Speaker, Timing, Wish

_AGAIN = ""
"""Name of the second opening, which no system has."""


@dataclass(frozen=True)
class SpeedCase:
    """One system to time, with a speaker of its own; ``decoding`` None is the plain one of its family."""

    speaker: Speaker
    request: Request
    decoding: Decoding | None = None

    def time(self, *, batch_size: int, seconds: float) -> Timing:
        """Say a batch of the request with different seeds."""
        requests = [replace(self.request, seed=seed) for seed in range(batch_size)]
        return self.speaker.time(requests, self.speaker.decoding(self.decoding), seconds=seconds)

    def prepare(self) -> None:
        """Make room for :meth:`first_audio`."""
        self.speaker.prepare(self.speaker.decoding(self.decoding))

    def first_audio(self, *, seed: int, clock: Clock) -> float | None:
        """Seconds from the request, made alone, to the first samples that its listener gets; None where none come."""
        begin = clock()
        try:
            ticket = self.speaker.add(Wish(replace(self.request, seed=seed), self.decoding))
        except RetortError:
            return None  # longer than what is streamed here; as one of a batch it can be timed all the same
        while True:
            for sound in self.speaker.step():
                if sound.samples_N.numel():
                    took = clock() - begin
                    self.speaker.cancel(ticket)
                    return took
                if sound.outcome is not None:
                    return None


@dataclass(frozen=True)
class Measured:
    """What was timed of all systems.

    Attributes:
        figures: of each system, by names of metrics; what made no sound is not there.
        opened_twice: name of the system whose weights were opened twice.
        noise: of that one, the ratios between its openings, by names of metrics.
    """

    figures: Mapping[str, Mapping[str, Median]] = field(default_factory=dict)
    opened_twice: str | None = None
    noise: Mapping[str, Ratio] = field(default_factory=dict)


def measure_all(
    cases: Mapping[str, SpeedCase],
    again: SpeedCase | None,
    *,
    batch_sizes: Sequence[int],
    seconds: float,
    turns: Turns,
    clock: Clock = time.perf_counter,
) -> Iterator[str | Measured]:
    """Time every system at each batch size, and then its first audio.

    Yields, for a person who waits, what was just timed, and in the end what was measured.

    Args:
        cases: the systems.
        again: the first of them, of the same weights, opened again; it takes its turns like any other.
        batch_sizes: utterances said together; the last one is taken as saturating, the first as one at a time.
        seconds: that each utterance takes.
        turns: how long each system is timed at each batch size, and for its first audio.
        clock: what windows, budgets and first audio are measured by.
    """
    everyone = {**cases, **({} if again is None else {_AGAIN: again})}
    phases = {
        f"batch {size}": measure_speed(everyone, batch_size=size, seconds=seconds, turns=turns, clock=clock)
        for size in batch_sizes
    } | {"first audio": measure_first_audio(everyone, turns=turns, clock=clock)}
    timed: list[list[Round]] = []
    for phase, rounds in phases.items():
        timed.append([])
        yield f"{phase}, warming up"
        for number, found in enumerate(rounds, start=1):
            timed[-1].append(found)
            yield f"{phase}, {number} of {turns.rounds} rounds"
    *said, heard = timed
    yield _measured(
        {name: _columns([turns_of(each, name) for each in said], turns_of(heard, name)) for name in everyone},
        opened_twice=None if again is None else next(iter(cases)),
    )


def _measured(columns: Mapping[str, Mapping[str, Sequence[float | None]]], *, opened_twice: str | None) -> Measured:
    """Medians of every system, and the ratios between the two openings of the first."""
    medians = {name: _medians(found) for name, found in columns.items() if name != _AGAIN and found}
    if opened_twice is None:
        return Measured(medians)
    first, again = columns[opened_twice], columns[_AGAIN]
    timed = [name for name in first if name in again and METRICS[name].averaging == "timed"]
    ratios = {name: ratio_of(first[name], again[name]) for name in timed}
    return Measured(medians, opened_twice, {name: ratio for name, ratio in ratios.items() if ratio is not None})


def measure_speed(
    cases: Mapping[str, SpeedCase], *, batch_size: int, seconds: float, turns: Turns, clock: Clock = time.perf_counter
) -> Iterator[Round]:
    """Time batches of every case in turns: ``rtf`` and its family's figures, round by round; None without a sound."""

    def task(case: SpeedCase) -> Callable[[int], Figures | None]:
        def say(_: int) -> Figures | None:
            timing = case.time(batch_size=batch_size, seconds=seconds)
            return {"rtf": timing.rtf, **timing.figures} if timing.audio_s else None

        return say

    return take_turns({name: task(case) for name, case in cases.items()}, turns, clock)


def measure_first_audio(
    cases: Mapping[str, SpeedCase], *, turns: Turns, clock: Clock = time.perf_counter
) -> Iterator[Round]:
    """Time the first audio of every case in turns, as ``first_audio_s``; each round has a seed of its own."""

    def task(case: SpeedCase) -> Callable[[int], Figures | None]:
        def listen(seed: int) -> Figures | None:
            took = case.first_audio(seed=seed, clock=clock)
            return None if took is None else {"first_audio_s": took}

        return listen

    for case in cases.values():
        case.prepare()
    yield from take_turns({name: task(case) for name, case in cases.items()}, turns, clock)


def _columns(said: Sequence[list[Figures | None]], heard: list[Figures | None]) -> dict[str, list[float | None]]:
    """Figures by names of metrics, round by round."""
    single, saturated = said[0], said[-1]
    names = dict.fromkeys(name for figures in saturated if figures is not None for name in figures)
    found = {name: column(saturated, name) for name in names}
    found |= {f"{name}_batch1": column(single, name) for name in ("rtf", "tokens_per_second")}
    found["first_audio_s"] = column(heard, "first_audio_s")
    return {name: values for name, values in found.items() if any(value is not None for value in values)}


def _medians(columns: Mapping[str, Sequence[float | None]]) -> dict[str, Median]:
    return {name: median_of([v for v in values if v is not None]) for name, values in columns.items()}


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
