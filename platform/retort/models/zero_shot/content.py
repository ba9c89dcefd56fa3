"""What a phone takes from the source mel: a posterior while training, a volume-preserving flow prior while speaking.

The divergence is that of PortaSpeech and VITS (METHODS.md 4.2a): the entropy of the posterior is known, the prior's
density of a sample is that of the flow's noise, since the flow changes no volume (METHODS.md, trap 40).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from retort.models.zero_shot.config import ZeroShotConfig
from retort.nn.coupling_flow import CouplingFlow

_LOG_SCALE_LIMIT = 4.0


@dataclass(frozen=True)
class Content:
    """What is said and, of a source mel, how.

    Attributes:
        content_BDP: linguistic encoding and latents, fused.
        kl_BCP: single-sample divergence of the posterior from the prior, each phone and channel; 0 beyond the mask.
    """

    content_BDP: Tensor
    kl_BCP: Tensor


class ContentModel(nn.Module):
    """Posterior, flow prior and fusion."""

    def __init__(self, config: ZeroShotConfig) -> None:
        super().__init__()
        self.latent_dim = config.latent_dim
        self.posterior = nn.Conv1d(config.dim, 2 * config.latent_dim, 1)
        self.flow = CouplingFlow(
            config.latent_dim, config.dim, hidden_dim=config.flow_dim, num_couplings=config.num_couplings, num_layers=2
        )
        self.fuse = nn.Conv1d(config.latent_dim, config.dim, 1)

    def forward(self, said_BDP: Tensor, heard_BDP: Tensor, noise_BPC: Tensor, mask_B1P: Tensor) -> Content:
        """Content with latents drawn from the posterior.

        Args:
            said_BDP: linguistic encoding.
            heard_BDP: the source mel's encoding.
            noise_BPC: standard normal.
            mask_B1P: True where there is a phone.
        """
        mean_BCP, log_scale_BCP = self.posterior(heard_BDP).chunk(2, dim=1)
        log_scale_BCP = log_scale_BCP.clamp(-_LOG_SCALE_LIMIT, _LOG_SCALE_LIMIT)
        z_BCP = (mean_BCP + noise_BPC.transpose(1, 2).to(mean_BCP.dtype) * log_scale_BCP.exp()) * mask_B1P
        prior_BCP = self.flow(z_BCP, said_BDP, mask_B1P)
        kl_BCP = (0.5 * prior_BCP.float().square() - log_scale_BCP.float() - 0.5) * mask_B1P
        return Content(said_BDP + self.fuse(z_BCP), kl_BCP)

    def speak(self, said_BDP: Tensor, noise_BPC: Tensor, mask_B1P: Tensor) -> Tensor:
        """Content [B, D, P] with latents that the prior makes of noise, which may be scaled down."""
        noise_BCP = noise_BPC.transpose(1, 2).to(said_BDP.dtype) * mask_B1P
        return torch.add(said_BDP, self.fuse(self.flow.inverse(noise_BCP, said_BDP, mask_B1P)))
