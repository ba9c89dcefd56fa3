"""What a voice is filtered from: a train of pulses at its pitch, with all harmonics below half the sample rate.

The sum of the harmonics has a closed form, Dirichlet's kernel, so that a sample costs two sines, however deep the voice
is; the sine generators of neural source-filter models (Wang et al., arXiv 1904.12088) pay for each harmonic.
"""

import math

import torch
from torch import Tensor

_TINY = 1e-4


def pulse_train(pitch_BT: Tensor, start_B: Tensor, *, hop: int, sample_rate: int) -> tuple[Tensor, Tensor]:
    """Pulses of mean power 1 from one frame's centre to the last one's, and the phase reached there.

    Args:
        pitch_BT: Hz at the centres of frames; between them it is interpolated.
        start_B: phase at the first centre, in turns.
        hop: samples from centre to centre.
        sample_rate: Hz.

    Returns:
        Samples [B, (T - 1) * hop], and the phase [B] at their end, in turns below 1.
    """
    steps_N = torch.arange(hop, device=pitch_BT.device, dtype=torch.float64) / hop
    begin_BT1, end_BT1 = pitch_BT[:, :-1, None].double(), pitch_BT[:, 1:, None].double()
    pitch_BTN = begin_BT1 + (end_BT1 - begin_BT1) * steps_N
    turns_BN = torch.cat([start_B[:, None].double(), pitch_BTN.flatten(1) / sample_rate], dim=1).cumsum(dim=1)
    phase_BN = turns_BN[:, :-1]
    phase_BN = (phase_BN - phase_BN.round()).float()
    pitch_BN = pitch_BTN.flatten(1).float()
    harmonics_BN = (0.5 * sample_rate / pitch_BN).ceil().sub(1.0).clamp(min=1.0)
    below_BN = torch.sin(math.pi * phase_BN)
    above_BN = torch.sin(math.pi * (2.0 * harmonics_BN + 1.0) * phase_BN)
    is_peak_BN = below_BN.abs() < _TINY
    sum_BN = torch.where(is_peak_BN, 2.0 * harmonics_BN + 1.0, above_BN / torch.where(is_peak_BN, 1.0, below_BN))
    # The sum of H cosines has the mean power H / 2.
    return 0.5 * (sum_BN - 1.0) * torch.rsqrt(0.5 * harmonics_BN), turns_BN[:, -1] % 1.0
