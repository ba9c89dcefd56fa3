"""What a denoiser of mels is conditioned on, and how the condition is dropped."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class MelConditions:
    """What the denoiser is conditioned on; every row has at least one valid mel frame.

    Attributes:
        latents_BLD: states of the codec LM, one per codec frame, padded on the right; any value beyond the length.
        latent_lengths_B: codec frames of each row; a row of 0 uses the learned unconditioned latent.
        voice_BPM: raw log-mel of another utterance of the speaker; any value where ``voice_mask_BP`` is off.
        voice_mask_BP: True where the reference holds a frame; an all-False row uses the learned unconditioned voice.
        mask_BT: True where there is a mel frame; the valid frames are the first ones of a row.
    """

    latents_BLD: Tensor
    latent_lengths_B: Tensor
    voice_BPM: Tensor
    voice_mask_BP: Tensor
    mask_BT: Tensor

    def dropped(self, drop_B: Tensor | None = None) -> "MelConditions":
        """The same rows with latents and voice replaced by their nulls where ``drop_B`` is True; all rows if None."""
        if drop_B is None:
            drop_B = torch.ones_like(self.latent_lengths_B, dtype=torch.bool)
        lengths_B = self.latent_lengths_B.masked_fill(drop_B, 0)
        voice_mask_BP = self.voice_mask_BP & ~drop_B[:, None]
        return MelConditions(self.latents_BLD, lengths_B, self.voice_BPM, voice_mask_BP, self.mask_BT)

    @staticmethod
    def cat(parts: Sequence["MelConditions"]) -> "MelConditions":
        """Stack rows of equal padding."""
        return MelConditions(
            torch.cat([p.latents_BLD for p in parts]),
            torch.cat([p.latent_lengths_B for p in parts]),
            torch.cat([p.voice_BPM for p in parts]),
            torch.cat([p.voice_mask_BP for p in parts]),
            torch.cat([p.mask_BT for p in parts]),
        )

    def to(self, device: torch.device) -> "MelConditions":
        """Move every tensor."""
        return MelConditions(
            self.latents_BLD.to(device),
            self.latent_lengths_B.to(device),
            self.voice_BPM.to(device),
            self.voice_mask_BP.to(device),
            self.mask_BT.to(device),
        )


def pad_conditions(
    latents: Sequence[Tensor], voices: Sequence[Tensor | None], num_frames: Sequence[int], num_mels: int
) -> MelConditions:
    """Rows of unequal length as one batch.

    Args:
        latents: [L_i, D] each.
        voices: raw log-mel [P_i, num_mels] each; None is the unconditioned voice.
        num_frames: valid mel frames T_i.
        num_mels: M.
    """
    frames_B = torch.tensor(list(num_frames))
    lengths_B = torch.tensor([len(row) for row in latents])
    L, P = max(1, int(lengths_B.max())), max([1, *(len(v) for v in voices if v is not None)])
    empty_PM = torch.zeros(0, num_mels)
    given = [empty_PM if v is None else v.float() for v in voices]
    voice_lengths_B = torch.tensor([len(v) for v in given])
    return MelConditions(
        torch.stack([functional.pad(row, (0, 0, 0, L - len(row))) for row in latents]),
        lengths_B,
        torch.stack([functional.pad(v, (0, 0, 0, P - len(v))) for v in given]),
        torch.arange(P) < voice_lengths_B[:, None],
        torch.arange(int(frames_B.max())) < frames_B[:, None],
    )


def latents_at_frames(latents_BLD: Tensor, latent_lengths_B: Tensor, mask_BT: Tensor) -> Tensor:
    """Latents interpolated linearly to the mel frames, [B, T, D]; the only place where their lengths meet.

    The L latents of a row cover its T valid frames evenly: frame t lies at latent ``(t + 1/2) L / T - 1/2``, held at
    the ends. Each row is stretched by its own lengths, so padding changes nothing (METHODS.md, trap 27).
    """
    frames_B = mask_BT.sum(1).clamp_min(1)
    last_B1 = (latent_lengths_B - 1).clamp_min(0)[:, None]
    centre_T = torch.arange(mask_BT.shape[1], device=mask_BT.device) + 0.5
    position_BT = centre_T * (latent_lengths_B / frames_B)[:, None] - 0.5
    position_BT = torch.minimum(position_BT.clamp_min(0.0), last_B1.to(position_BT.dtype))
    before_BT = position_BT.long()
    after_BT = torch.minimum(before_BT + 1, last_B1)
    weight_BT1 = (position_BT - before_BT)[..., None].to(latents_BLD.dtype)
    rows_B1 = torch.arange(latents_BLD.shape[0], device=latents_BLD.device)[:, None]
    return torch.lerp(latents_BLD[rows_B1, before_BT], latents_BLD[rows_B1, after_BT], weight_BT1)
