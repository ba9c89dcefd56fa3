"""Sampling from logits: temperature, then top-k, then top-p, then Gumbel-max with counter-based noise."""

from pydantic import Field
from torch import Tensor

from retort.config import Config
from retort.nn.random import gumbel

_NEVER = -1e30


class SamplerConfig(Config):
    """How tokens are drawn. Recorded with everything that was drawn with it."""

    temperature: float = Field(default=1.0, ge=0)
    """0 is greedy."""
    top_k: int | None = Field(default=None, ge=1)
    top_p: float | None = Field(default=None, gt=0, le=1)


def restrict(logits: Tensor, config: SamplerConfig) -> Tensor:
    """Temper and cut the logits [..., V]; tokens outside top-k or top-p get a finite, never-chosen value."""
    logits = logits.float()
    if config.temperature > 0:
        logits = logits / config.temperature
    if config.top_k is not None and config.top_k < logits.shape[-1]:
        threshold = logits.topk(config.top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < threshold, _NEVER)
    if config.top_p is not None and config.top_p < 1.0:
        ordered, order = logits.sort(dim=-1, descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        logits = logits.masked_fill((before >= config.top_p).gather(-1, order.argsort(-1)), _NEVER)
    return logits


def sample(logits_BKV: Tensor, config: SamplerConfig, *, seed_B: Tensor, counter: int) -> Tensor:
    """Draw one token per row and codebook, [B, K]; a row's draw depends on its own seed and counter alone."""
    logits = restrict(logits_BKV, config)
    if config.temperature == 0:
        return logits.argmax(-1)
    noise = gumbel(seed_B, counter, tuple(logits.shape[1:]))
    return (logits + noise).argmax(-1)


def forbid_illegal(logits_BKV: Tensor, *, end_of_speech: bool = True) -> Tensor:
    """Only codebook 0 may end the speech (the last entry), and only where ``end_of_speech`` allows it."""
    logits_BKV = logits_BKV.float().clone()
    logits_BKV[:, int(end_of_speech) :, -1] = _NEVER
    return logits_BKV
