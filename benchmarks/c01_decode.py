"""C1, C1b, C1c, C2, C3: decoding one stream, against ``transformers``, against itself, against the memory's speed.

Random Llama-shaped networks of 5M, 29M and 88M parameters with 4,096 tokens, one stream, greedy, guidance of scale 3
against another prompt. The peer is ``generate(guidance_scale=3, negative_prompt_ids=...)`` in fp32, and with torch's
dynamic int8 layers. The floor of a step is the time in which the threads read its weights once.
"""

import argparse
import copy
import math
import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from benchmarks.llama_peer import CODES, SHAPES, generate, ours, plan, prompts, theirs, with_start
from benchmarks.protocol import Calibration, Gate, Run, conclude, interleave, parse_arguments, prepare, print_table
from retort.inference.backends import Capacity, open_runner
from retort.inference.engine import Engine
from retort.inference.native.runner import NativeRunner
from retort.models.codec_lm import CodecLM, count_parameters

SCALE = 3.0
COEFFICIENTS = {1: (1.0,), 2: (SCALE, 1.0 - SCALE), 3: (SCALE, -1.0, 2.0 - SCALE)}
SIZES = ("5M", "29M", "88M")
LENGTH = 16
TURNS = {"5M": 25, "29M": 9, "88M": 3}
"""Calls of a round, about a second of them."""
_READ_BYTES = 2**28


class Stream:
    """One stream on one runner, of ``num_tokens`` each time."""

    def __init__(self, model: CodecLM, precision: str, num_tokens: int, threads: int) -> None:
        capacity = Capacity(max_slots=1, max_conditions=3, max_columns=LENGTH + num_tokens + 2, threads=threads)
        runner = open_runner(model, capacity, precision=precision)  # type: ignore[arg-type]
        assert isinstance(runner, NativeRunner), "these goals are those of the C runner"
        self.model, self.runner, self.num_tokens = model, runner, num_tokens

    def tokens(self, contexts: list[Tensor]) -> list[int]:
        """Greedy tokens."""
        wanted = plan(self.model, contexts, COEFFICIENTS[len(contexts)], self.num_tokens)
        frames = [advance.frames_KT for _, advance in Engine(self.runner).run([wanted])]
        found = torch.cat(frames, dim=1)[0].tolist()
        assert len(found) == self.num_tokens, "the payload must be whole"
        return found


def per_token(work: Callable[[], object], num_tokens: int) -> Callable[[], float]:
    """Milliseconds per token of one call, the prompt included, after one that does not count.

    Without that one, whoever comes after another network, or after the calibration, pays for finding its weights out of
    the caches and the other's threads still spinning; in these turns that was always a guided stream, never the plain
    one between two guided ones.
    """

    def timed() -> float:
        work()
        begin = time.perf_counter()
        work()
        return 1e3 * (time.perf_counter() - begin) / num_tokens

    return timed


def in_turns(stream: Stream, contexts: list[Tensor], turns: int) -> Callable[[], dict[str, float]]:
    """Medians of :func:`per_token` with one, two and three conditions, many times in turns within a second or two.

    The surcharge of a condition is a few hundredths of a millisecond; a host that changes its speed from one second to
    the next would bury it, if each number of conditions were timed once a round.
    """
    works = {
        name: per_token(lambda n=n: stream.tokens(contexts[:n]), stream.num_tokens)  # type: ignore[misc]
        for n, name in enumerate(("one condition", "CFG-2", "CFG-3"), start=1)
    }

    def timed() -> dict[str, float]:
        taken = [{name: work() for name, work in works.items()} for _ in range(turns)]
        return {name: statistics.median(turn[name] for turn in taken) for name in works}

    return timed


def drift(stream: Stream, reference: CodecLM) -> float:
    """Relative error of teacher-forced logits against torch in fp32."""
    from retort.inference.native.model import NativeModel

    native = NativeModel(
        reference, weight_format=stream.runner.weight_format, max_rows=1, max_columns=64, threads=1
    )  # fmt: skip
    tokens_S = prompts(1, length=64)[0]
    with torch.inference_mode():
        expected = theirs(reference)(tokens_S[None]).logits[0, :, : CODES + 1]
        got = native.forward(rows=[0] * 64, positions=list(range(64)), tokens_CK=tokens_S[:, None])[:, 0]
    return float((expected - got).norm() / expected.norm())


