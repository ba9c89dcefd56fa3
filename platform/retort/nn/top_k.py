"""The shape of a truncated distribution, shared by the losses that use it and the cache that stores it."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class TopK:
    """The k most probable tokens of a distribution and the mass of the rest.

    Attributes:
        ids: token ids [..., k].
        log_probs: their log-probabilities [..., k], fp32.
        log_tail: log of the remaining mass [...]; very negative where nothing remains.
    """

    ids: Tensor
    log_probs: Tensor
    log_tail: Tensor
