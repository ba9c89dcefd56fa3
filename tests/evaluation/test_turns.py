"""Turns, medians and the noise floor, by a clock that only the timed things move."""

import random
import statistics
from collections.abc import Iterable

import pytest

from retort.evaluation.medians import median_of
from retort.evaluation.noise_floor import floor_tree, is_equal, ratio_of, sentence
from retort.evaluation.turns import Figures, Round, Turns, column, take_turns, turns_of


class Clock:
    """Stands still until something takes time."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Task:
    """Takes ``seconds`` by the clock, and writes down who was called in which round."""

    def __init__(self, clock: Clock, log: list[tuple[str, int]], name: str, seconds: float) -> None:
        self.clock, self.log, self.name, self.seconds = clock, log, name, seconds

    def __call__(self, number: int) -> Figures | None:
        self.clock.now += self.seconds
        self.log.append((self.name, number))
        return {"seconds": self.seconds, "calls": float(len(self.log))}


def by_system(rounds: Iterable[Round]) -> dict[str, list[Figures | None]]:
    found = list(rounds)
    return {name: turns_of(found, name) for name in found[0]}


def timed(turns: Turns, **seconds: float) -> tuple[dict[str, list[Figures | None]], list[tuple[str, int]], float]:
    clock, log = Clock(), []
    tasks = {name: Task(clock, log, name, each) for name, each in seconds.items()}
    return by_system(take_turns(tasks, turns, clock)), log, clock.now


def test_systems_take_turns_after_a_warm_up_and_each_round_goes_the_other_way() -> None:
    found, log, _ = timed(Turns(rounds=3, window_s=0.3, budget_s=99.0), a=1.0, b=1.0, c=1.0)
    assert "".join(name for name, _ in log) == "abc" + "abc" + "cba" + "abc"
    assert [number for _, number in log] == [0] * 3 + [0] * 3 + [1] * 3 + [2] * 3
    assert [len(rounds) for rounds in found.values()] == [3, 3, 3], "the warm-up is forgotten"


def test_every_system_fills_its_window_in_all_of_its_rounds_however_quick_it_is() -> None:
    found, log, took = timed(Turns(rounds=4, window_s=2.0, budget_s=99.0), quick=0.125, slow=0.7)
    assert {name: len(rounds) for name, rounds in found.items()} == {"quick": 4, "slow": 4}
    calls = {name: [number for who, number in log if who == name][1:] for name in ("quick", "slow")}
    assert calls == {"quick": [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4, "slow": [0, 1, 2, 3]}
    assert took == pytest.approx(0.825 + 16 * 0.125 + 4 * 0.7)


def test_the_round_of_many_calls_is_the_median_call() -> None:
    clock, lengths = Clock(), [9.0, 1.0, 5.0, 1.0, 1.0]

    def task(_: int) -> Figures:
        clock.now += 1.0
        return {"s": lengths.pop(0)}

    assert by_system(take_turns({"a": task}, Turns(1, 4.0, 99.0), clock)) == {"a": [{"s": 1.0}]}
    assert lengths == []


def test_no_round_begins_after_the_budget_but_the_first() -> None:
    found, _, took = timed(Turns(rounds=9, window_s=9.0, budget_s=10.0), a=2.0, b=1.0)
    assert {name: len(rounds) for name, rounds in found.items()} == {"a": 3, "b": 3}, "as many for each"
    assert took < 10.0 + 3.0
    assert len(timed(Turns(9, 9.0, 1.0), a=20.0)[0]["a"]) == 1


def test_a_turn_with_a_call_that_fails_has_nothing_and_ends_there() -> None:
    clock, answers = Clock(), [None, {"s": 3.0}, {"s": 3.0}, {"s": 3.0}, None]

    def task(_: int) -> Figures | None:
        clock.now += 1.0
        return answers.pop(0)

    found = by_system(take_turns({"a": task}, Turns(2, 4.0, 99.0), clock))["a"]
    assert found == [{"s": 3.0}, None]
    assert column(found, "s") == [3.0, None]
    assert answers == []


@pytest.mark.parametrize(
    ("count", "rank"), [(1, None), (5, None), (6, 1), (8, 1), (9, 2), (10, 2), (11, 2), (12, 3), (20, 6), (100, 40)]
)
def test_the_interval_of_a_median_lies_between_the_ranks_of_the_table(count: int, rank: int | None) -> None:
    values = [float(i) for i in range(1, count + 1)]
    random.Random(0).shuffle(values)
    found = median_of(values)
    assert found.value == statistics.median(values)
    assert found.interval == (None if rank is None else (float(rank), float(count + 1 - rank)))


def test_the_interval_holds_the_median_of_a_skewed_distribution_as_often_as_it_says() -> None:
    draw, held = random.Random(1), 0
    for _ in range(2000):
        low, high = median_of([draw.expovariate(0.6931471805599453) for _ in range(12)]).interval or (9.0, 0.0)
        held += low <= 1.0 <= high
    assert 0.95 <= held / 2000 < 0.98


def test_the_floor_is_the_farthest_that_identical_networks_may_be_apart() -> None:
    first = [10.0, 11.0, 9.0, 10.0, 12.0, 10.0, None]
    again = [10.5, 11.0, 9.0, 10.2, 9.6, 10.0, 99.0]
    found = ratio_of(first, again)
    assert found is not None
    assert found.value == 1.0
    assert found.interval == pytest.approx((0.8, 1.05))
    assert found.factor == pytest.approx(1.25), "a ratio and its inverse are as far apart"
    few = ratio_of([10.0, 10.0], [9.0, 11.0])
    assert few is not None
    assert (few.interval, few.factor) == (None, pytest.approx(10 / 9))
    assert ratio_of([None], [1.0]) is None
    same = ratio_of([3.0] * 6, [3.0] * 6)
    assert same is not None
    assert (same.value, same.interval, same.factor) == (1.0, (1.0, 1.0), 1.0)


def test_what_differs_by_no_more_than_the_floor_is_equal_and_without_a_floor_nothing_is() -> None:
    found = ratio_of([10.0] * 6, [12.5] * 6)
    assert found is not None
    floor = floor_tree("teacher", {"tokens_per_second": found})
    assert floor == {
        "system": "teacher",
        "ratios": {"tokens_per_second": {"ratio": 1.25, "ci95": [1.25, 1.25], "factor": 1.25}},
    }
    assert [is_equal(floor, "tokens_per_second", r) for r in (0.8, 1.0, 1.25, 0.79, 1.26)] == [True] * 3 + [False] * 2
    assert not is_equal(floor, "rtf", 1.0)
    assert not is_equal(None, "tokens_per_second", 1.0)
    assert "teacher, opened twice, differs from itself by up to: Tokens/s 25.0 %." in sentence(floor)
