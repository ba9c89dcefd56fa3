import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from retort.losses.chunked import chunked_forward_kl

N, V, D, D_T = 23, 37, 8, 12
Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def inputs(seed: int = 0, dtype: torch.dtype = torch.float32) -> Inputs:
    """Student hidden and head, teacher hidden and head, and a mask with holes."""
    g = torch.Generator().manual_seed(seed)
    shapes = ((N, D), (V, D), (N, D_T), (V, D_T))
    tensors = [torch.randn(shape, generator=g).to(dtype) for shape in shapes]
    student = [t.requires_grad_() for t in tensors[:2]]
    return (*student, *tensors[2:], torch.rand(N, generator=g) < 0.6)


def dense(given: Inputs, temperature: float) -> Tensor:
    """The same loss from whole arrays of logits."""
    h, w, h_t, w_t, mask = given
    log_q = functional.log_softmax((h @ w.T)[mask] / temperature, dim=-1)
    log_p = functional.log_softmax((h_t @ w_t.T)[mask] / temperature, dim=-1)
    return functional.kl_div(log_q, log_p, reduction="batchmean", log_target=True) * temperature**2


def gradients(loss: Tensor, given: Inputs) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, given[:2])


@pytest.mark.parametrize(("chunk", "temperature"), itertools.product((1, 5, 23, 1000), (1.0, 0.7, 3.0)))
def test_loss_and_gradients_equal_those_of_whole_arrays(chunk: int, temperature: float) -> None:
    given = inputs()
    assert 0 < int(given[-1].sum()) < N
    got = chunked_forward_kl(*given, temperature=temperature, chunk=chunk)
    expected = dense(given, temperature)
    assert float(got.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    for mine, theirs in zip(gradients(3.0 * got, given), gradients(3.0 * expected, given), strict=True):
        assert (mine - theirs).abs().max() < 1e-5 * max(1.0, float(theirs.abs().max()))


def test_gradcheck() -> None:
    given = inputs(1, torch.float64)
    h, w = given[0][:5].detach().requires_grad_(), given[1][:6].detach().requires_grad_()
    mask = torch.tensor([True, False, True, True, True])

    def loss(h: Tensor, w: Tensor) -> Tensor:
        return chunked_forward_kl(h, w, given[2][:5], given[3][:6], mask, temperature=1.7, chunk=3)

    assert torch.autograd.gradcheck(loss, (h, w))


def test_a_student_equal_to_its_teacher_has_no_loss_and_no_gradient() -> None:
    h, w, _, _, mask = inputs()
    loss = chunked_forward_kl(h, w, h.detach().clone(), w.detach().clone(), mask, temperature=2.0, chunk=4)
    assert float(loss.detach()) == 0.0
    assert all(not g.any() for g in torch.autograd.grad(loss, (h, w)))


def test_tokens_outside_the_mask_change_nothing_and_get_no_gradient() -> None:
    given = inputs()
    h, w, h_t, w_t, mask = given
    spoilt = h.detach().masked_fill(~mask[:, None], float("nan")).requires_grad_()
    loss = chunked_forward_kl(spoilt, w, h_t.masked_fill(~mask[:, None], torch.inf), w_t, mask, chunk=6)
    clean = chunked_forward_kl(*given, chunk=6)
    assert torch.equal(loss.detach(), clean.detach())
    (grad,) = torch.autograd.grad(loss, spoilt)
    assert grad[mask].abs().sum() > 0
    assert not grad[~mask].any()


def test_without_valid_tokens_the_loss_and_its_gradients_are_zero() -> None:
    given = inputs()
    loss = chunked_forward_kl(*given[:4], torch.zeros(N, dtype=torch.bool))
    assert float(loss.detach()) == 0.0
    assert all(not g.any() for g in gradients(loss, given))


def test_bf16_inputs_keep_an_fp32_loss_and_gradients_near_the_exact_ones() -> None:
    given = inputs(2, torch.bfloat16)
    exact = tuple(t.detach().float().requires_grad_(t.requires_grad) for t in given[:4])
    loss = chunked_forward_kl(*given, temperature=2.0, chunk=7)
    expected = chunked_forward_kl(*exact, given[4], temperature=2.0, chunk=7)
    assert loss.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=0.02)
    for mine, theirs in zip(
        torch.autograd.grad(loss, given[:2]), torch.autograd.grad(expected, exact[:2]), strict=True
    ):
        assert mine.dtype == torch.bfloat16
        assert (mine.float() - theirs).norm() < 0.03 * theirs.norm()


def test_large_logits_stay_finite() -> None:
    h, w, h_t, w_t, mask = inputs()
    loss = chunked_forward_kl(1e3 * h, w, 1e3 * h_t, w_t, mask, chunk=4)
    assert torch.isfinite(loss)
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(loss, (h, w)))


def test_the_guided_teacher_is_the_combination_of_its_hidden_states() -> None:
    h, w, full, w_t, mask = inputs()
    null = inputs(9)[2]
    guided = null @ w_t.T + 2.5 * (full @ w_t.T - null @ w_t.T)
    log_p, log_q = functional.log_softmax(guided[mask], -1), functional.log_softmax((h @ w.T)[mask], -1)
    expected = functional.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
    got = chunked_forward_kl(h, w, null + 2.5 * (full - null), w_t, mask)
    assert float(got.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_only_what_needs_a_gradient_gets_one_and_without_gradients_there_is_only_the_loss() -> None:
    given = inputs()
    frozen = (given[0], given[1].detach(), *given[2:])
    (grad,) = torch.autograd.grad(chunked_forward_kl(*frozen, chunk=5), given[0])
    assert torch.allclose(grad, gradients(dense(given, 1.0), given)[0], atol=1e-5)
    with torch.no_grad():
        loss = chunked_forward_kl(*given, chunk=5)
    assert not loss.requires_grad
    assert float(loss) == pytest.approx(float(dense(given, 1.0).detach()), rel=1e-5)


def test_contradicting_shapes_are_refused() -> None:
    h, w, h_t, w_t, mask = inputs()
    with pytest.raises(ValueError, match="36 entries"):
        chunked_forward_kl(h, w, h_t, w_t[:-1], mask)
    with pytest.raises(ValueError, match="22 tokens"):
        chunked_forward_kl(h, w, h_t[:-1], w_t, mask)
    with pytest.raises(ValueError, match="mask"):
        chunked_forward_kl(h, w, h_t, w_t, mask[:-1])
    with pytest.raises(ValueError, match="chunk 0"):
        chunked_forward_kl(h, w, h_t, w_t, mask, chunk=0)
