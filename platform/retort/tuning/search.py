"""Where the next trial of a sweep is: drawn, counted off a grid, or proposed by what earlier trials showed.

None of them keeps state on disk: what a searcher knows is told to it again from the finished trials.
"""

import itertools
import math
import random
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from pydantic import JsonValue

from retort.evaluation.metrics import OBJECTIVES, find_metric
from retort.run_config.space import Axis, Integers, LogUniform, Parameters, Uniform, values_of
from retort.run_config.tune import GridSearch, OptunaSearch, RandomSearch, TuneConfig

_ATTEMPTS = 20
"""Draws before a point that an earlier trial had is accepted: small spaces run out of new ones."""


class Searcher(Protocol):
    """Proposes points, and may learn from what they gave."""

    def propose(self, number: int) -> Parameters:
        """The point of trial ``number``; each number is asked for once."""
        ...

    def resume(self, number: int, parameters: Parameters) -> None:
        """A trial with these parameters was begun earlier and goes on now."""
        ...

    def learn(self, number: int, parameters: Parameters, values: Sequence[float] | None) -> None:
        """A trial has ended with these objectives; None for one that has none."""
        ...


class Drawn:
    """Random search: the point of a trial depends on the seed and the points before it, on no run's history.

    Args:
        space: the axes.
        seed: of the draws.
    """

    def __init__(self, space: Mapping[str, Axis], seed: int) -> None:
        self._space, self._seed = space, seed
        self._drawn: list[dict[str, JsonValue]] = []

    def propose(self, number: int) -> Parameters:
        """See :class:`Searcher`."""
        while len(self._drawn) <= number:
            self._drawn.append(self._new(len(self._drawn)))
        return self._drawn[number]

    def resume(self, number: int, parameters: Parameters) -> None:
        """Nothing to do."""

    def learn(self, number: int, parameters: Parameters, values: Sequence[float] | None) -> None:
        """Nothing to learn."""

    def _new(self, number: int) -> dict[str, JsonValue]:
        for attempt in range(_ATTEMPTS):
            generator = random.Random(f"{self._seed}:{number}:{attempt}")
            point = {name: _draw(axis, generator) for name, axis in self._space.items()}
            if point not in self._drawn:
                break
        return point


class Counted:
    """Grid search, the last axis fastest."""

    def __init__(self, space: Mapping[str, Axis]) -> None:
        self._names = list(space)
        self._points = list(itertools.product(*(_finite(axis) for axis in space.values())))

    def propose(self, number: int) -> Parameters:
        """See :class:`Searcher`."""
        return dict(zip(self._names, self._points[number], strict=True))

    def resume(self, number: int, parameters: Parameters) -> None:
        """Nothing to do."""

    def learn(self, number: int, parameters: Parameters, values: Sequence[float] | None) -> None:
        """Nothing to learn."""


class Proposed:
    """Optuna's TPE over the Pareto front.

    Args:
        space: the axes.
        objectives: what is compared.
        settings: of the search.
        seed: of the sampler. A sweep that was cut short goes on with other draws: the order in which trials end is
            not repeatable either.
    """

    def __init__(self, space: Mapping[str, Axis], objectives: Sequence[str], settings: OptunaSearch, seed: int) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space = space
        self._seen: list[Parameters] = []
        self._asked: dict[int, Any] = {}
        self._distributions = {name: _distribution(axis) for name, axis in space.items()}
        self._study = optuna.create_study(
            directions=[
                "maximize" if find_metric(name, OBJECTIVES).higher_is_better else "minimize" for name in objectives
            ],
            sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=settings.startup_trials),
        )

    def propose(self, number: int) -> Parameters:
        """See :class:`Searcher`."""
        for attempt in range(_ATTEMPTS):
            asked = self._study.ask(self._distributions)
            point = {name: _value(axis, asked.params[name]) for name, axis in self._space.items()}
            if point not in self._seen or attempt == _ATTEMPTS - 1:
                break
            self._fail(asked)
        self._seen.append(point)
        self._asked[number] = asked
        return point

    def resume(self, number: int, parameters: Parameters) -> None:
        """See :class:`Searcher`."""
        self._seen.append(parameters)
        self._study.enqueue_trial({name: _coded(self._space[name], value) for name, value in parameters.items()})
        self._asked[number] = self._study.ask(self._distributions)

    def learn(self, number: int, parameters: Parameters, values: Sequence[float] | None) -> None:
        """See :class:`Searcher`; a trial without objectives teaches nothing."""
        if number not in self._asked:
            self.resume(number, parameters)
        asked = self._asked.pop(number)
        if values is None or not all(map(math.isfinite, values)):
            self._fail(asked)
        else:
            self._study.tell(asked, list(values))

    def _fail(self, asked: Any) -> None:
        import optuna

        self._study.tell(asked, state=optuna.trial.TrialState.FAIL)


def searcher_of(config: TuneConfig, *, known: int = 0) -> Searcher:
    """The searcher of a sweep.

    Args:
        config: the sweep.
        known: trials on record; a learning searcher does not repeat their draws.
    """
    match config.search:
        case RandomSearch():
            return Drawn(config.space, config.seed)
        case GridSearch():
            return Counted(config.space)
        case OptunaSearch():
            return Proposed(config.space, config.objectives, config.search, config.seed + known)


def num_trials(config: TuneConfig) -> int:
    """How many trials the sweep has; a grid has no more than its points."""
    if not isinstance(config.search, GridSearch):
        assert config.num_trials is not None
        return config.num_trials
    points = math.prod(len(_finite(axis)) for axis in config.space.values())
    return min(points, config.num_trials or points)


def _finite(axis: Axis) -> tuple[JsonValue, ...]:
    values = values_of(axis)
    assert values is not None
    return values


def _draw(axis: Axis, generator: random.Random) -> JsonValue:
    match axis:
        case Uniform():
            return generator.uniform(axis.low, axis.high)
        case LogUniform():
            return math.exp(generator.uniform(math.log(axis.low), math.log(axis.high)))
        case _:
            return generator.choice(_finite(axis))


def _distribution(axis: Axis) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    match axis:
        case Uniform():
            return FloatDistribution(axis.low, axis.high)
        case LogUniform():
            return FloatDistribution(axis.low, axis.high, log=True)
        case Integers():
            return IntDistribution(axis.low, axis.high)
        case _:
            # By index: the values may be lists and mappings.
            return CategoricalDistribution(range(len(axis.values)))


def _value(axis: Axis, drawn: Any) -> JsonValue:
    value: JsonValue = drawn if isinstance(axis, Uniform | LogUniform | Integers) else axis.values[drawn]
    return value


def _coded(axis: Axis, value: JsonValue) -> Any:
    return value if isinstance(axis, Uniform | LogUniform | Integers) else list(axis.values).index(value)
