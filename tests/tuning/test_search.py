"""Where the next trial is."""

import itertools
import math
from typing import Any

import pytest

from retort.run_config.space import Choice, Integers, LogUniform, Together, Uniform, changes
from retort.run_config.tune import OptunaSearch
from retort.tuning.search import Counted, Drawn, Proposed

SPACE: dict[str, Any] = {
    "a.layers": Choice(values=([1], [1, 2])),
    "width": Together(values=({"a.dim": 8, "a.heads": 1}, {"a.dim": 16, "a.heads": 2})),
    "a.steps": Integers(low=1, high=3),
    "a.ratio": Uniform(low=0.0, high=1.0),
    "a.rate": LogUniform(low=1e-4, high=1e-2),
}
FINITE = {name: SPACE[name] for name in ("a.layers", "width", "a.steps")}


def is_inside(point: Any) -> bool:
    return (
        point["a.layers"] in ([1], [1, 2])
        and point["width"] in SPACE["width"].values
        and point["a.steps"] in (1, 2, 3)
        and 0.0 <= point["a.ratio"] <= 1.0
        and 1e-4 <= point["a.rate"] <= 1e-2
    )


def test_random_points_depend_on_the_seed_and_the_number_alone() -> None:
    first, again = Drawn(SPACE, 0), Drawn(SPACE, 0)
    points = [first.propose(n) for n in range(30)]
    assert all(map(is_inside, points))
    assert [again.propose(n) for n in (7, 3, 29)] == [points[n] for n in (7, 3, 29)]
    assert Drawn(SPACE, 1).propose(0) != points[0]
    assert 0.3 < sum(math.log10(p["a.rate"]) < -3 for p in points) / 30 < 0.7


def test_a_small_space_is_seen_whole_before_a_point_comes_twice() -> None:
    drawn = Drawn(FINITE, 0)
    points = [drawn.propose(n) for n in range(14)]
    assert len({str(point) for point in points[:10]}) == 10


def test_a_grid_is_every_combination_in_order() -> None:
    grid = Counted(FINITE)
    points = [tuple(grid.propose(n).values()) for n in range(12)]
    assert points == list(itertools.product(*(([1], [1, 2]), FINITE["width"].values, (1, 2, 3))))


def test_changes_write_the_keys_of_every_axis() -> None:
    point = {"width": SPACE["width"].values[1], "a.steps": 2, "a.layers": [1, 2]}
    assert changes(SPACE, point) == {"a.dim": 16, "a.heads": 2, "a.steps": 2, "a.layers": [1, 2]}


def cost(point: Any) -> tuple[float, float]:
    """Two objectives that want opposite ratios and the same rate."""
    off = (math.log10(point["a.rate"]) + 3.0) ** 2
    return point["a.ratio"] + off, 1.0 - point["a.ratio"] + off


def test_optuna_learns_and_goes_on_from_the_trials_on_record() -> None:
    pytest.importorskip("optuna")
    searcher = Proposed(SPACE, ("wer", "parameters"), OptunaSearch(startup_trials=8), 0)
    history = []
    for number in range(40):
        point = searcher.propose(number)
        assert is_inside(point)
        values = None if number % 7 == 3 else cost(point)
        searcher.learn(number, point, values)
        history.append((number, point, values))
    resumed = Proposed(SPACE, ("wer", "parameters"), OptunaSearch(startup_trials=8), 99)
    for number, point, values in history:
        resumed.learn(number, point, values)
    for proposer in (searcher, resumed):
        later = [proposer.propose(n) for n in range(40, 50)]
        mean = sum((math.log10(p["a.rate"]) + 3.0) ** 2 for p in later) / 10
        assert mean < 0.33, "a uniform draw of the exponent has 1/3"


def test_a_trial_that_goes_on_keeps_its_parameters_in_the_study() -> None:
    searcher = Proposed(SPACE, ("wer",), OptunaSearch(startup_trials=1), 0)
    point = {"a.layers": [1, 2], "width": SPACE["width"].values[1], "a.steps": 3, "a.ratio": 0.25, "a.rate": 1e-3}
    searcher.resume(4, point)
    searcher.learn(4, point, [0.5])
    told = searcher._study.get_trials()[0]
    assert told.values == [0.5]
    assert told.params == {"a.layers": 1, "width": 1, "a.steps": 3, "a.ratio": 0.25, "a.rate": 1e-3}
