"""What a phone sounds like as a whole: means over its frames."""

import torch
from torch import Tensor


def phone_melody(f0_T: Tensor, frames_P: Tensor) -> tuple[Tensor, Tensor]:
    """Melody of each phone.

    Args:
        f0_T: fundamental frequency in Hz; 0 where a frame is not voiced.
        frames_P: frames of each phone, together T.

    Returns:
        Mean ln(Hz) [P] over the voiced frames, fp32, 0 where there is none; and whether there is one [P].
    """
    voiced_T = f0_T > 0
    log_f0_T = torch.where(voiced_T, f0_T.double().clamp(min=1.0).log(), 0.0)
    count_P = _sums(voiced_T.double(), frames_P)
    return (_sums(log_f0_T, frames_P) / count_P.clamp(min=1.0)).float(), count_P > 0


def phone_energy(mel_TM: Tensor, frames_P: Tensor) -> Tensor:
    """Loudness of each phone [P], fp32: mean over its frames of the ln of the L2 norm of the mel amplitudes.

    Args:
        mel_TM: natural-log mel.
        frames_P: frames of each phone, none of them 0, together T.
    """
    energy_T = 0.5 * torch.logsumexp(2.0 * mel_TM.double(), dim=1)
    return (_sums(energy_T, frames_P) / frames_P).float()


def _sums(values_T: Tensor, frames_P: Tensor) -> Tensor:
    assert int(frames_P.sum()) == len(values_T), "phones fill an utterance"
    phone_T = torch.arange(len(frames_P)).repeat_interleave(frames_P)
    return torch.zeros(len(frames_P), dtype=values_T.dtype).index_add_(0, phone_T, values_T)
