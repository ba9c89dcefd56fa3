"""What a codec language model is conditioned on, and how a condition is dropped."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TEXT_PAD = 0
TEXT_NULL = 1
"""Reserved text ids; a text dropped for guidance is the one-token sequence ``[TEXT_NULL]``."""


@dataclass(frozen=True)
class Conditions:
    """What the model is conditioned on.

    Attributes:
        text_BL: text ids, padded with ``TEXT_PAD`` on the left.
        prompt_BKP: codes of another utterance of the speaker, without delay; any value where ``prompt_mask_BP`` is off.
        prompt_mask_BP: True where the prompt holds a frame; an all-False row uses the learned null speaker.
        scale_B: index into ``guidance_scales`` for students that take the scale as an input, else None.
    """

    text_BL: Tensor
    prompt_BKP: Tensor
    prompt_mask_BP: Tensor
    scale_B: Tensor | None = None

    def dropped(self, *, text: bool, speaker: bool) -> "Conditions":
        """The same rows with text, speaker or both replaced by their nulls."""
        text_BL, mask = self.text_BL, self.prompt_mask_BP
        if text:
            text_BL = torch.full_like(text_BL, TEXT_PAD)
            text_BL[:, -1] = TEXT_NULL
        if speaker:
            mask = torch.zeros_like(mask)
        return Conditions(text_BL, self.prompt_BKP, mask, self.scale_B)

    def row(self, b: int) -> "Conditions":
        """One row by itself, without padding."""
        text_L, frames = self.text_BL[b], int(self.prompt_mask_BP[b].sum())
        scale_B = None if self.scale_B is None else self.scale_B[b : b + 1]
        return Conditions(
            text_L[text_L != TEXT_PAD][None],
            self.prompt_BKP[b : b + 1, :, : max(1, frames)],
            self.prompt_mask_BP[b : b + 1, : max(1, frames)],
            scale_B,
        )

    @staticmethod
    def cat(parts: Sequence["Conditions"]) -> "Conditions":
        """Stack rows of equal padding."""
        scales = [p.scale_B for p in parts]
        return Conditions(
            torch.cat([p.text_BL for p in parts]),
            torch.cat([p.prompt_BKP for p in parts]),
            torch.cat([p.prompt_mask_BP for p in parts]),
            None if any(s is None for s in scales) else torch.cat([s for s in scales if s is not None]),
        )

    def to(self, device: torch.device) -> "Conditions":
        """Move every tensor."""
        scale_B = None if self.scale_B is None else self.scale_B.to(device)
        return Conditions(self.text_BL.to(device), self.prompt_BKP.to(device), self.prompt_mask_BP.to(device), scale_B)
