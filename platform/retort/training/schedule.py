"""Optimizer settings and the learning-rate schedule, as plain functions of the step."""

import math
from typing import Literal

from pydantic import Field
from torch import nn

from retort.config import Config


class OptimizerConfig(Config):
    """AdamW with a linear warm-up and a decay."""

    learning_rate: float = Field(gt=0)
    warmup_steps: int = Field(default=0, ge=0)
    final_fraction: float = Field(default=0.1, ge=0, le=1)
    """Learning rate at the last step, as a fraction of the peak."""
    decay: Literal["cosine", "linear"] = "cosine"
    """From the peak to ``final_fraction``; linear to 0 is what progressive distillation uses (METHODS.md 2.4)."""
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = Field(default=0.1, ge=0)
    gradient_clip: float = Field(default=1.0, gt=0)
    """Largest global gradient norm."""
    accumulation: int = Field(default=1, ge=1)
    """Micro-batches per step."""
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Decay of the averaged weights that are saved for use; ``None`` saves the last weights."""


def learning_rate_at(step: int, num_steps: int, config: OptimizerConfig) -> float:
    """Learning rate of 0-based ``step``: linear from 1/warm-up to the peak, then ``decay`` to ``final_fraction``."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, num_steps - 1 - config.warmup_steps)
    done = min(1.0, progress)
    left = 0.5 * (1.0 + math.cos(math.pi * done)) if config.decay == "cosine" else 1.0 - done
    return config.learning_rate * (config.final_fraction + (1.0 - config.final_fraction) * left)


def keeps_learning_rates(done: int, num_steps: int, other: int, config: OptimizerConfig) -> bool:
    """Whether the first ``done`` steps have the same learning rates in runs of ``num_steps`` and of ``other`` steps."""
    return num_steps == other or config.final_fraction == 1.0 or done <= config.warmup_steps


def ema_decay_at(step: int, decay: float) -> float:
    """Decay of the weight average after 0-based ``step``; small at first, so that the start is forgotten."""
    return min(decay, (1.0 + step) / (10.0 + step))


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Matrices decay; vectors (norms, biases, null conditions) and embeddings do not."""
    embeddings = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for parameter in module.parameters():
        if parameter.requires_grad:
            target = decayed if parameter.ndim >= 2 and id(parameter) not in embeddings else plain
            target.append(parameter)
    groups: list[dict[str, object]] = [{"params": decayed, "weight_decay": weight_decay}]
    if plain:
        groups.append({"params": plain, "weight_decay": 0.0})
    return groups
