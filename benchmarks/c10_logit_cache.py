"""C10: bytes per token and codebook of the logit cache, what it loses, and its time against a teacher's forward pass.

Two losses, both KL(full || decoded) in nats, mean over tokens:

- ``kl_listed``: over the partition {each of the k tokens, everything else}, which is what the distillation loss sees;
- ``kl_uniform``: over all tokens, the rest spread uniformly; ``kl_top_k`` is the same for the exact top-k, without any
  coding, so the difference of the two is what the coding costs.

Without ``--teacher`` the distributions are Gaussian logits of several scales (their entropies are printed; guidance
makes sharp ones) and the teacher of the timing is the demo preset with random weights. With ``--teacher`` and
``--data`` (outputs of ``retort pretrain`` and ``retort prepare``) both come from that teacher under guidance.
"""

import argparse
import json
import time
from pathlib import Path

import torch

from retort.data.batches import CodebookLayout
from retort.data.logit_cache import decode_top_k, encode_top_k, spread_tail
from retort.data.stream import BatchConfig, BatchStream
from retort.data.tokens import TokenRow, TokenSet
from retort.losses.divergence import TopK, legal_log_softmax, top_k_of
from retort.models.codec_lm import CodecLM
from retort.models.presets import demo
from retort.models.weights import load_codec_lm
from retort.nn.guidance import TwoTermGuidance
from retort.nn.guided_rows import guided_logits
from retort.store.results import result_of

ROUNDS = 5


def losses(logits_SKV: torch.Tensor, top: TopK, decoded: TopK, V: int) -> dict[str, float]:
    """The three divergences of one utterance, mean over its tokens."""
    log_p = legal_log_softmax(logits_SKV[None])[0]

    def to_full(log_q: torch.Tensor) -> float:
        terms = log_p.exp() * (log_p - log_q)
        terms[:, 1:, -1] = 0
        return float(terms.sum(-1).mean())

    listed = spread_tail(decoded, V).gather(-1, top.ids)
    rest = torch.log1p(-listed.exp().sum(-1).clamp(max=1 - 1e-7))
    p, tail = top.log_probs.exp(), top.log_tail.exp()
    partition = (p * (top.log_probs - listed)).sum(-1) + tail * (top.log_tail - rest)
    return {
        "entropy": float(-(log_p.exp() * log_p).nan_to_num().sum(-1).mean()),
        "kl_listed": float(partition.mean()),
        "kl_top_k": to_full(spread_tail(top, V)),
        "kl_uniform": to_full(spread_tail(decoded, V)),
    }


def measure(logits: list[torch.Tensor], k: int) -> dict[str, float]:
    """Bytes, losses and microseconds per (token, codebook) over utterances [S, K, V + 1]."""
    V = logits[0].shape[-1] - 1
    rows = []
    tokens = size = 0
    encode_s = decode_s = float("inf")
    tops = [top_k_of(z[None], k) for z in logits]
    flat = [TopK(t.ids[0], t.log_probs[0], t.log_tail[0]) for t in tops]
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        encoded = [encode_top_k(top, codebook_size=V) for top in flat]
        middle = time.perf_counter()
        decoded = [decode_top_k(data) for data in encoded]
        encode_s, decode_s = min(encode_s, middle - begin), min(decode_s, time.perf_counter() - middle)
    for z, top, data, back in zip(logits, flat, encoded, decoded, strict=True):
        tokens += z.shape[0] * z.shape[1]
        size += len(data)
        rows.append(losses(z, top, back, V))
    means = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
    microseconds = {"encode_us": encode_s / tokens * 1e6, "decode_us": decode_s / tokens * 1e6}
    return {"bytes_per_token": size / tokens, **means, **microseconds}


def rows_of(args: argparse.Namespace) -> tuple[CodecLM, list[TokenRow]]:
    """Teacher and training rows: given, or the demo preset with random codes."""
    if args.teacher:
        data = TokenSet.open(result_of(args.data)).split("train")
        return load_codec_lm(result_of(args.teacher)).model, data[: args.utterances]
    generator = torch.Generator().manual_seed(0)
    rows = []
    for i in range(args.utterances):
        codes = torch.randint(args.codebook_size, (args.codebooks, 80), generator=generator)
        rows.append(TokenRow(f"{i}", "", tuple(range(3, 23)), f"s{i % 2}", "train", codes, 2.0))
    torch.manual_seed(0)
    return CodecLM(demo((40, args.codebooks, args.codebook_size))).eval(), rows


def main() -> None:
    """Print one JSON line a distribution, then the ratio to the teacher's forward pass of the same run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--guidance-scale", type=float, default=1.5)
    parser.add_argument("--top-k", type=int, default=32)
    parser.add_argument("--codebooks", type=int, default=4)
    parser.add_argument("--codebook-size", type=int, default=4096)
    parser.add_argument("--utterances", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, rows = rows_of(args)
    layout = CodebookLayout(model.config.codebook_size, model.config.codebook_delays)
    batches = BatchConfig(max_utterances=args.utterances, max_frames=1_000_000)
    stream = BatchStream(rows, layout, batches, seed=0)
    batch = stream.build(range(len(rows)), torch.Generator().manual_seed(0))
    guidance = TwoTermGuidance(scale=args.guidance_scale)
    forward_s = float("inf")
    with torch.inference_mode():
        for _ in range(ROUNDS):
            begin = time.perf_counter()
            logits = guided_logits(model, batch.conditions, batch.inputs_BKS, guidance.build())
            top_k_of(logits, args.top_k)
            forward_s = min(forward_s, time.perf_counter() - begin)
    utterances = [z[: layout.num_steps(row.num_frames)] for z, row in zip(logits, rows, strict=True)]
    measured = {"teacher" if args.teacher else "random weights": utterances}
    for scale in () if args.teacher else (4.0, 8.0, 12.0, 20.0):
        generator = torch.Generator().manual_seed(1)
        measured[f"gaussian x {scale:g}"] = [torch.randn(z.shape, generator=generator) * scale for z in utterances]
    tokens = logits.shape[0] * logits.shape[1] * logits.shape[2]
    for name, given in measured.items():
        result = measure(given, args.top_k)
        result["time_ratio"] = (result["encode_us"] + result["decode_us"]) * 1e-6 * tokens / forward_s
        print(json.dumps({"distribution": name, **{key: float(f"{value:.4g}") for key, value in result.items()}}))
    print(json.dumps({"guided_forward_us_per_token_and_codebook": round(forward_s / tokens * 1e6, 1), "k": args.top_k}))


if __name__ == "__main__":
    main()
