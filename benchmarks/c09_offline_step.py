"""C9: a training step on cached targets against cross-entropy alone, and against a live guided teacher.

The student is the demo preset (5M parameters), the teacher 2.6 times as large under two-term guidance; 4 codebooks of
256 codes, 48 rows of about 40 frames. A step is everything that training does: making the batch, targets, forward,
backward, clipping, AdamW. The cached targets are read as training reads them: encoded as ``retort generate`` writes
them, and decoded when they are looked up.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.protocol import Gate, conclude, interleave, parse_arguments, prepare, print_table, timed
from retort.data.batches import CodebookLayout
from retort.data.logit_cache import encode_top_k
from retort.data.stream import BatchConfig, BatchStream
from retort.data.synthetic import CachedTargets
from retort.data.tokens import TokenRow
from retort.losses.divergence import TopK, masked_mean, top_k_of
from retort.methods.cfg_distill import (
    CachedTeacher,
    CFGDistillConfig,
    CFGDistillObjective,
    LiveTeacher,
)
from retort.methods.codec_lm_distillation import in_precision
from retort.models.codec_lm import CodecLM, count_parameters
from retort.models.presets import demo, sized, tiny
from retort.nn.guidance import NoGuidance, TwoTermGuidance
from retort.nn.guided_rows import guided_logits
from retort.nn.precision import pick_dtype
from retort.training.fit import PlainOptimizer, fit
from retort.training.schedule import OptimizerConfig
from retort.training.seam import NoTeacher

VOCABULARIES = (40, 4, 256)
TOP_K, ROWS, MEAN_FRAMES = 32, 48, 40
GUIDANCE = TwoTermGuidance(scale=2.0)


class DecodedById(Mapping[int, TopK]):
    """Targets by the row's index, decoded when they are asked for, as a synthetic set gives them."""

    def __init__(self, targets: CachedTargets) -> None:
        self._targets = targets

    def __getitem__(self, index: int) -> TopK:
        return self._targets[str(index)]

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self._targets)))

    def __len__(self) -> int:
        return len(self._targets)


@dataclass(frozen=True)
class Problem:
    """Data, teacher and cache that all peers share."""

    stream: BatchStream
    teacher: CodecLM
    cache: DecodedById
    dtype: torch.dtype


def rows_of(number: int) -> list[TokenRow]:
    """Random codes of about 40 frames (24 to 56), two speakers."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for i in range(number):
        T = int(torch.randint(MEAN_FRAMES - 16, MEAN_FRAMES + 17, (1,), generator=generator))
        codes = torch.randint(VOCABULARIES[2], (VOCABULARIES[1], T), generator=generator)
        rows.append(TokenRow(str(i), "", tuple(range(3, 15)), f"s{i % 2}", "train", codes, T / 50))
    return rows


def build(number: int, *, is_small: bool) -> Problem:
    """The shared parts."""
    torch.manual_seed(0)
    large = sized(dim=384, num_layers=7, num_heads=6, ffn_dim=1024, vocabularies=VOCABULARIES)
    teacher = CodecLM(tiny(VOCABULARIES) if is_small else large).eval()
    with torch.no_grad():
        teacher.heads.weight.mul_(20)  # distributions with some shape, as trained teachers have
    layout = CodebookLayout(teacher.config.codebook_size, teacher.config.codebook_delays)
    config = BatchConfig(max_utterances=ROWS, max_frames=1_000_000, prompts="by_id")
    stream = BatchStream(rows_of(number), layout, config, seed=0)
    cache = cached(stream, teacher)
    dtype = pick_dtype("auto")
    return Problem(stream, in_precision(teacher, dtype), cache, dtype)


@torch.inference_mode()
def cached(stream: BatchStream, teacher: CodecLM) -> DecodedById:
    """What ``retort generate`` would write for these rows."""
    import pyarrow as pa

    layout, cells = stream.layout, []
    for begin in range(0, len(stream.rows), ROWS):
        places = range(begin, min(begin + ROWS, len(stream.rows)))
        batch = stream.build(places, torch.Generator())
        top = top_k_of(guided_logits(teacher, batch.conditions, batch.inputs_BKS, GUIDANCE.build()), TOP_K)
        for b, place in enumerate(places):
            S = layout.num_steps(stream.rows[place].num_frames)
            one = TopK(top.ids[b, :S], top.log_probs[b, :S], top.log_tail[b, :S])
            mask_KS = batch.mask_BKS[b, :, :S]
            cells.append(encode_top_k(one, codebook_size=layout.codebook_size, mask_KS=mask_KS))
    table = pa.table({"id": [str(i) for i in range(len(cells))], "top_k": pa.array(cells, pa.binary())})
    return DecodedById(CachedTargets(table, Path("cache")))


class Peer:
    """One way to train a student; all start from the same weights and see the same batches."""

    def __init__(self, problem: Problem, config: CFGDistillConfig, teacher: Any, args: argparse.Namespace) -> None:
        torch.manual_seed(1)
        student = CodecLM((tiny if args.quick else demo)(VOCABULARIES)).to(problem.dtype)
        self.objective, self.teacher = CFGDistillObjective(student, config), teacher
        self.optimizer = PlainOptimizer(self.objective, OptimizerConfig(learning_rate=1e-4), 10_000)
        self.problem, self.next_batch, self.losses = problem, 0, list[float]()
        self.steps = 1 if args.quick else 4

    def round(self) -> float:
        """Seconds per step over the next few batches."""
        batches = self.problem.stream.iterate(self.next_batch, self.next_batch + self.steps)
        self.next_batch += self.steps

        def note(step: int, out: Any) -> None:
            del step
            self.losses.append(float(out.loss.detach()))

        def train() -> None:
            fit(self.objective, self.teacher, ((batch, None) for batch in batches), self.optimizer, note)

        return timed(train) / self.steps


def check(problem: Problem) -> float:
    """How far the loss on cached targets is from the loss on the live teacher's, relatively; the payload guard, too."""
    batch = problem.stream.batch(0)
    assert int(batch.num_valid) > batch.inputs_BKS.shape[0] * 20, "the batch must hold tokens"
    torch.manual_seed(2)
    config = CFGDistillConfig(guidance=GUIDANCE)
    objective = CFGDistillObjective(CodecLM(tiny(VOCABULARIES)), config)
    live = LiveTeacher(problem.teacher, config).targets(batch)
    assert live.logits_BSKV is not None
    entropy = -(live.logits_BSKV[:, :, :1].log_softmax(-1).exp() * live.logits_BSKV[:, :, :1].log_softmax(-1)).sum(-1)
    mean = float(masked_mean(entropy, batch.mask_BKS[:, :1]))
    print(f"teacher's entropy (codebook 0): {mean:.2f} nat; valid targets per batch: {int(batch.num_valid)}")
    with torch.no_grad():
        full = objective(batch, live).loss
        top = objective(batch, CachedTeacher(problem.cache, VOCABULARIES[1]).targets(batch)).loss
    return abs(float(top) / float(full) - 1.0)


