"""Forward KL for large vocabularies: the two heads and the loss in one, a few tokens at a time.

With N tokens and V entries the plain loss keeps about five arrays [N, V]: both models' logits, their log-softmaxes and
a gradient. Here the last layers are part of the loss, so that three arrays [chunk, V] are enough: the gradient with
respect to a chunk's logits is known as soon as its two distributions are, hence everything that the backward pass needs
is computed in the forward pass, and what remains is the size of the inputs (the idea of Hsu et al., Liger Kernel,
arXiv 2410.10989, section 3.2).

With q = softmax(z / T), p = softmax(z_teacher / T), z = W h and n valid tokens, the loss is
``T^2 / n * sum_i sum_v p (log p - log q)``, and its gradient with respect to the logits z_i is ``T / n * (q - p)``.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def chunked_forward_kl(
    student_hidden_ND: Tensor,
    student_head_VD: Tensor,
    teacher_hidden_NDt: Tensor,
    teacher_head_VDt: Tensor,
    mask_N: Tensor,
    *,
    temperature: float = 1.0,
    chunk: int = 128,
) -> Tensor:
    """KL(teacher || student) of ``softmax(hidden @ head.T / temperature)``, mean over valid tokens, times T squared.

    Products run in the inputs' precision, softmax and loss in fp32 (fp64 for fp64 inputs). Gradients reach the
    student's two tensors; tokens outside the mask cost nothing. The result is the same for every ``chunk`` but for
    rounding.

    Args:
        student_hidden_ND: last hidden states of the student, after its final norm.
        student_head_VD: weight of its last layer.
        teacher_hidden_NDt: the teacher's, for the same tokens. Under guidance, the guidance's linear combination of
            the conditions' hidden states: the last layer is linear, so this gives the guided logits with one product.
        teacher_head_VDt: weight of the teacher's last layer.
        mask_N: which tokens are targets; without any the loss is zero.
        temperature: T.
        chunk: tokens at a time; memory beyond the gradients is ``3 * chunk * V`` numbers.

    Raises:
        ValueError: the shapes do not fit each other, or ``chunk`` or ``temperature`` is not positive.
    """
    N, V = student_hidden_ND.shape[0], student_head_VD.shape[0]
    if teacher_hidden_NDt.shape[0] != N or mask_N.shape != (N,) or teacher_head_VDt.shape[0] != V:
        raise ValueError(
            f"student: {N} tokens, {V} entries; teacher: {teacher_hidden_NDt.shape[0]} tokens, "
            f"{teacher_head_VDt.shape[0]} entries; mask {tuple(mask_N.shape)}"
        )
    if chunk < 1 or temperature <= 0:
        raise ValueError(f"chunk {chunk} and temperature {temperature} must be positive")
    if not torch.is_grad_enabled():
        student_hidden_ND, student_head_VD = student_hidden_ND.detach(), student_head_VD.detach()
    loss: Tensor = _ChunkedForwardKL.apply(  # type: ignore[no-untyped-call]
        student_hidden_ND, student_head_VD, teacher_hidden_NDt, teacher_head_VDt, mask_N, temperature, chunk
    )
    return loss


class _ChunkedForwardKL(torch.autograd.Function):
    """Loss and gradients in the forward pass; the backward pass scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        student_hidden_ND: Tensor,
        student_head_VD: Tensor,
        teacher_hidden_NDt: Tensor,
        teacher_head_VDt: Tensor,
        mask_N: Tensor,
        temperature: float,
        chunk: int,
    ) -> Tensor:
        index_M = mask_N.nonzero()[:, 0]
        M, V = len(index_M), student_head_VD.shape[0]
        wide = torch.promote_types(student_hidden_ND.dtype, torch.float32)
        needs_hidden, needs_head = ctx.needs_input_grad[:2]
        # Gradients of many tokens are summed in fp32, whatever the inputs are in.
        grad_hidden = torch.zeros_like(student_hidden_ND) if needs_hidden else None
        grad_head = torch.zeros_like(student_head_VD, dtype=wide) if needs_head else None
        buffers = [student_hidden_ND.new_empty(min(chunk, M), V, dtype=wide) for _ in range(3)]
        loss = student_hidden_ND.new_zeros((), dtype=wide)
        scale = temperature / max(1, M)
        for rows in torch.split(index_M, chunk):
            a, log_p, log_q = (buffer[: len(rows)] for buffer in buffers)
            hidden = student_hidden_ND[rows]
            _log_softmax(teacher_hidden_NDt[rows], teacher_head_VDt, temperature, a, out=log_p)
            _log_softmax(hidden, student_head_VD, temperature, a, out=log_q)
            p = torch.exp(log_p, out=a)
            loss += torch.bmm(p[:, None], log_p.sub_(log_q)[:, :, None]).sum()
            grad_logits = log_q.exp_().sub_(p)
            if grad_hidden is not None:
                product = grad_logits.to(student_head_VD.dtype) @ student_head_VD
                grad_hidden[rows] = (product * scale).to(grad_hidden.dtype)
            if grad_head is not None:
                _add_product(grad_head, grad_logits, hidden, scale)
        ctx.save_for_backward(grad_hidden, None if grad_head is None else grad_head.to(student_head_VD.dtype))
        return loss * (temperature * scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        grads = [None if g is None else g * grad_outputs[0].to(g.dtype) for g in ctx.saved_tensors]
        return (*grads, None, None, None, None, None)


def _log_softmax(hidden_ND: Tensor, head_VD: Tensor, temperature: float, scratch_NV: Tensor, *, out: Tensor) -> None:
    """Log-probabilities into ``out``; the logits go to ``scratch_NV``."""
    if hidden_ND.dtype == scratch_NV.dtype:
        torch.addmm(scratch_NV, hidden_ND, head_VD.T, beta=0, alpha=1.0 / temperature, out=scratch_NV)
    else:
        torch.mul(hidden_ND @ head_VD.T, 1.0 / temperature, out=scratch_NV)
    torch.log_softmax(scratch_NV, dim=-1, out=out)


def _add_product(sum_VD: Tensor, grad_NV: Tensor, hidden_ND: Tensor, scale: float) -> None:
    """``sum += scale * grad.T @ hidden``, the product in the precision of ``hidden``."""
    if hidden_ND.dtype == sum_VD.dtype:
        sum_VD.addmm_(grad_NV.T, hidden_ND, alpha=scale)
    else:
        sum_VD.add_(grad_NV.to(hidden_ND.dtype).T @ hidden_ND, alpha=scale)
