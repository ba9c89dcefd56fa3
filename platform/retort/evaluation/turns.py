"""Turns of systems that are timed: a machine whose speed changes, changes it for all of them.

A round gives each system one turn, in the order of the round before backwards, so that a steady drift favours nobody.
A turn lasts its share of the window: a call of a few milliseconds is made many times in it, and the median call is the
round's. Rounds, not calls, are what intervals are drawn from: calls just after each other are no independent witnesses.
"""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

Clock = Callable[[], float]
"""Seconds."""
Figures = Mapping[str, float]
"""What one call, or one turn, took, by name."""
Round = Mapping[str, Figures | None]
"""What the turn of each system took in one round; None for a turn that had a failed call."""


@dataclass(frozen=True)
class Turns:
    """How long systems are timed.

    Attributes:
        rounds: turns of each.
        window_s: seconds of all turns of one system together, at least.
        budget_s: no round but the first begins after so many seconds, with the warming up among them.
    """

    rounds: int
    window_s: float
    budget_s: float


def take_turns(tasks: Mapping[str, Callable[[int], Figures | None]], turns: Turns, clock: Clock) -> Iterator[Round]:
    """Call every task for a while in each round, after one call each that warms it up and is forgotten.

    Args:
        tasks: by name; each is given the number of the round, and says what it took, or None where it failed.
        turns: how long.
        clock: what the window and the budget are measured by.

    Yields each round when it is over.
    """
    begin = clock()
    for task in tasks.values():
        task(0)
    order = list(tasks)
    for number in range(turns.rounds):
        if number and clock() - begin >= turns.budget_s:
            break
        yield {name: _turn(tasks[name], number, turns.window_s / turns.rounds, clock) for name in order}
        order.reverse()


def _turn(task: Callable[[int], Figures | None], number: int, seconds: float, clock: Clock) -> Figures | None:
    until, calls = clock() + seconds, list[Figures]()
    while not calls or clock() < until:
        figures = task(number)
        if figures is None:
            return None
        calls.append(figures)
    return {name: statistics.median(figures[name] for figures in calls) for name in calls[0]}


def turns_of(rounds: Sequence[Round], system: str) -> list[Figures | None]:
    """The turns of one system, round by round."""
    return [each[system] for each in rounds]


def column(found: Sequence[Figures | None], name: str) -> list[float | None]:
    """One figure of one system's turns; None for those that do not have it."""
    return [None if figures is None else figures.get(name) for figures in found]
