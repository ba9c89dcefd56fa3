"""G1, G1b, G2, G5: decoding one stream on a GPU, against the memory's speed, against ``transformers``, with guidance.

Random Llama-shaped networks of 180M, 500M and 1.3B parameters in bf16, greedy. The peers are ``generate`` as it comes
(eager) and with a static cache and ``torch.compile(mode="reduce-overhead")``. The floor is the time in which the GPU
reads the weights once. G5 counts, with torch's profiler, what the host does for a step.
"""

import math
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu import LENGTH, bytes_per_second, decode, in_turns, parse, runner_for, seconds_of
from benchmarks.llama_peer import SHAPES, Shape, generate, ours, prompts, theirs, with_start
from benchmarks.protocol import Gate
from retort.models.codec_lm import CodecLM, count_parameters

SCALE = 3.0
COEFFICIENTS = {1: (1.0,), 2: (SCALE, 1.0 - SCALE), 3: (SCALE, -1.0, 2.0 - SCALE)}
FLOOR_GATES = {"180M": (0.20, 0.35), "500M": (0.40, 0.60), "1.3B": (0.55, 0.70)}
TINY = {"tiny": Shape(64, 2, 2, 96)}


def weight_bytes(model: CodecLM) -> int:
    """Bytes that a step reads: the blocks and the heads."""
    blocks = sum(p.numel() * p.element_size() for p in model.blocks.parameters())
    return blocks + model.heads.weight.numel() * model.heads.weight.element_size()


def host_share(step: Any, device: torch.device, steps: int) -> tuple[float, float]:
    """Share of the wall time in which kernels run, and launches per step."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]):
        seconds_of(step, device)  # The first profile of a process is slow to begin.
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        wall_s = seconds_of(lambda: [step() for _ in range(steps)], device)
    spans = sorted(
        (event.time_range.start, event.time_range.end) for event in found.events() if event.device_type.name == "CUDA"
    )
    busy, end = 0.0, -math.inf
    for begin, finish in spans:
        busy += max(0.0, finish - max(begin, end))
        end = max(end, finish)
    launches = sum(event.count for event in found.key_averages() if "Launch" in event.key)
    return busy / 1e6 / wall_s, launches / steps


def measure(name: str, shape: Shape, device: torch.device, *, num_tokens: int, rounds: int, speed: float) -> list[str]:
    """All peers of one size; the verdicts."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = ours(shape, device=str(device), dtype=dtype)
    llama = theirs(model)
    contexts = list(prompts(3, length=LENGTH))
    runners = {n: runner_for(model, slots=1, conditions=n, num_tokens=num_tokens) for n in COEFFICIENTS}
    guided = {"guidance_scale": SCALE, "negative_prompt_ids": with_start(contexts[1]).to(device)}
    static = {"cache_implementation": "static"} if device.type == "cuda" else {}

    def mine(conditions: int) -> list[int]:
        given = contexts[:conditions]
        return decode(model, runners[conditions], given, COEFFICIENTS[conditions], num_tokens)[0]

    peers = {
        "ours": lambda: mine(1),
        "ours, CFG-2": lambda: mine(2),
        "ours, CFG-3": lambda: mine(3),
        "transformers": lambda: generate(llama, contexts[0], num_tokens),
        "transformers, CFG-2": lambda: generate(llama, contexts[0], num_tokens, **guided),
        "transformers, static": lambda: generate(llama, contexts[0], num_tokens, **static),
    }
    pairs = zip(peers["ours"](), peers["transformers"](), strict=True)
    agreed = next((i for i, (a, b) in enumerate(pairs) if a != b), num_tokens)
    print(f"\n{name}: {count_parameters(model) / 1e6:.0f}M, greedy tokens agree with transformers for {agreed} steps")
    best = {peer: seconds / num_tokens for peer, seconds in in_turns(peers, device, rounds).items()}
    for peer, seconds in best.items():
        print(f"  {peer:24s}{1e3 * seconds:9.3f} ms  {1 / seconds:9.0f} tokens/s")
    gate, stretch = FLOOR_GATES.get(name, (0.0, 0.0))
    step = best["ours"]
    verdicts = [
        Gate(f"G1 {name}, share of the floor", gate, stretch, True).judge(weight_bytes(model) / speed / step),
        Gate(f"G1b {name}, eager / ours", 8.0 if name == "1.3B" else 10.0, 20.0, True).judge(
            best["transformers"] / step
        ),
        Gate(f"G1b {name}, static / ours", 1.3, 2.0, True).judge(best["transformers, static"] / step),
        Gate(f"G2 {name}, CFG-2 / one", 1.10, 1.05).judge(best["ours, CFG-2"] / step),
        Gate(f"G2 {name}, CFG-3 / one", 1.15, 1.08).judge(best["ours, CFG-3"] / step),
        Gate(f"G2b {name}, transformers CFG-2 / ours", 12.0, 25.0, True).judge(
            best["transformers, CFG-2"] / best["ours, CFG-2"]
        ),
    ]
    if device.type == "cuda":
        busy, launches = host_share(lambda: runners[1].step([0]), device, 100)
        verdicts.append(Gate(f"G5 {name}, kernels' share of the wall time", 0.85, 0.95, True).judge(busy))
        verdicts.append(Gate(f"G5 {name}, launches per step", 8, 3).judge(launches))
    return verdicts


def main() -> None:
    """Measure and print."""
    args, device = parse(__doc__ or "")
    num_tokens, rounds = (8, 1) if args.quick else (256, args.rounds)
    speed = bytes_per_second(device)
    print(f"memory reads at {speed / 1e12:.2f} TB/s")
    verdicts: list[str] = []
    for name, shape in (TINY if args.quick else {size: SHAPES[size] for size in FLOOR_GATES}).items():
        verdicts += measure(name, shape, device, num_tokens=num_tokens, rounds=rounds, speed=speed)
    for line in verdicts:
        print(line + ("  [quick check: proves nothing]" if args.quick else ""))


if __name__ == "__main__":
    main()
