"""C15: eight requests of 50 to 400 tokens: continuous batching against a padded batch, and against one at a time.

The random Llama-shaped network of 29M parameters, greedy, no guidance. ``transformers`` decodes the padded batch to its
longest request, as static batches must, and the requests one after the other; only wanted tokens count.
"""

import torch

from benchmarks.llama_peer import CODES, SHAPES, generate, ours, plan, prompts, theirs, with_start
from benchmarks.protocol import Gate, conclude, interleave, parse_arguments, prepare, print_table, timed
from retort.inference.backends import Capacity, open_runner
from retort.inference.engine import Engine

REQUESTS, PROMPT = 8, 16


def main() -> None:
    """Measure and print."""
    args = parse_arguments(__doc__ or "", threads=2)
    prepare(args)
    model = ours(SHAPES["5M" if args.quick else "29M"])
    llama = theirs(model)
    low, high = (4, 12) if args.quick else (50, 400)
    lengths = torch.randint(low, high + 1, (REQUESTS,), generator=torch.Generator().manual_seed(3)).tolist()
    contexts = prompts(REQUESTS, length=PROMPT)
    capacity = Capacity(REQUESTS, 1, PROMPT + high + 2, args.threads)
    runner = open_runner(model, capacity, precision="fastest")
    plain = open_runner(model, capacity, precision="fp32")

    def decode(on: object) -> list[list[int]]:
        tokens: list[list[int]] = [[] for _ in lengths]
        plans = [plan(model, [context], (1.0,), length) for context, length in zip(contexts, lengths, strict=True)]
        for index, advance in Engine(on).run(plans):  # type: ignore[arg-type]
            tokens[index] += advance.frames_KT[0].tolist()
        assert [len(found) for found in tokens] == lengths, "every token that was asked for, and none else"
        return tokens

    def padded() -> object:
        given = torch.cat([with_start(context) for context in contexts])
        return llama.generate(
            given, attention_mask=torch.ones_like(given), max_new_tokens=max(lengths), min_new_tokens=max(lengths),
            do_sample=False, suppress_tokens=[CODES, CODES + 1],
        )  # fmt: skip

    def one_by_one() -> list[list[int]]:
        return [generate(llama, context, length) for context, length in zip(contexts, lengths, strict=True)]

    agreed = sum(a == b for a, b in zip(decode(plain), one_by_one(), strict=True))
    print(f"lengths {lengths}, {sum(lengths)} tokens; greedy fp32 tokens agree in {agreed} of {REQUESTS} requests")
    assert agreed == REQUESTS
    run = interleave(
        {
            "ours": lambda: timed(lambda: decode(runner)),
            "ours, fp32": lambda: timed(lambda: decode(plain)),
            "transformers, padded batch": lambda: timed(padded),
            "transformers, one by one": lambda: timed(one_by_one),
        },
        args,
    )
    print_table(run)
    print(f"format {getattr(runner, 'weight_format', 'torch')}; {sum(lengths) / run.best('ours'):.0f} tokens/s")
    verdicts = [
        Gate("C15 padded batch / ours", 1.6, 2.2, True).judge(*run.ratios("transformers, padded batch", "ours")),
        Gate("C15 one by one / ours", 4.0, 8.0, True).judge(*run.ratios("transformers, one by one", "ours")),
    ]
    conclude(run, args, verdicts)


if __name__ == "__main__":
    main()
