"""What a zero-shot model is told: the phones, whose voice, and how they are spoken."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from retort.nn.phone_numbers import PADDING


@dataclass(frozen=True)
class SpokenPhones:
    """Phones in order, and of recordings how they are spoken; every row has at least one.

    Attributes:
        phones_BP: their numbers, ``PADDING`` beyond a row's end.
        frames_BP: mel frames of each, int64, 0 beyond a row's end; every phone has one at least.
        log_f0_BP: mean ln(Hz), 0 where a phone is not voiced.
        voiced_BP: whether a phone is voiced.
        energy_BP: mean ln of the L2 norm of a frame's mel amplitudes.
    """

    phones_BP: Tensor
    frames_BP: Tensor
    log_f0_BP: Tensor
    voiced_BP: Tensor
    energy_BP: Tensor

    @property
    def mask_BP(self) -> Tensor:  # noqa: N802 - shape suffix
        """True where there is a phone."""
        return self.phones_BP != PADDING

    def to(self, device: torch.device) -> "SpokenPhones":
        """Move every tensor."""
        return SpokenPhones(
            self.phones_BP.to(device),
            self.frames_BP.to(device),
            self.log_f0_BP.to(device),
            self.voiced_BP.to(device),
            self.energy_BP.to(device),
        )


@dataclass(frozen=True)
class VoicePrompt:
    """A short recording of each row's voice, of at least one frame.

    Attributes:
        mel_BSM: natural-log mel; any value outside the mask.
        mask_BS: True where there is a frame; the valid frames are the first ones of a row.
        timbre_BE: of the voice by a frozen speaker encoder, L2 norm 1.
    """

    mel_BSM: Tensor
    mask_BS: Tensor
    timbre_BE: Tensor

    def to(self, device: torch.device) -> "VoicePrompt":
        """Move every tensor."""
        return VoicePrompt(self.mel_BSM.to(device), self.mask_BS.to(device), self.timbre_BE.to(device))


def voice_prompts(mels: Sequence[Tensor], timbres: Sequence[Tensor]) -> VoicePrompt:
    """Log-mels [S_i, M] and timbres [E] of voices as one batch."""
    lengths_B = torch.tensor([len(mel_SM) for mel_SM in mels])
    mel_BSM = pad_sequence(list(mels), batch_first=True)
    return VoicePrompt(mel_BSM, torch.arange(mel_BSM.shape[1]) < lengths_B[:, None], torch.stack(list(timbres)))


def frames_of(frames_BP: Tensor) -> Tensor:
    """Which frames the phones fill, [B, T]: True up to a row's sum."""
    total_B = frames_BP.sum(1)
    return torch.arange(int(total_B.max()), device=frames_BP.device) < total_B[:, None]


def phones_at_frames(frames_BP: Tensor, num_frames: int) -> Tensor:
    """Which phone each frame belongs to, int64 [B, T]; beyond a row's end the last column."""
    ends_BP = frames_BP.cumsum(1)
    frame_T = torch.arange(num_frames, device=frames_BP.device)
    passed_BT = (frame_T[None, :, None] >= ends_BP[:, None, :]).sum(-1)
    return passed_BT.clamp_max(frames_BP.shape[1] - 1)
