"""How every benchmark here measures: peers in turns, best and median, on a machine that is watched.

A round runs each peer once, in turns. Before and after it a fixed kernel is timed (a product of two 1024 x 1024
matrices and a sum over 256 MB); a round beside which it was more than 15 % off its best of the whole run does not
count and is repeated. When too few rounds count, the run is rejected and ends with status 1.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

TOLERANCE = 0.15
"""How far the calibration kernel may be off its best."""
_PATIENCE = 5
_ATTEMPTS = 4
"""Rounds that are tried, as a multiple of the rounds that are wanted."""


class Calibration:
    """The fixed kernel; reads and products are judged apart, because other load slows them differently."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self._matrix = torch.randn(1024, 1024, generator=generator)
        self._memory = torch.zeros(64 * 2**20)
        self.best = [float("inf"), float("inf")]

    def measure(self) -> list[float]:
        """Seconds of the product and of the read, each the median of five.

        A measurement that is off its best is repeated a few times, a second later: processes of the round before it may
        still be ending. Load that stays is seen in all of them.
        """
        for _ in range(_PATIENCE):
            seconds = [_median_time(lambda: self._matrix @ self._matrix), _median_time(self._memory.sum)]
            self.best = [min(old, new) for old, new in zip(self.best, seconds, strict=True)]
            if self.excess(seconds) <= TOLERANCE:
                break
            time.sleep(1.0)
        return seconds

    def excess(self, seconds: list[float]) -> float:
        """How far a measurement is off the best, as a fraction."""
        return max(s / b for s, b in zip(seconds, self.best, strict=True)) - 1.0


def _median_time(kernel: Callable[[], object]) -> float:
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        kernel()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


@dataclass
class Round:
    """Seconds (or any other number) of each peer in one round, CPU seconds of its call, and the calibration."""

    values: dict[str, float]
    cpu_s: dict[str, float]
    calibrations: list[list[float]]


@dataclass
class Run:
    """The rounds of one benchmark.

    Attributes:
        rounds: those that count.
        tried: how many there were.
        is_quiet: whether the calibration kernel kept still; a run on a loaded machine is no evidence.
    """

    rounds: list[Round] = field(default_factory=list)
    tried: int = 0
    is_quiet: bool = True

    def values(self, name: str) -> list[float]:
        """The numbers of one peer."""
        return [r.values[name] for r in self.rounds]

    def best(self, name: str) -> float:
        """The smallest."""
        return min(self.values(name))

    def median(self, name: str) -> float:
        """The median."""
        return statistics.median(self.values(name))

    def ratios(self, ours: str, peer: str) -> tuple[float, float]:
        """Ours over the peer's: best over best, and the median over the rounds of the ratio within a round."""
        within = statistics.median(r.values[ours] / r.values[peer] for r in self.rounds)
        return self.best(ours) / self.best(peer), within

    def cpu_ratio(self, ours: str, peer: str) -> float:
        """Ratio of the least CPU seconds of this process: for what runs here alone, load hardly touches it."""
        return min(r.cpu_s[ours] for r in self.rounds) / min(r.cpu_s[peer] for r in self.rounds)


def parse_arguments(description: str, *, rounds: int = 5, threads: int = 1) -> argparse.Namespace:
    """The options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=rounds, help="rounds that must count")
    parser.add_argument("--threads", type=int, default=threads, help="torch threads of each process")
    parser.add_argument("--quick", action="store_true", help="a short check that everything runs; proves nothing")
    parser.add_argument("--allow-load", action="store_true", help="count every round; the verdict says so")
    return parser.parse_args()


def prepare(args: argparse.Namespace) -> None:
    """Fix the threads and print what the machine is doing."""
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(args.threads)
    torch.set_num_threads(args.threads)
    print(f"threads {torch.get_num_threads()} of {os.cpu_count()} CPUs, torch {torch.__version__}, {load_average()}")


def load_average() -> str:
    """The machine's load over 1, 5 and 15 minutes."""
    return "load average " + " ".join(f"{load:.2f}" for load in os.getloadavg())


