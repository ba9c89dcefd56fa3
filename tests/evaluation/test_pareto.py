"""The Pareto front, against its definition."""

from hypothesis import given
from hypothesis import strategies as st

from retort.evaluation.metrics import OBJECTIVES
from retort.evaluation.pareto import costs, dominates, figures_of, pareto_front

# Few values, so that ties and equal points are common.
POINTS = st.integers(1, 4).flatmap(
    lambda n: st.lists(st.tuples(*[st.sampled_from([-1.0, 0.0, 0.5, 2.0, 1e9])] * n), max_size=25)
)


@given(POINTS)
def test_front_is_what_no_other_point_dominates(points: list[tuple[float, ...]]) -> None:
    def is_beaten(b: tuple[float, ...]) -> bool:
        return any(
            all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))
            for a in points
        )

    assert pareto_front(points) == [i for i, point in enumerate(points) if not is_beaten(point)]


@given(POINTS)
def test_every_point_is_on_the_front_or_dominated_by_one_that_is(points: list[tuple[float, ...]]) -> None:
    front = pareto_front(points)
    assert bool(front) == bool(points)
    for index, point in enumerate(points):
        assert index in front or any(dominates(points[other], point) for other in front)


def test_costs_turn_what_should_be_high_and_are_whole_or_absent() -> None:
    figures = figures_of({"wer_corpus": 0.2, "tokens_per_second": 300.0, "parameters": 10, "peak_memory_mb": None})
    assert set(figures) == set(OBJECTIVES)
    assert costs(figures, ["wer", "tokens_per_second", "parameters"]) == (0.2, -300.0, 10)
    assert costs(figures, ["wer", "memory"]) is None
