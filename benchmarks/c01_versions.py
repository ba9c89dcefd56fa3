"""Two or more versions of the engine against each other: prompts and steps, call by call, in random order.

A kernel is a few percent faster or slower, and a host changes its speed by more than that from one second to the next,
so whole runs one after the other say nothing. Here each version is a process that waits until it is asked::

    git worktree add ../before HEAD~1
    python -m benchmarks.c01_versions ../before . --size 29M

Give the same version twice, from two folders, to see what is noise: memory lies elsewhere in each process.
"""

import argparse
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

NUM_TOKENS = 48
_CONDITIONS = (1, 2, 3)


def serve(size: str, precision: str, threads: int) -> None:
    """One version: for each number of conditions that comes in, milliseconds of its prompt and of a step."""
    import torch

    from benchmarks.c01_decode import COEFFICIENTS, LENGTH, Stream
    from benchmarks.llama_peer import SHAPES, ours, plan, prompts

    torch.set_num_threads(threads)
    model = ours(SHAPES[size])
    runner = Stream(model, precision, NUM_TOKENS, threads).runner
    contexts = list(prompts(3, length=LENGTH))
    plans = {n: plan(model, contexts[:n], COEFFICIENTS[n], NUM_TOKENS) for n in _CONDITIONS}

    def decode(n: int) -> tuple[float, float]:
        begin = time.perf_counter()
        runner.admit(0, plans[n])
        admitted = time.perf_counter()
        for _ in range(NUM_TOKENS):
            runner.step([0])
        return 1e3 * (admitted - begin), 1e3 * (time.perf_counter() - admitted) / NUM_TOKENS

    print("ready", flush=True)
    for line in sys.stdin:
        decode(int(line))  # Another process has had the caches.
        print(*decode(int(line)), flush=True)


class Version:
    """A process that runs :func:`serve` with one checkout's package and benchmarks."""

    def __init__(self, folder: Path, args: argparse.Namespace) -> None:
        # This file itself need not exist in an old checkout; what it imports must.
        command = [sys.executable, str(Path(__file__).resolve()), "--serve", "--size", args.size]
        command += ["--precision", args.precision, "--threads", str(args.threads)]
        path = os.pathsep.join(map(str, (folder.resolve() / "platform", folder.resolve())))
        pipe, environment = subprocess.PIPE, {**os.environ, "PYTHONPATH": path}
        self._process = subprocess.Popen(command, cwd=folder, env=environment, stdin=pipe, stdout=pipe, text=True)
        self.found: dict[int, list[tuple[float, float]]] = {n: [] for n in _CONDITIONS}
        if self._read() != ["ready"]:
            raise SystemExit(f"{folder} does not run: is it a checkout of this project?")

    def _read(self) -> list[str]:
        assert self._process.stdout is not None
        return self._process.stdout.readline().split()

    def measure(self, n: int) -> None:
        """One call more."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{n}\n")
        self._process.stdin.flush()
        prompt, step = map(float, self._read())
        self.found[n].append((prompt, step))

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def line(self) -> str:
        """Medians of prompts and steps, and of the ratios to one condition within a turn."""
        medians = [tuple(statistics.median(column) for column in zip(*self.found[n], strict=True)) for n in _CONDITIONS]
        prompts, steps = zip(*medians, strict=True)
        ratios = []
        for n in _CONDITIONS[1:]:
            turns = zip(self.found[n], self.found[1], strict=True)
            ratios.append(statistics.median(step / one for (_, step), (_, one) in turns))
        shown = [" / ".join(f"{v:.{d}f}" for v in values) for values, d in ((prompts, 3), (steps, 4), (ratios, 3))]
        return "".join(f"{text:28s}" for text in shown).rstrip()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path, help="checkouts")
    parser.add_argument("--size", default="29M", choices=("5M", "29M", "88M"))
    parser.add_argument("--precision", default="int8", choices=("fp32", "bf16", "int8"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=40)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.size, args.precision, args.threads)
        return
    if not args.folders:
        parser.error("name at least one checkout")
    versions = [Version(folder, args) for folder in args.folders]
    calls = [(version, n) for version in versions for n in _CONDITIONS]
    order = random.Random(0)
    for _ in range(args.turns):
        for version, n in order.sample(calls, len(calls)):
            version.measure(n)
    print(f"{args.size}, {args.precision}, medians of {args.turns} turns; ms with 1 / 2 / 3 conditions")
    print(f"{'':24s}{'prompt':28s}{'step':28s}step over one condition's, 2 / 3")
    for folder, version in zip(args.folders, versions, strict=True):
        print(f"{str(folder)[-22:]:24s}{version.line()}")
        version.close()


if __name__ == "__main__":
    main()
