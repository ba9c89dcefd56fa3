"""A day of listeners against the autoscaler's own policy: how many replicas, how long it waits, how much it refuses.

A fluid model in steps of a second: speech is asked for in audio seconds a second, a replica makes them at its own rate,
what exceeds that waits, and what exceeds the limit on waiting is refused. The number of replicas is the decision of
:class:`retort.serving.replica.AudioSecondsPolicy` itself, behind the delays that Ray Serve puts after it.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace

from retort.serving.replica import IN_FLIGHT, AudioSecondsPolicy
from retort.serving.settings import Limits, ServedModel

DAY_S = 86_400
_REPORTS = 3
"""Of its load that a replica makes in ``load_window_s``."""


@dataclass(frozen=True)
class Machine:
    """A replica.

    Attributes:
        audio_per_s: audio seconds that it makes in a second, all slots together.
        slots: utterances at once.
        start_s: from the decision to the first request that a new one takes.
        utterance_s: mean length of what is said.
    """

    audio_per_s: float
    slots: int
    start_s: float
    utterance_s: float


@dataclass(frozen=True)
class Day:
    """What a day came to.

    Attributes:
        asked_s, said_s, refused_s, left_s: audio seconds; the last is what waited at the end.
        replica_hours: of all replicas, those that start counted too.
        most: replicas at once.
        busy: share of what the replicas could have made.
        longest_wait_s: of a request that was not refused.
    """

    asked_s: float
    said_s: float
    refused_s: float
    left_s: float
    replica_hours: float
    most: int
    busy: float
    longest_wait_s: float

    @property
    def refused(self) -> float:
        """Share of what was asked for."""
        return self.refused_s / self.asked_s if self.asked_s else 0.0


def demand(mean_audio_per_s: float, *, peak: float, burst: float = 1.0, burst_at_s: int = 72_000) -> list[float]:
    """Audio seconds that are asked for in each second of a day.

    A sine from ``2 - peak`` to ``peak`` times the mean; ``burst`` times as much for ten minutes from one second to the
    next.

    Args:
        mean_audio_per_s: over the day, without the burst.
        peak: 1 to 2, at 20:00.
        burst: factor.
        burst_at_s: when.
    """
    asked = [
        mean_audio_per_s * (1 + (peak - 1) * math.cos(2 * math.pi * (second - 72_000) / DAY_S))
        for second in range(DAY_S)
    ]
    for second in range(burst_at_s, burst_at_s + 600):
        asked[second] *= burst
    return asked


def simulate(asked: Sequence[float], machine: Machine, model: ServedModel, limits: Limits) -> Day:
    """A day of ``asked``, from the number of replicas on that its first second needs."""
    policy, rate = AudioSecondsPolicy(model.target_audio_seconds), machine.audio_per_s / machine.slots
    ready, starting = max(model.min_replicas, math.ceil(asked[0] / machine.audio_per_s)), deque[int]()
    window: deque[float] = deque(maxlen=_REPORTS)
    every = max(1, round(model.load_window_s / _REPORTS))
    waiting = said = refused = hours = possible = longest = 0.0
    above = below = most = 0
    for second, new in enumerate(asked):
        while starting and starting[0] <= second:
            starting.popleft()
            ready += 1
        can = ready * machine.audio_per_s
        waiting += new
        now = min(waiting, can)
        waiting, said = waiting - now, said + now
        over = max(0.0, waiting - ready * limits.max_waiting_seconds)
        waiting, refused = waiting - over, refused + over
        present = ready + len(starting)
        hours, possible, most = hours + present / 3600, possible + can, max(most, present)
        longest = max(longest, waiting / can)
        if second % every:
            continue
        window.append(now * machine.utterance_s / rate + waiting)
        wanted = _wanted(policy, sum(window) / len(window), model)
        above, below = (above + every if wanted > present else 0), (below + every if wanted < present else 0)
        if above > model.upscale_delay_s:
            starting.extend([second + round(machine.start_s)] * (wanted - present))
            above = 0
        elif below > model.downscale_delay_s:
            ready, below = min(ready, wanted), 0
            while ready + len(starting) > wanted:
                starting.pop()
    return Day(sum(asked), said, refused, waiting, hours, most, said / possible, longest)


def _wanted(policy: AudioSecondsPolicy, in_flight_s: float, model: ServedModel) -> int:
    context = SimpleNamespace(
        aggregated_metrics={IN_FLIGHT: {"all": in_flight_s}},
        capacity_adjusted_min_replicas=model.min_replicas,
        capacity_adjusted_max_replicas=model.max_replicas,
    )
    return policy(context)[0]
