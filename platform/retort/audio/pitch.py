"""The fundamental frequency of speech, frame by frame: pYIN (Mauch and Dixon, ICASSP 2014) as librosa has it."""

import torch
from torch import Tensor

LOWEST_HZ, HIGHEST_HZ = 60.0, 400.0
_FRAME_S = 0.064


def f0_track(samples_N: Tensor, sample_rate: int, *, hop_samples: int, resolution: float = 0.2) -> Tensor:
    """Fundamental frequency [T] in Hz, fp64, T = 1 + N // hop_samples; 0 where a frame is not voiced.

    Args:
        samples_N: mono.
        sample_rate: Hz.
        hop_samples: frame ``t`` is centred on sample ``t * hop_samples``, as those of a log-mel are.
        resolution: of the tracker's pitches, in semitones; halving it takes three times as long.
    """
    import librosa

    frame = 2 ** round(torch.tensor(_FRAME_S * sample_rate).log2().item())
    f0_T, voiced_T, _ = librosa.pyin(
        samples_N.detach().cpu().float().numpy(),
        fmin=LOWEST_HZ,
        fmax=HIGHEST_HZ,
        sr=sample_rate,
        frame_length=frame,
        hop_length=hop_samples,
        resolution=resolution,
    )
    f0_T[~voiced_T] = 0.0
    return torch.from_numpy(f0_T)
