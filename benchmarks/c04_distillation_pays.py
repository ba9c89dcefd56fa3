"""C4: what distillation is worth: guided teacher against student, over the ratio of the weights that each reads.

A teacher of 88M parameters under two-term guidance, students of 29M and 5M without, one stream, one number format for
all. Where a step is nothing but reading weights, the ratio is 1; overheads that do not shrink with the model lower it.
"""

from benchmarks.c01_decode import LENGTH, SIZES, Stream, per_token
from benchmarks.llama_peer import SHAPES, ours, prompts
from benchmarks.protocol import Gate, conclude, interleave, parse_arguments, prepare, print_table


def main() -> None:
    """Measure and print."""
    args = parse_arguments(__doc__ or "", threads=2)
    prepare(args)
    num_tokens = 8 if args.quick else 48
    streams = {
        name: Stream(ours(shape), "bf16", num_tokens, args.threads) for name, shape in SHAPES.items() if name in SIZES
    }
    positive, negative = prompts(2, length=LENGTH)
    peers = {
        "teacher 88M, CFG-2": per_token(lambda: streams["88M"].tokens([positive, negative]), num_tokens),
        "student 29M": per_token(lambda: streams["29M"].tokens([positive]), num_tokens),
        "student 5M": per_token(lambda: streams["5M"].tokens([positive]), num_tokens),
    }
    run = interleave(peers, args)
    print_table(run, "ms a token")
    verdicts = []
    for student in ("29M", "5M"):
        byte_ratio = streams["88M"].runner.weight_bytes / streams[student].runner.weight_bytes
        gains = [gain / byte_ratio for gain in run.ratios("teacher 88M, CFG-2", f"student {student}")]
        verdicts.append(Gate(f"C4 88M to {student}, speed-up over {byte_ratio:.1f}", 0.6, 0.8, True).judge(*gains))
    conclude(run, args, verdicts)


if __name__ == "__main__":
    main()