def read_ms_per_byte() -> float:
    """Milliseconds to read a byte of memory with torch's threads, at the best of several sums."""
    memory = torch.zeros(_READ_BYTES // 4)
    best = math.inf
    for _ in range(10):
        begin = time.perf_counter()
        memory.sum()
        best = min(best, time.perf_counter() - begin)
    return 1e3 * best / _READ_BYTES


def measure(name: str, args: argparse.Namespace, calibration: Calibration) -> tuple[Run, Stream, Stream]:
    """All peers of one size."""
    model = ours(SHAPES[name])
    llama = theirs(model)
    # Its quantised layers keep packed copies; the fp32 layers of the original stay as they are.
    quantize = torch.ao.quantization.quantize_dynamic
    int8_llama = quantize(copy.deepcopy(llama), {torch.nn.Linear}, dtype=torch.qint8)  # type: ignore[no-untyped-call]
    num_tokens = 8 if args.quick else 48
    default = Stream(model, "fastest", num_tokens, args.threads)
    plain = Stream(model, "fp32", num_tokens, args.threads)
    positive, negative, third = prompts(3, length=LENGTH)
    guided = {"guidance_scale": SCALE, "negative_prompt_ids": with_start(negative)}
    expected = generate(llama, positive, num_tokens, **guided)
    assert plain.tokens([positive, negative]) == expected, "greedy tokens in fp32 must be those of the peer"
    assert plain.tokens([positive]) == generate(llama, positive, num_tokens), "and without guidance, too"
    error = drift(default, model)
    print(
        f"\n{name}: {count_parameters(model) / 1e6:.1f}M parameters, default engine {default.runner.weight_format}, "
        f"{default.runner.weight_bytes / 1e6:.1f} MB of weights a step, logits off by {error:.2e}"
    )
    assert error < 2e-2, "faster must not mean wrong"
    contexts, turns = [positive, negative, third], 1 if args.quick else TURNS[name]
    peers: dict[str, Callable[[], float | Mapping[str, float]]] = {
        "default": in_turns(default, contexts, turns),
        "fp32": in_turns(plain, contexts, turns),
        "transformers fp32, CFG-2": per_token(lambda: generate(llama, positive, num_tokens, **guided), num_tokens),
        "transformers fp32, one condition": per_token(lambda: generate(llama, positive, num_tokens), num_tokens),
        "transformers int8, CFG-2": per_token(lambda: generate(int8_llama, positive, num_tokens, **guided), num_tokens),
    }
    run = interleave(peers, args, calibration=calibration)
    print_table(run, "ms a token")
    return run, default, plain


def main() -> None:
    """Measure and print."""
    args = parse_arguments(__doc__ or "", threads=2)
    prepare(args)
    calibration = Calibration()
    gains: dict[str, list[float]] = {"C1": [], "C1b": [], "C1c": []}
    verdicts, last = [], None
    for name in SIZES[:1] if args.quick else SIZES:
        run, default, plain = measure(name, args, calibration)
        last = run
        for goal, (mine, peer) in {
            "C1": ("default, CFG-2", "transformers fp32, CFG-2"),
            "C1b": ("default, CFG-2", "transformers int8, CFG-2"),
            "C1c": ("fp32, CFG-2", "transformers fp32, CFG-2"),
        }.items():
            gains[goal].append(1 / max(run.ratios(mine, peer)))
        two, three = (run.ratios(f"default, CFG-{n}", "default, one condition") for n in (2, 3))
        verdicts.append(Gate(f"C2 {name}, CFG-2 / one condition", 1.25, 1.10).judge(*two))
        verdicts.append(Gate(f"C2 {name}, CFG-3 / one condition", 1.40, 1.15).judge(*three))
        if name == "5M":
            continue  # Its weights stay in the processor's cache, so reading memory is no floor.
        speed = read_ms_per_byte()
        for stream, label, gate, stretch in (
            (default, "default", 0.30 if default.runner.weight_format == "int8" else 0.50, 0.60),
            (plain, "fp32", 0.50, 0.80),
        ):
            share = stream.runner.weight_bytes * speed / run.best(f"{label}, one condition")
            verdicts.append(
                Gate(f"C3 {name}, share of the floor, {stream.runner.weight_format}", gate, stretch, True).judge(share)
            )
    assert last is not None
    for goal, gate, stretch in (("C1", 5.0, 8.0), ("C1b", 2.0, 3.0), ("C1c", 1.4, 2.2)):
        mean = math.exp(sum(map(math.log, gains[goal])) / len(gains[goal]))
        verdicts.append(Gate(f"{goal} geometric mean of the gains", gate, stretch, True).judge(mean))
    verdicts.append(Gate("C1 smallest gain", 3.0, 3.0, True).judge(*gains["C1"]))
    conclude(last, args, verdicts)


if __name__ == "__main__":
    main()