def interleave(
    peers: Mapping[str, Callable[[], float | Mapping[str, float]]],
    args: argparse.Namespace,
    *,
    calibration: Calibration | None = None,
) -> Run:
    """Run the peers in turns until enough rounds count; each returns its number, usually seconds, or several by name.

    The first round warms up and never counts. With a machine that stays loaded, this prints why and exits with 1.
    """
    calibration = calibration or Calibration()
    wanted, run = (1 if args.quick else args.rounds), Run()
    accepts_all = args.quick or args.allow_load
    for peer in peers.values():
        peer()
    tried: list[Round] = []
    before = calibration.measure()
    while len(run.rounds) < wanted and run.tried < wanted * (1 if accepts_all else _ATTEMPTS):
        names = list(peers) if run.tried % 2 == 0 else list(peers)[::-1]
        values: dict[str, float] = {}
        cpu_s: dict[str, float] = {}
        for name in names:
            begin = time.process_time()
            value = peers[name]()
            cpu_s[name] = time.process_time() - begin
            parts = {f"{name}, {part}": v for part, v in value.items()} if isinstance(value, Mapping) else {name: value}
            values.update(parts)
        after = calibration.measure()
        tried.append(Round(values, cpu_s, [before, after]))
        run.tried, before = len(tried), after
        off = max(calibration.excess(c) for c in tried[-1].calibrations)
        print(f"round {run.tried}: calibration {100 * off:.0f} % off its best", file=sys.stderr, flush=True)
        quiet = [r for r in tried if max(calibration.excess(c) for c in r.calibrations) <= TOLERANCE]
        run.rounds, run.is_quiet = (tried, len(quiet) == len(tried)) if accepts_all else (quiet, True)
    worst = max(calibration.excess(c) for r in tried for c in r.calibrations)
    product, read = calibration.best
    print(
        f"{len(run.rounds)} rounds count of {run.tried}; calibration: product {2 * 1.024**3 / product:.0f} GFLOP/s, "
        f"read {0.268435456 / read:.1f} GB/s, worst {100 * worst:.0f} % off its best; {load_average()}"
    )
    if len(run.rounds) < wanted:
        print(
            f"rejected: beside {run.tried - len(run.rounds)} rounds the calibration kernel was more than "
            f"{100 * TOLERANCE:.0f} % off its best; the machine is busy with something else. Wait, or see how it looks "
            "with --allow-load",
            file=sys.stderr,
        )
        raise SystemExit(1)
    return run


def timed(work: Callable[[], object]) -> float:
    """Wall seconds of one call."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def print_table(run: Run, unit: str = "s", scale: float = 1.0) -> None:
    """Best and median of each peer."""
    print(f"{'':34s}{'best':>10s}{'median':>10s}  {unit}")
    for name in run.rounds[0].values:
        print(f"{name:34s}{run.best(name) * scale:10.3f}{run.median(name) * scale:10.3f}")


@dataclass(frozen=True)
class Gate:
    """A goal: what the number must not exceed (or must reach), and what it would be to excel."""

    name: str
    gate: float
    stretch: float
    at_least: bool = False

    def judge(self, *values: float) -> str:
        """One line of the verdict; of several values (best, median) the worst one counts."""
        value = min(values) if self.at_least else max(values)
        sign = ">=" if self.at_least else "<="

        def holds(limit: float) -> bool:
            return value >= limit if self.at_least else value <= limit

        verdict = "stretch" if holds(self.stretch) else "pass" if holds(self.gate) else "FAIL"
        shown = " / ".join(f"{v:.3g}" for v in values)
        return f"{self.name}: {shown}  (gate {sign} {self.gate:.3g}, stretch {sign} {self.stretch:.3g}): {verdict}"


def conclude(run: Run, args: argparse.Namespace, verdicts: list[str]) -> None:
    """Print the verdicts, with what makes them doubtful."""
    doubt = "  [quick check: proves nothing]" if args.quick else "" if run.is_quiet else "  [on a loaded machine]"
    for line in verdicts:
        print(line + doubt)


def give_back_free_memory() -> None:
    """Return what the allocator keeps to the system, so that the next peak counts from the same ground (glibc)."""
    import ctypes

    if Path("/proc/self/status").is_file():
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
