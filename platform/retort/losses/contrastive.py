"""The contrast of voices: what was spoken must sound like its own prompt, and not like those of other speakers.

InfoNCE (van den Oord et al., arXiv 1807.03748) over a batch, as METHODS.md 4.2f has it. Prompts of the anchor's own
speaker are no negatives: a single one in a batch of eight would put a floor of .17 under a solved loss at temperature
.1, and push a speaker's own recordings apart (trap 35). Negatives come from all ranks.
"""

import torch
from torch import Tensor, distributed
from torch.nn import functional


def speaker_contrast(
    anchors_AE: Tensor, prompts_BE: Tensor, rows_A: Tensor, speakers_B: Tensor, *, temperature: float
) -> Tensor:
    """Mean over anchors of ``-log softmax`` of their own prompt's cosine, among prompts of other speakers and itself.

    Zero without anchors. Every rank must call it, with whatever number of rows.

    Args:
        anchors_AE: voices of what was spoken.
        prompts_BE: voices of the rows' prompts.
        rows_A: which row each anchor is of.
        speakers_B: the rows' speakers; equal numbers are equal speakers on all ranks.
        temperature: divides the cosines.
    """
    wide = torch.promote_types(anchors_AE.dtype, torch.float32)
    anchors_AE = functional.normalize(anchors_AE.to(wide), dim=-1)
    prompts_BE = functional.normalize(prompts_BE.to(wide), dim=-1)
    own_A = (anchors_AE * prompts_BE[rows_A]).sum(-1, keepdim=True)
    all_NE, all_speakers_N = gathered(prompts_BE), gathered(speakers_B)
    is_own_speaker_AN = speakers_B[rows_A][:, None] == all_speakers_N
    others_AN = (anchors_AE @ all_NE.T).masked_fill(is_own_speaker_AN, -torch.inf)
    logits_A = torch.cat([own_A, others_AN], dim=1) / temperature
    return -logits_A.log_softmax(-1)[:, 0].sum() / max(1, len(anchors_AE))


def gathered(rows: Tensor) -> Tensor:
    """The rows of all ranks, in order, with gradients to each rank's own; ranks may differ in how many they have."""
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return rows
    from torch.distributed.nn.functional import all_gather

    count = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.empty_like(count) for _ in range(distributed.get_world_size())]
    distributed.all_gather(counts, count)
    numbers = [int(one) for one in counts]
    padded = torch.cat([rows, rows.new_zeros(max(numbers) - len(rows), *rows.shape[1:])])
    if rows.is_floating_point():
        parts = list(all_gather(padded))  # type: ignore[no-untyped-call]
    else:
        parts = [torch.empty_like(padded) for _ in numbers]
        distributed.all_gather(parts, padded)
    return torch.cat([part[:number] for part, number in zip(parts, numbers, strict=True)])
