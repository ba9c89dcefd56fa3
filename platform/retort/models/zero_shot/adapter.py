"""The cross-attention variation adapter: how the content is spoken, as the prompt's frames say it."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from retort.models.zero_shot.config import FeatureScales, ZeroShotConfig
from retort.nn.dropout import Dropout
from retort.nn.masked_layers import ChannelNorm, MaskedConv
from retort.nn.phone_conditions import SpokenPhones
from retort.nn.transformer import attend


@dataclass(frozen=True)
class Variation:
    """What the predictors say of each phone, scaled; any value beyond the mask.

    Attributes:
        log_frames_BP: ln(1 + frames).
        log_f0_BP: ln(Hz).
        voiced_BP: logit.
        energy_BP: ln of the mel's L2 norm.
    """

    log_frames_BP: Tensor
    log_f0_BP: Tensor
    voiced_BP: Tensor
    energy_BP: Tensor


class CrossAttention(nn.Module):
    """Queries are phones, keys and values are style frames; onto the residual, and normalised."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query, self.key_value = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, dim)
        self.norm = ChannelNorm(dim)

    def forward(self, content_BDP: Tensor, style_BSD: Tensor, style_mask_BS: Tensor) -> Tensor:
        """Content that knows the style, [B, D, P]."""
        query_BPD = content_BDP.transpose(1, 2)
        key_BSD, value_BSD = self.key_value(style_BSD).chunk(2, dim=-1)
        query, key, value = (self._heads(x) for x in (self.query(query_BPD), key_BSD, value_BSD))
        attended_BHPD = attend(query, key, value, style_mask_BS[:, None, None, :])
        attended_BPD = self.out(attended_BHPD.transpose(1, 2).flatten(2))
        return self.norm((query_BPD + attended_BPD).transpose(1, 2))  # type: ignore[no-any-return]

    def _heads(self, x_BSD: Tensor) -> Tensor:
        return x_BSD.view(*x_BSD.shape[:2], self.num_heads, -1).transpose(1, 2)


class VariationAdapter(nn.Module):
    """Style by cross-attention, then durations, melody and loudness, which are predicted together.

    The predictors are told the timbre as well: how high a voice is, a d-vector says more plainly than frames do.
    """

    def __init__(self, config: ZeroShotConfig) -> None:
        super().__init__()
        D = config.dim
        self.scales = config.scales
        self.attention = CrossAttention(D, config.num_heads)
        self.timbre = nn.Linear(config.timbre_dim, D)
        self.predictor = _Predictor(config, 4)
        self.pitch_in, self.energy_in = nn.Conv1d(2, D, 1), nn.Conv1d(1, D, 1)

    def styled(self, content_BDP: Tensor, style_BSD: Tensor, style_mask_BS: Tensor) -> Tensor:
        """Content in the prompt's style, [B, D, P]."""
        return self.attention(content_BDP, style_BSD, style_mask_BS)  # type: ignore[no-any-return]

    def predict(self, styled_BDP: Tensor, timbre_BE: Tensor, mask_B1P: Tensor, *, gradient: float) -> Variation:
        """What the predictors say.

        Args:
            styled_BDP: from :meth:`styled`.
            timbre_BE: scaled to variance 1.
            mask_B1P: True where there is a phone.
            gradient: share of their gradient that goes on into ``styled_BDP`` (METHODS.md, trap 41).
        """
        held_BDP = styled_BDP.detach()
        read_BDP = held_BDP + gradient * (styled_BDP - held_BDP) + self.timbre(timbre_BE)[..., None]
        return Variation(*self.predictor(read_BDP, mask_B1P).unbind(1))

    def adapt(self, styled_BDP: Tensor, spoken: Variation) -> Tensor:
        """Content with melody and loudness, [B, D, P]; ``voiced_BP`` above 0 is voiced."""
        voiced_BP = (spoken.voiced_BP > 0).to(styled_BDP.dtype)
        pitch_B2P = torch.stack([spoken.log_f0_BP.to(styled_BDP.dtype) * voiced_BP, voiced_BP], dim=1)
        energy_B1P = spoken.energy_BP[:, None].to(styled_BDP.dtype)
        return styled_BDP + self.pitch_in(pitch_B2P) + self.energy_in(energy_B1P)  # type: ignore[no-any-return]

    def targets(self, spoken: SpokenPhones) -> Variation:
        """What recordings say of their phones, in the predictors' scale; ``voiced_BP`` is 1 or -1."""
        return scaled_variation(spoken, self.scales)


def scaled_variation(spoken: SpokenPhones, scales: FeatureScales) -> Variation:
    """Durations, melody and loudness of recordings as predictors are to say them."""
    log_frames_BP = torch.log1p(spoken.frames_BP.float())
    return Variation(
        (log_frames_BP - scales.log_frames_mean) / scales.log_frames_std,
        (spoken.log_f0_BP - scales.log_f0_mean) / scales.log_f0_std,
        spoken.voiced_BP.float() * 2.0 - 1.0,
        (spoken.energy_BP - scales.energy_mean) / scales.energy_std,
    )


class _Predictor(nn.Module):
    def __init__(self, config: ZeroShotConfig, outputs: int) -> None:
        super().__init__()
        width = config.predictor_dim
        self.first, self.second = MaskedConv(config.dim, width, 3), MaskedConv(width, width, 3)
        self.first_norm, self.second_norm = ChannelNorm(width), ChannelNorm(width)
        self.leave = nn.Conv1d(width, outputs, 1)
        self.dropout = Dropout(config.dropout)

    def forward(self, x_BDP: Tensor, mask_B1P: Tensor) -> Tensor:
        x_BDP = self.dropout(self.first_norm(functional.silu(self.first(x_BDP, mask_B1P))))
        x_BDP = self.dropout(self.second_norm(functional.silu(self.second(x_BDP, mask_B1P))))
        return self.leave(x_BDP)  # type: ignore[no-any-return]
