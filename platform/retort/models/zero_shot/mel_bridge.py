"""From our log-mels to the features that a frozen speaker encoder listens to, differentiably (METHODS.md, trap 36).

A speaker encoder has a front-end of its own: other filters, another hop. What our mel says of the spectrum is spread
over frequency by linear interpolation between the filters' centres, squared, gathered by the encoder's filters, and
interpolated in time. What falls into one of our filters is averaged before it is squared, so this is not the encoder's
own front-end; tests say how near the voices are that come of both.
"""

import torch
from torch import Tensor
from torch.nn import functional

from retort.audio.mel import MelConfig, mel_filters, window

_RAYLEIGH = 4.0 / torch.pi
"""Mean power over squared mean magnitude of noise."""


class MelBridge:
    """Log-mels of one kind to powers in filters of another.

    Args:
        mel: of the log-mels; its audio must have the encoder's sample rate.
        filters_KF: of the encoder, on the power of ``F`` bins from 0 to half the sample rate.
        window_N: of the encoder.
        hop_samples: of the encoder.
        first_centre_samples: sample that the encoder's first frame is centred on.
    """

    def __init__(
        self,
        mel: MelConfig,
        filters_KF: Tensor,
        window_N: Tensor,
        *,
        hop_samples: int,
        first_centre_samples: int = 0,
    ) -> None:
        ours_MF = mel_filters(mel).double()
        ours_hz_F = torch.linspace(0, mel.sample_rate / 2, ours_MF.shape[1], dtype=torch.float64)
        weight_M = ours_MF.sum(1)
        # A filter that holds no bin says nothing; its neighbours speak for it.
        kept = weight_M > 0
        centres_M = (ours_MF @ ours_hz_F)[kept] / weight_M[kept]
        theirs_hz_F = torch.linspace(0, mel.sample_rate / 2, filters_KF.shape[1], dtype=torch.float64)
        ours_window = window(mel).double().square().sum()
        scale = _RAYLEIGH * window_N.double().square().sum() / ours_window
        spread_FM = torch.zeros(len(theirs_hz_F), len(weight_M), dtype=torch.float64)
        spread_FM[:, kept] = _interpolation(centres_M, theirs_hz_F)
        level_FM = torch.zeros(len(ours_hz_F), len(weight_M), dtype=torch.float64)
        level_FM[:, kept] = _interpolation(centres_M, ours_hz_F)
        self.mel, self.hop_samples, self.first_centre_samples = mel, hop_samples, first_centre_samples
        self._weight_M = weight_M.clamp_min(1e-12).float()
        self._gather_MK = (scale * (filters_KF.double() @ spread_FM)).T.float()
        # Parseval: the power of the samples under the window, from one side of the spectrum.
        self._level_M = (_RAYLEIGH * 2.0 / (mel.fft_size * ours_window) * level_FM.sum(0)).float()

    def powers(self, log_mel_BTM: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Powers [B, T', K] at the encoder's frames, 0 beyond a row's end, and which frames are valid, [B, T'].

        Args:
            log_mel_BTM: natural log of mel amplitudes; any value outside the mask.
            mask_BT: True where there is a frame; the valid frames are the first ones of a row.
        """
        device = log_mel_BTM.device
        squared_BTM = self._squared(log_mel_BTM, mask_BT)
        powers_BTK = squared_BTM @ self._gather_MK.to(device)
        last = (mask_BT.shape[1] - 1) * self.mel.hop_samples - self.first_centre_samples
        num_frames = 1 + max(0, last) // self.hop_samples
        centre_T = torch.arange(num_frames, device=device) * self.hop_samples + self.first_centre_samples
        position_T = (centre_T / self.mel.hop_samples).clamp(0, mask_BT.shape[1] - 1)
        before_T = position_T.floor().long()
        after_T = position_T.ceil().long()
        valid_BT = mask_BT[:, after_T]
        weight_T1 = (position_T - before_T)[:, None]
        between_BTK = torch.lerp(powers_BTK[:, before_T], powers_BTK[:, after_T], weight_T1)
        return between_BTK * valid_BT[..., None], valid_BT

    def level(self, log_mel_BTM: Tensor, mask_BT: Tensor) -> Tensor:
        """Mean square of the samples [B] that these mels are of, where full scale is 1."""
        frames_BT = self._squared(log_mel_BTM, mask_BT) @ self._level_M.to(log_mel_BTM.device)
        return frames_BT.sum(1) / mask_BT.sum(1).clamp_min(1)

    def _squared(self, log_mel_BTM: Tensor, mask_BT: Tensor) -> Tensor:
        """Squared mean magnitude under each filter, [B, T, M]."""
        mel_BTM = log_mel_BTM.float().masked_fill(~mask_BT[..., None], -torch.inf)
        return (mel_BTM.exp() / self._weight_M.to(mel_BTM.device)).square()


def _interpolation(known: Tensor, asked: Tensor) -> Tensor:
    """The matrix [asked, known] of linear interpolation, held at the ends."""
    after = torch.searchsorted(known, asked).clamp(1, len(known) - 1)
    before = after - 1
    weight = ((asked - known[before]) / (known[after] - known[before])).clamp(0, 1)
    rows = functional.one_hot(before, len(known)) * (1 - weight)[:, None]
    return rows + functional.one_hot(after, len(known)) * weight[:, None]
