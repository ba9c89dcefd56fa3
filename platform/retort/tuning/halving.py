"""Asynchronous successive halving among trials that are no larger (Li et al. 2020, arXiv:1810.05934)."""

import math
from dataclasses import dataclass, field


@dataclass
class SuccessiveHalving:
    """Decides at rungs whether a trial goes on; nobody waits for anybody.

    Attributes:
        first_rung: steps of the first rung; each next one is ``reduction`` times later.
        reduction: the best 1/reduction of what a rung has seen go on.
        min_peers: earlier trials that a rung needs before it stops one.
    """

    first_rung: int
    reduction: float
    min_peers: int
    _rungs: dict[int, dict[int, tuple[float, float]]] = field(default_factory=dict)

    def goes_on(self, trial: int, *, step: int, value: float, size: float) -> bool:
        """Take in a figure of a running trial and say whether it goes on.

        Args:
            trial: its number.
            step: training steps done.
            value: lower is better.
            size: of its model. Trials with larger models are no peers: they would always win.
        """
        if step < self.first_rung:
            return True
        number = math.floor(math.log(step / self.first_rung, self.reduction) + 1e-9)
        rung = self._rungs.setdefault(number, {})
        if trial in rung:
            return True
        peers = [other for other, other_size in rung.values() if other_size <= size]
        rung[trial] = (value, size)
        if len(peers) < self.min_peers or math.isnan(value):
            return not math.isnan(value)
        better = sum(other < value for other in peers)
        return better < math.ceil((len(peers) + 1) / self.reduction)
