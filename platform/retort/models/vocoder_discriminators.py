"""Networks that tell made sound from recordings by their short-time spectra, at several resolutions.

The multi-resolution discriminator of UnivNet (Jang et al., arXiv 2106.07889, section 2.2), on log magnitudes, with few
channels: a vocoder with a harmonic source does not need its phases judged, and on CPUs this is what is affordable.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from retort.audio.spectra import Resolution, magnitudes

_SLOPE = 0.1


Judged = list[tuple[Tensor, list[Tensor]]]
"""For each resolution a judgement [B, F', T], and what each layer saw."""


class SpectrumDiscriminator(nn.Module):
    """One resolution: two-dimensional convolutions, strided over frequency, over log magnitudes."""

    def __init__(self, resolution: Resolution, channels: int) -> None:
        super().__init__()
        self.resolution = resolution
        self.enter = nn.Conv2d(1, channels, (9, 3), stride=(4, 1), padding=(4, 1))
        self.layers = nn.ModuleList(
            nn.Conv2d(channels, channels, (5, 3), stride=(stride, 1), padding=(2, 1)) for stride in (2, 2, 1)
        )
        self.leave = nn.Conv2d(channels, 1, 3, padding=1)

    def forward(self, samples_BN: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Judgement [B, F', T], and what each layer saw."""
        x_BCFT = magnitudes(samples_BN, self.resolution).log()[:, None].to(self.leave.weight)
        seen = []
        for layer in (self.enter, *self.layers):
            x_BCFT = functional.leaky_relu(layer(x_BCFT), _SLOPE)
            seen.append(x_BCFT)
        judged_BFT: Tensor = self.leave(x_BCFT)[:, 0]
        return judged_BFT.float(), seen


class VocoderDiscriminator(nn.Module):
    """One :class:`SpectrumDiscriminator` for each resolution."""

    def __init__(self, resolutions: Sequence[Resolution], channels: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(SpectrumDiscriminator(resolution, channels) for resolution in resolutions)

    def forward(self, samples_BN: Tensor) -> Judged:
        """Of samples [B, N]."""
        return [part(samples_BN) for part in self.parts]


def discriminator_loss(of_true: Judged, of_made: Judged) -> Tensor:
    """Hinge loss (Lim and Ye, arXiv 1705.02894): recordings above 1, made sound below -1."""
    terms = [
        functional.relu(1.0 - true).mean() + functional.relu(1.0 + made).mean()
        for (true, _), (made, _) in zip(of_true, of_made, strict=True)
    ]
    return torch.stack(terms).mean()


def deception_loss(of_made: Judged) -> Tensor:
    """What the vocoder loses where its sound is told from a recording; hinge, its generator's side."""
    return torch.stack([-made.mean() for made, _ in of_made]).mean()


def feature_distance(of_true: Judged, of_made: Judged) -> Tensor:
    """Mean absolute difference of what the layers see (Kumar et al., arXiv 1910.06711, equation 3)."""
    terms = [
        functional.l1_loss(made.float(), true.detach().float())
        for (_, true_seen), (_, made_seen) in zip(of_true, of_made, strict=True)
        for true, made in zip(true_seen, made_seen, strict=True)
    ]
    return torch.stack(terms).mean()
