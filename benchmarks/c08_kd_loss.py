"""C8: forward KL between two models of 65,536 entries: time and peak memory against plain torch, forward and backward.

Plain torch is ``kl_div(log_softmax(student), softmax(teacher))`` on whole arrays of logits, and the same with
``log_target=True``; each number is compared with the better of the two. Memory is the growth of the process's peak
over a call (``VmHWM`` after ``/proc/self/clear_refs``), gradients included.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.protocol import (
    Gate,
    conclude,
    give_back_free_memory,
    interleave,
    parse_arguments,
    prepare,
    print_table,
    timed,
)
from retort.evaluation.speed import memory_mb, peak_memory_mb, reset_peak_memory
from retort.losses.chunked import chunked_forward_kl

NUM_TOKENS, DIM, VOCABULARY = 1024, 256, 65_536
CPU = torch.device("cpu")


class Case:
    """One set of inputs, the ways to compute the loss, and the memory that each took."""

    def __init__(self, num_tokens: int, dim: int, vocabulary: int) -> None:
        generator = torch.Generator().manual_seed(0)

        def random(*shape: int, scale: float = 1.0) -> Tensor:
            return scale * torch.randn(shape, generator=generator)

        self.hidden = random(num_tokens, dim).requires_grad_()
        self.head = random(vocabulary, dim, scale=0.1).requires_grad_()
        self.teacher_hidden, self.teacher_head = random(num_tokens, dim), random(vocabulary, dim, scale=0.1)
        self.mask = torch.ones(num_tokens, dtype=torch.bool)
        self.memory: dict[str, list[float]] = {}

    def plain(self) -> Tensor:
        """Probabilities of the teacher."""
        log_q = functional.log_softmax(self.hidden @ self.head.T, dim=-1)
        p = functional.softmax(self.teacher_hidden @ self.teacher_head.T, dim=-1)
        return functional.kl_div(log_q, p, reduction="batchmean")

    def plain_log_target(self) -> Tensor:
        """Log-probabilities of the teacher."""
        log_q = functional.log_softmax(self.hidden @ self.head.T, dim=-1)
        log_p = functional.log_softmax(self.teacher_hidden @ self.teacher_head.T, dim=-1)
        return functional.kl_div(log_q, log_p, reduction="batchmean", log_target=True)

    def chunked(self) -> Tensor:
        """Ours."""
        return chunked_forward_kl(self.hidden, self.head, self.teacher_hidden, self.teacher_head, self.mask)

    def measure(self, name: str, loss: Callable[[], Tensor]) -> float:
        """Seconds of loss and gradients; notes the memory."""
        self.hidden.grad = self.head.grad = None
        give_back_free_memory()
        reset_peak_memory(CPU)
        before = memory_mb(CPU)
        seconds = timed(lambda: loss().backward())  # type: ignore[no-untyped-call]
        self.memory.setdefault(name, []).append(peak_memory_mb(CPU) - before)
        return seconds

    def gradients(self, loss: Callable[[], Tensor]) -> tuple[Tensor, ...]:
        """The loss and its gradients."""
        value = loss()
        return (value.detach(), *torch.autograd.grad(value, (self.hidden, self.head)))


def check(case: Case) -> float:
    """Largest relative difference of loss and gradients between the chunked and the plain loss."""
    worst = 0.0
    for ours, theirs in zip(case.gradients(case.chunked), case.gradients(case.plain), strict=True):
        assert bool(torch.isfinite(theirs).all()), "the plain loss must be finite"
        assert float(theirs.abs().max()) > 0, "a loss of zero would prove nothing"
        worst = max(worst, float((ours - theirs).norm() / theirs.norm()))
    return worst


def main() -> None:
    """Measure and print."""
    args = parse_arguments(__doc__ or "")
    prepare(args)
    case = Case(64, 32, 4096) if args.quick else Case(NUM_TOKENS, DIM, VOCABULARY)
    difference = check(case)
    losses = {"chunked": case.chunked, "plain": case.plain, "plain, log target": case.plain_log_target}
    run = interleave({name: functools.partial(case.measure, name, loss) for name, loss in losses.items()}, args)
    print_table(run)
    peaks = {name: max(values) for name, values in case.memory.items()}
    print("peak memory beyond the inputs, MiB: " + ", ".join(f"{name} {mb:.0f}" for name, mb in peaks.items()))
    print(f"loss and gradients differ from the plain ones by {difference:.1e}")
    peer = min(("plain", "plain, log target"), key=run.best)
    least = min(peaks["plain"], peaks["plain, log target"])
    verdicts = [
        Gate("C8 time / plain torch (best, median)", 1.0, 0.8).judge(*run.ratios("chunked", peer)),
        Gate("C8 peak memory / plain torch", 1 / 5, 1 / 6).judge(peaks["chunked"] / least),
        Gate("C8 relative difference", 1e-4, 1e-5).judge(difference),
    ]
    print(f"the same ratio in CPU seconds: {run.cpu_ratio('chunked', peer):.3f}")
    conclude(run, args, verdicts)


if __name__ == "__main__":
    main()
