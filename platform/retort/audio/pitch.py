"""The pitch of a voice, frame by frame: by autocorrelation, in batches while training, or by pYIN, with more care."""

import torch
from torch import Tensor
from torch.nn import functional

from retort.audio.librosa_parts import open_pitch_tracker
from retort.audio.mel import MelConfig

LOWEST_HZ, HIGHEST_HZ = 60.0, 500.0
_PERIODS = 3.0
_VOICED = 0.5
_OCTAVE_COST = 0.03
_SILENCE = 1e-3
_TRACKED_HZ = 400.0
_TRACKED_FRAME_S = 0.064


def measured_pitch(samples_BN: Tensor, config: MelConfig) -> Tensor:
    """Hz [B, T] at the frames of :func:`retort.audio.mel.log_mel`; 0 where nothing is voiced.

    From autocorrelation (after Boersma, IFA Proceedings 17, 1993).

    A frame is voiced if its sound, seen through a window of three periods of the lowest pitch, is like itself a period
    later: their correlation, corrected for the window, is above a half. A shorter period is preferred a little.

    Args:
        samples_BN: audio at ``config.sample_rate``; outside it counts as zero.
        config: whose frames.
    """
    rate, hop = config.sample_rate, config.hop_samples
    width = round(_PERIODS * rate / LOWEST_HZ)
    size = 1 << (2 * width - 1).bit_length()
    padded_BN = functional.pad(samples_BN.float(), (width // 2, width - width // 2))
    frames_BTW = padded_BN.unfold(-1, width, hop)[:, : 1 + samples_BN.shape[1] // hop]
    frames_BTW = frames_BTW - frames_BTW.mean(dim=-1, keepdim=True)
    window = torch.hann_window(width, device=samples_BN.device)
    shortest, longest = int(rate / HIGHEST_HZ), int(rate / LOWEST_HZ) + 1

    def correlation(x: Tensor) -> Tensor:
        power = torch.fft.rfft(x, n=size).abs().square()
        lags: Tensor = torch.fft.irfft(power, n=size)[..., : longest + 2]
        return lags / lags[..., :1].clamp(min=1e-9)

    like_BTL = correlation(frames_BTW * window) / correlation(window)
    lags_L = torch.arange(longest + 2, device=samples_BN.device)
    inner_BTL = like_BTL[..., 1:-1]
    is_peak_BTL = (inner_BTL > like_BTL[..., :-2]) & (inner_BTL >= like_BTL[..., 2:]) & (lags_L[1:-1] >= shortest)
    worth_BTL = inner_BTL - _OCTAVE_COST * torch.log2(lags_L[1:-1] * LOWEST_HZ / rate)
    best_BT1 = worth_BTL.masked_fill(~is_peak_BTL, -1.0).argmax(dim=-1, keepdim=True)
    before, at, after = (like_BTL.gather(-1, best_BT1 + shift)[..., 0] for shift in (0, 1, 2))
    # The top of the parabola through the three.
    shift_BT = 0.5 * (before - after) / (before - 2.0 * at + after).clamp(max=-1e-6)
    hz_BT = rate / (best_BT1[..., 0] + 1 + shift_BT.clamp(-0.5, 0.5))
    loud_BT = frames_BTW.square().mean(dim=-1).sqrt() > _SILENCE
    is_voiced_BT = loud_BT & (at > _VOICED) & is_peak_BTL.gather(-1, best_BT1)[..., 0]
    return torch.where(is_voiced_BT, hz_BT, 0.0)


def f0_track(samples_N: Tensor, sample_rate: int, *, hop_samples: int, resolution: float = 0.5) -> Tensor:
    """Fundamental frequency [T] in Hz, fp64, T = 1 + N // hop_samples; 0 where a frame is not voiced.

    pYIN (Mauch and Dixon, ICASSP 2014) as librosa has it.

    Args:
        samples_N: mono.
        sample_rate: Hz.
        hop_samples: frame ``t`` is centred on sample ``t * hop_samples``, as those of a log-mel are.
        resolution: of the tracker's pitches, in semitones; a fifth takes three times as long as a half.
    """
    frame = 2 ** round(torch.tensor(_TRACKED_FRAME_S * sample_rate).log2().item())
    f0_T, voiced_T, _ = open_pitch_tracker().pyin(
        samples_N.detach().cpu().float().numpy(),
        fmin=LOWEST_HZ,
        fmax=_TRACKED_HZ,
        sr=sample_rate,
        frame_length=frame,
        hop_length=hop_samples,
        resolution=resolution,
    )
    f0_T[~voiced_T] = 0.0
    return torch.from_numpy(f0_T)
