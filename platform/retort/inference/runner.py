"""The seam between scheduling and arithmetic: a runner holds slots, and advances the chosen ones by one step.

:mod:`retort.inference.engine` decides who decodes and when to stop. A runner owns what must be fast: keys and values,
the rows that guidance adds, sampling, the delay pattern, the end of speech, and feeding tokens back.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from retort.inference.sampling import SamplerConfig
from retort.models.codec_lm import CodecLM, CodecLMConfig
from retort.nn.conditions import Conditions
from retort.nn.guidance import Guidance
from retort.nn.guided_rows import for_condition

MAX_CONDITIONS = 4
BROKEN = -1
"""The token of codebook 0 where the logits are not numbers; the utterance must not be stepped again."""


@dataclass(frozen=True)
class Plan:
    """Everything that decoding one utterance needs.

    Attributes:
        prefixes: embedded condition [C_i, D] for each condition of the guidance, without padding.
        coefficients: of the guidance, in the same order.
        sampler: how tokens are drawn.
        seed: of the draws; with the step number it decides every one of them.
        max_frames: frames after which the utterance is cut.
        may_end: False forbids the end of speech, so that all ``max_frames`` are decoded (for timing).
    """

    prefixes: tuple[Tensor, ...]
    coefficients: tuple[float, ...]
    sampler: SamplerConfig
    seed: int
    max_frames: int
    may_end: bool = True

    @property
    def num_columns(self) -> int:
        """Cache columns of the longest condition, without the audio."""
        return max(prefix.shape[0] for prefix in self.prefixes)


class Runner(Protocol):
    """Decodes up to ``max_slots`` utterances. A slot's tokens do not depend on the other slots."""

    @property
    def config(self) -> CodecLMConfig:
        """Shape of the model."""
        ...

    @property
    def max_slots(self) -> int:
        """Utterances at once."""
        ...

    @property
    def max_conditions(self) -> int:
        """Conditions that a plan may have."""
        ...

    @property
    def max_columns(self) -> int:
        """Longest condition and audio together, in columns."""
        ...

    @property
    def is_static(self) -> bool:
        """Whether a step takes as long for one slot as for all of them."""
        ...

    def warm_up(self) -> None:
        """Make ready whatever a first request would have to wait for."""
        ...

    def admit(self, slot: int, plan: Plan) -> None:
        """Run the conditions of a plan and put it at its first step; whatever the slot held is forgotten."""
        ...

    def step(self, slots: Sequence[int], *, keep_guided: bool = False) -> tuple[Tensor, Tensor | None]:
        """Advance the chosen slots by one step.

        Returns:
            The tokens [n, K], int64, as they are fed back: the end of speech, fill where there is no code, else a code;
            ``BROKEN`` for codebook 0 where a logit is infinite or not a number.
            With ``keep_guided`` also the guided logits [n, K, V + 1] in fp32 that they were drawn from.
        """
        ...


@torch.inference_mode()
def plan_for(
    model: CodecLM,
    condition: Conditions,
    *,
    guidance: Guidance,
    sampler: SamplerConfig,
    seed: int,
    max_frames: int,
    may_end: bool = True,
) -> Plan:
    """The plan of one utterance.

    Args:
        model: whose embeddings are used.
        condition: one row.
        guidance: how its conditions combine.
        sampler: how tokens are drawn.
        seed: of the draws.
        max_frames: limit.
        may_end: see :class:`Plan`.
    """
    names = guidance.conditions
    prefixes = []
    for name in names:
        embedded_1CD, valid_1C = model.embed_conditions(for_condition(condition, name))
        prefixes.append(embedded_1CD[0][valid_1C[0]])
    coefficients = tuple(guidance.coefficients[name] for name in names)
    return Plan(tuple(prefixes), coefficients, sampler, seed, max_frames, may_end)
