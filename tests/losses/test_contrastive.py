"""The contrast of voices: the solved case, speakers that come twice, temperature, and rows of other ranks."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, multiprocessing

from retort.losses.contrastive import gathered, speaker_contrast

B = 8
SOLVED = torch.eye(B)


def contrast(anchors: Tensor, prompts: Tensor, speakers: list[int], temperature: float = 0.1) -> Tensor:
    rows = torch.arange(len(anchors))
    return speaker_contrast(anchors, prompts, rows, torch.tensor(speakers), temperature=temperature)


def test_it_is_nearly_zero_where_each_voice_is_its_prompts_own() -> None:
    assert float(contrast(SOLVED, SOLVED, list(range(B)))) < 1e-3


def test_a_speaker_that_comes_twice_puts_no_floor_under_it() -> None:
    """Trap 35: without the mask the loss of this solved batch is .17."""
    prompts, speakers = SOLVED.clone(), list(range(B))
    prompts[1], speakers[1] = prompts[0], speakers[0]
    assert float(contrast(prompts, prompts, list(range(B)))) == pytest.approx(2 * math.log(2) / B, rel=0.02)
    assert float(contrast(prompts, prompts, speakers)) < 1e-3


def test_other_recordings_of_the_speaker_are_not_pushed_away() -> None:
    prompts, speakers = torch.randn(B, 5, generator=torch.Generator().manual_seed(0)), [0, 0, *range(1, B - 1)]
    prompts.requires_grad_()
    one = torch.randn(1, 5)
    speaker_contrast(one, prompts, torch.tensor([0]), torch.tensor(speakers), temperature=0.5).backward()
    assert prompts.grad is not None
    assert not bool(prompts.grad[1].any())
    assert bool(prompts.grad[[0, 2]].any(1).all())


def test_it_is_a_cross_entropy_and_sizes_of_vectors_do_not_count() -> None:
    generator = torch.Generator().manual_seed(0)
    anchors, prompts = (torch.randn(B, 5, generator=generator) for _ in range(2))
    cosines = torch.nn.functional.cosine_similarity(anchors[:, None], prompts[None], dim=-1)
    expected = torch.nn.functional.cross_entropy(cosines / 0.2, torch.arange(B))
    torch.testing.assert_close(contrast(3.0 * anchors, 0.5 * prompts, list(range(B)), 0.2), expected)


def test_a_batch_of_one_speaker_says_nothing() -> None:
    anchors = torch.randn(3, 5, requires_grad=True)
    loss = contrast(anchors, torch.randn(3, 5), [4, 4, 4])
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == 0.0
    assert anchors.grad is not None
    assert not bool(anchors.grad.any())


def _rank(rank: int, folder: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    everything = torch.arange(10.0).view(5, 2)
    mine = (everything[:2] if rank == 0 else everything[2:]).clone().requires_grad_()
    found = gathered(mine)
    (found * (rank + 1)).sum().backward()
    speakers = gathered(torch.tensor([7, 8] if rank == 0 else [9, 7, 6]))
    torch.save([found.detach(), mine.grad, speakers], Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()


def test_negatives_come_from_all_ranks_with_gradients(tmp_path: Path) -> None:
    multiprocessing.spawn(_rank, (str(tmp_path),), nprocs=2)  # type: ignore[no-untyped-call]
    for rank in range(2):
        found, gradient, speakers = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert torch.equal(found, torch.arange(10.0).view(5, 2))
        assert torch.equal(speakers, torch.tensor([7, 8, 9, 7, 6]))
        # The sum over ranks of what each made of these rows: 1 and 2 times.
        assert torch.equal(gradient, torch.full_like(gradient, 3.0))
