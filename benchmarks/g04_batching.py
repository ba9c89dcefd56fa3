"""G4: continuous batching on a GPU: 256 requests of 100 to 800 tokens on 64 slots, against padded batches.

A random network of 500M parameters in bf16, greedy. ``transformers`` decodes batches of 64, each to its longest
request, and with its own continuous batching (``generate_batch``) where this version has it; only wanted tokens count.
"""

import torch

from benchmarks.g01_decode import TINY, weight_bytes
from benchmarks.gpu import bytes_per_second, in_turns, parse, runner_for
from benchmarks.llama_peer import CODES, SHAPES, ours, plan, prompts, theirs, with_start
from benchmarks.protocol import Gate
from retort.inference.engine import Engine
from retort.models.codec_lm import CodecLM

PROMPT = 16
CONTEXT = 500
"""Columns of keys and values that the floor reads for each stream, besides the weights once for all of them."""


def kept_bytes(model: CodecLM) -> int:
    """Bytes of keys and values of one column."""
    config = model.config
    return 2 * config.num_layers * config.num_kv_heads * config.head_size * model.heads.weight.element_size()


def main() -> None:
    """Measure and print."""
    args, device = parse(__doc__ or "")
    slots, number, low, high = (4, 8, 3, 9) if args.quick else (64, 256, 100, 800)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = ours(TINY["tiny"] if args.quick else SHAPES["500M"], device=str(device), dtype=dtype)
    llama = theirs(model)
    lengths = torch.randint(low, high + 1, (number,), generator=torch.Generator().manual_seed(3)).tolist()
    contexts = prompts(number, length=PROMPT)
    runner = runner_for(model, slots=slots, conditions=1, num_tokens=high)

    def continuous() -> int:
        plans = [plan(model, [context], (1.0,), length) for context, length in zip(contexts, lengths, strict=True)]
        found = [0] * number
        for index, advance in Engine(runner).run(plans):
            found[index] += advance.frames_KT.shape[1]
        assert found == lengths, "every token that was asked for, and none else"
        return sum(found)

    def padded() -> None:
        for begin in range(0, number, slots):
            given = torch.cat([with_start(context) for context in contexts[begin : begin + slots]]).to(device)
            most = max(lengths[begin : begin + slots])
            llama.generate(
                given, attention_mask=torch.ones_like(given), max_new_tokens=most, min_new_tokens=most, do_sample=False,
                suppress_tokens=[CODES, CODES + 1],
            )  # fmt: skip

    def theirs_continuous() -> None:
        from transformers import GenerationConfig

        inputs = [with_start(context)[0].tolist() for context in contexts]
        # It takes one length for all: the mean asks for as many tokens as ours, and spares it the ragged end.
        mean = sum(lengths) // number
        config = GenerationConfig(max_new_tokens=mean, do_sample=False, eos_token_id=-1, pad_token_id=CODES + 1)
        found = llama.generate_batch(inputs=inputs, generation_config=config, persistent_manager=True)
        assert all(len(one.generated_tokens) == mean for one in found.values()), "the payload must be whole"

    peers = {"ours": continuous, "transformers, padded": padded}
    if device.type == "cuda" and hasattr(llama, "generate_batch"):
        peers["transformers, continuous"] = theirs_continuous
    total = sum(lengths)
    best = in_turns(peers, device, args.rounds if not args.quick else 1)
    for name, seconds in best.items():
        print(f"{name:26s}{seconds:9.2f} s {total / seconds:10.0f} tokens/s")
    floor = slots * bytes_per_second(device) / (weight_bytes(model) + slots * CONTEXT * kept_bytes(model))
    verdicts = [
        Gate("G4 share of the floor", 0.40, 0.60, True).judge(total / best["ours"] / floor),
        Gate("G4 padded / ours", 5.0, 8.0, True).judge(best["transformers, padded"] / best["ours"]),
    ]
    if "transformers, continuous" in best:
        ratio = best["transformers, continuous"] / best["ours"]
        verdicts.append(Gate("G4 their continuous batching / ours", 1.5, 2.5, True).judge(ratio))
    for line in verdicts:
        print(line + ("  [quick check: proves nothing]" if args.quick else ""))


if __name__ == "__main__":
    main()
