"""G3: the ladder on a GPU: teacher with guidance, then students of three sizes without, at one stream and at 64.

Random networks of paper 1's sizes in bf16. Paper 1 reports 2.4 times for its small student (one stream, A100).
"""

import torch

from benchmarks.g01_decode import COEFFICIENTS, TINY
from benchmarks.gpu import LENGTH, decode, parse, runner_for, seconds_of
from benchmarks.llama_peer import SHAPES, Shape, ours, prompts
from benchmarks.protocol import Gate

LADDER = {"teacher, CFG-2": ("1.3B", 2), "large": ("1.3B", 1), "medium": ("500M", 1), "small": ("180M", 1)}
GATES = {
    (1, "small"): (2.6, 4.0), (64, "small"): (5.0, 7.0), (64, "medium"): (2.6, 3.3), (64, "large"): (1.5, 1.65),
}  # fmt: skip


def seconds_per_step(
    shape: Shape, device: torch.device, *, slots: int, conditions: int, tokens: int, rounds: int
) -> float:
    """Of all slots together, at its best."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = ours(shape, device=str(device), dtype=dtype)
    runner = runner_for(model, slots=slots, conditions=conditions, num_tokens=tokens)
    contexts = list(prompts(conditions, length=LENGTH))

    def work() -> object:
        return decode(model, runner, contexts, COEFFICIENTS[conditions], tokens)

    return min(seconds_of(work, device) for _ in range(rounds + 1)) / tokens


def main() -> None:
    """Measure and print."""
    args, device = parse(__doc__ or "")
    tokens, rounds = (4, 1) if args.quick else (128, args.rounds)
    verdicts = []
    for slots in (1, 4 if args.quick else 64):
        best = {}
        for name, (size, conditions) in LADDER.items():
            shape = TINY["tiny"] if args.quick else SHAPES[size]
            best[name] = seconds_per_step(
                shape, device, slots=slots, conditions=conditions, tokens=tokens, rounds=rounds
            )
            rate = slots / best[name]
            print(f"{slots:3d} streams, {name:16s}{1e3 * best[name]:9.3f} ms a step, {rate:9.0f} tokens/s")
        for name in ("large", "medium", "small"):
            if (slots, name) in GATES:
                gate, stretch = GATES[slots, name]
                gain = best["teacher, CFG-2"] / best[name]
                verdicts.append(Gate(f"G3 {slots} streams, teacher / {name}", gate, stretch, True).judge(gain))
    for line in verdicts:
        print(line + ("  [quick check: proves nothing]" if args.quick else ""))


if __name__ == "__main__":
    main()
