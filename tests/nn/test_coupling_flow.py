"""The flow: its inverse, its volume, where it starts, and padding."""

import torch
from torch import Tensor

from retort.nn.coupling_flow import CouplingFlow

C, D, P = 6, 5, 4


def flow(*, is_trained: bool = True) -> CouplingFlow:
    torch.manual_seed(0)
    made = CouplingFlow(C, D, hidden_dim=8, num_couplings=4, num_layers=2).double()
    if is_trained:
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return made


def given(length: int = P, rows: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    z, condition = (torch.randn(rows, n, length, generator=generator, dtype=torch.float64) for n in (C, D))
    return z, condition, torch.ones(rows, 1, length, dtype=torch.bool)


def test_inverse_undoes_forward() -> None:
    z, condition, mask = given()
    noise = flow()(z, condition, mask).detach()
    assert float((noise - z).abs().max()) > 0.1
    torch.testing.assert_close(flow().inverse(noise, condition, mask), z, rtol=0, atol=1e-12)


def test_volume_is_preserved() -> None:
    z, condition, mask = given(rows=1)
    made = flow()
    jacobian = torch.autograd.functional.jacobian(
        lambda flat: made(flat.view(1, C, P), condition, mask).flatten(), z.flatten()
    )  # type: ignore[no-untyped-call]
    assert float((jacobian - torch.eye(C * P, dtype=torch.float64)).abs().max()) > 0.1
    torch.testing.assert_close(torch.linalg.det(jacobian).abs(), torch.tensor(1.0, dtype=torch.float64))


def test_it_starts_as_the_identity() -> None:
    z, condition, mask = given()
    assert torch.equal(flow(is_trained=False)(z, condition, mask), z)


def test_padding_changes_nothing() -> None:
    z, condition, mask = given()
    longer = [torch.cat([x, torch.full((*x.shape[:2], 3), 7.0, dtype=torch.float64)], dim=2) for x in (z, condition)]
    longer_mask = torch.cat([mask, torch.zeros(2, 1, 3, dtype=torch.bool)], dim=2)
    for way in (flow(), flow().inverse):
        padded = way(*longer, longer_mask)
        torch.testing.assert_close(padded[..., :P], way(z, condition, mask), rtol=0, atol=1e-12)
        assert not bool(padded[..., P:].any())