def parts(problem: Problem, peer: Peer) -> dict[str, Callable[[], float]]:
    """What a cached step has beyond cross-entropy: reading the cache, and the targets with their padding."""
    batch = problem.stream.batch(0)
    rows = batch.row_B.tolist()
    return {
        "  of it: making the batch": lambda: timed(lambda: problem.stream.batch(0)),
        "  of it: decoding the cache": lambda: timed(lambda: [problem.cache[row] for row in rows]),
        "  of it: targets, decoding included": lambda: timed(lambda: peer.teacher.targets(batch)),
    }


def main() -> None:
    """Measure and print."""
    args = parse_arguments(__doc__ or "")
    prepare(args)
    problem = build(ROWS if args.quick else 10 * ROWS, is_small=args.quick)
    difference = check(problem)
    guided = CFGDistillConfig(guidance=GUIDANCE)
    tokens_only = CFGDistillConfig(guidance=NoGuidance(), kl_weight=0.0, ce_weight=1.0)
    peers = {
        "cross-entropy": Peer(problem, tokens_only, NoTeacher(), args),
        "cached targets": Peer(problem, guided, CachedTeacher(problem.cache, VOCABULARIES[1]), args),
        "live teacher": Peer(problem, guided, LiveTeacher(problem.teacher, guided), args),
    }
    sizes = count_parameters(peers["cross-entropy"].objective), count_parameters(problem.teacher)
    print(f"student {sizes[0] / 1e6:.2f}M, teacher {sizes[1] / sizes[0]:.2f} times as large, {problem.dtype}")
    works = {name: peer.round for name, peer in peers.items()}
    run = interleave({**works, **parts(problem, peers["cached targets"])}, args)
    print_table(run, "ms", 1e3)
    print(f"losses on cached and live targets differ by {100 * difference:.2f} %")
    for name, peer in peers.items():
        assert peer.losses[-1] < peer.losses[0], f"{name}: {peer.losses[0]} did not fall: {peer.losses[-1]}"
    offline = run.ratios("cached targets", "cross-entropy")
    online = run.ratios("live teacher", "cached targets")
    verdicts = [
        Gate("C9 cached step / cross-entropy step (best, median)", 1.10, 1.05).judge(*offline),
        Gate("C9 live CFG-2 step / cached step (best, median)", 2.2, 2.6, at_least=True).judge(*online),
    ]
    print(
        f"the same ratios in CPU seconds: {run.cpu_ratio('cached targets', 'cross-entropy'):.3f} and "
        f"{run.cpu_ratio('live teacher', 'cached targets'):.3f}"
    )
    conclude(run, args, verdicts)


if __name__ == "__main__":
    main()
