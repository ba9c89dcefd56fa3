"""Batches for the codec language model: layout, masks, and the random choices that shape them.

Randomness is drawn here, once, before teacher and student see the batch (METHODS.md, trap 2).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from retort.data.tokens import TokenRow
from retort.nn.conditions import TEXT_NULL, TEXT_PAD, Conditions
from retort.nn.delays import apply_delays, delay_mask, num_steps


@dataclass(frozen=True)
class CodebookLayout:
    """How K codebooks of V codes are laid out in steps: the delays, and the ids of end and fill."""

    codebook_size: int
    delays: tuple[int, ...]

    @property
    def num_codebooks(self) -> int:
        """K."""
        return len(self.delays)

    @property
    def eos(self) -> int:
        """End of speech: a target of codebook 0 at the step after its last frame."""
        return self.codebook_size

    @property
    def fill(self) -> int:
        """Input id of a position without a code."""
        return self.codebook_size + 1

    def num_steps(self, num_frames: int) -> int:
        """Steps that T frames take, the end of speech included."""
        return num_steps(num_frames, self.delays)


@dataclass(frozen=True)
class LMBatch:
    """One batch of teacher-forced sequences.

    Attributes:
        conditions: text and speaker prompt, with the drops of this batch already applied.
        inputs_BKS: tokens before each step (column 0 is all fill).
        targets_BKS: tokens to predict; any legal value where the mask is off.
        mask_BKS: True where a target exists: the codes, and the end of speech of codebook 0.
        row_B: index of each row in the token set, for targets cached per utterance.
    """

    conditions: Conditions
    inputs_BKS: Tensor
    targets_BKS: Tensor
    mask_BKS: Tensor
    row_B: Tensor

    @property
    def num_valid(self) -> Tensor:
        """Number of valid (utterance, codebook, step) triples."""
        return self.mask_BKS.sum()

    def to(self, device: torch.device) -> "LMBatch":
        """Move every tensor."""
        return LMBatch(
            self.conditions.to(device),
            self.inputs_BKS.to(device),
            self.targets_BKS.to(device),
            self.mask_BKS.to(device),
            self.row_B.to(device),
        )


def lay_out(codes: Sequence[Tensor], layout: CodebookLayout) -> tuple[Tensor, Tensor, Tensor]:
    """Delay and pad codes [K, T_i] into inputs, targets and mask, each [B, K, S] (see :class:`LMBatch`)."""
    lengths_B = torch.tensor([c.shape[1] for c in codes])
    T = int(lengths_B.max())
    padded = torch.full((len(codes), layout.num_codebooks, T), layout.fill, dtype=torch.int64)
    for b, code_KT in enumerate(codes):
        padded[b, :, : code_KT.shape[1]] = code_KT
    S = layout.num_steps(T)
    delayed = torch.full((len(codes), layout.num_codebooks, S), layout.fill, dtype=torch.int64)
    shifted = apply_delays(padded, layout.delays, fill=layout.fill)
    delayed[:, :, : shifted.shape[2]] = shifted
    mask = delay_mask(lengths_B, layout.delays, S)
    rows = torch.arange(len(codes))
    delayed[rows, 0, lengths_B] = layout.eos
    mask[rows, 0, lengths_B] = True
    start = torch.full_like(delayed[:, :, :1], layout.fill)
    inputs = torch.cat([start, delayed[:, :, :-1]], dim=2)
    return inputs, delayed.masked_fill(~mask, 0), mask


def pad_text(texts: Sequence[Sequence[int]]) -> Tensor:
    """Left-pad text ids to [B, L]."""
    L = max(len(t) for t in texts)
    return torch.tensor([[TEXT_PAD] * (L - len(t)) + list(t) for t in texts], dtype=torch.int64)


def pad_prompts(prompts: Sequence[Tensor | None], num_codebooks: int) -> tuple[Tensor, Tensor]:
    """Right-pad prompt codes [K, P_i] to [B, K, P] with their mask [B, P]; ``None`` is the null speaker."""
    P = max([1, *(p.shape[1] for p in prompts if p is not None)])
    codes = torch.zeros(len(prompts), num_codebooks, P, dtype=torch.int64)
    mask = torch.zeros(len(prompts), P, dtype=torch.bool)
    for b, prompt_KP in enumerate(prompts):
        if prompt_KP is not None:
            codes[b, :, : prompt_KP.shape[1]] = prompt_KP
            mask[b, : prompt_KP.shape[1]] = True
    return codes, mask


def conditions_for(
    texts: Sequence[Sequence[int]],
    prompts: Sequence[Tensor | None],
    num_codebooks: int,
    *,
    drop_text_B: Tensor | None = None,
    drop_speaker_B: Tensor | None = None,
) -> Conditions:
    """Conditions of a batch; each row's text and speaker may be dropped independently of the others'."""
    dropped = [False] * len(texts) if drop_text_B is None else drop_text_B.tolist()
    text_BL = pad_text([[TEXT_NULL] if drop else list(t) for t, drop in zip(texts, dropped, strict=True)])
    prompt_BKP, prompt_mask_BP = pad_prompts(prompts, num_codebooks)
    if drop_speaker_B is not None:
        prompt_mask_BP &= ~drop_speaker_B[:, None]
    return Conditions(text_BL, prompt_BKP, prompt_mask_BP)


def teacher_forced(
    rows: Sequence[TokenRow],
    prompts: Sequence[Tensor | None],
    layout: CodebookLayout,
    *,
    drop_text_B: Tensor | None = None,
    drop_speaker_B: Tensor | None = None,
    row_B: Tensor | None = None,
    scale_index: int | None = None,
) -> LMBatch:
    """The batch in which a model sees the rows' own tokens: the only way from rows to such a batch.

    Args:
        rows: utterances with their codes and text ids.
        prompts: codes [K, P] of another utterance of each row's speaker; None is the null speaker.
        layout: codebooks and delays of the model.
        drop_text_B: rows whose text is replaced by its null.
        drop_speaker_B: rows whose prompt is replaced by its null.
        row_B: what each row is called in caches; counted from 0 if it is not given.
        scale_index: index of the guidance scale, for students that take one as an input.
    """
    given = conditions_for(
        [row.text_ids for row in rows],
        prompts,
        layout.num_codebooks,
        drop_text_B=drop_text_B,
        drop_speaker_B=drop_speaker_B,
    )
    if scale_index is not None:
        given = Conditions(given.text_BL, given.prompt_BKP, given.prompt_mask_BP, torch.full((len(rows),), scale_index))
    inputs, targets, mask = lay_out([row.codes_KT for row in rows], layout)
    return LMBatch(given, inputs, targets, mask, torch.arange(len(rows)) if row_B is None else row_B)
