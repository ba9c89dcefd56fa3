"""Successive halving among peers, against a slow statement of the rule."""

import math

from hypothesis import given
from hypothesis import strategies as st

from retort.tuning.halving import SuccessiveHalving

REPORTS = st.lists(
    st.tuples(st.integers(0, 9), st.sampled_from([5, 10, 19, 30, 95]), st.sampled_from([1.0, 2.0, 3.0]),
              st.sampled_from([1.0, 8.0])),
    max_size=40,
)  # fmt: skip


def rung_of(step: int) -> int | None:
    """The last of 10, 30, 90 that ``step`` has reached."""
    reached = [number for number, milestone in enumerate((10, 30, 90)) if step >= milestone]
    return reached[-1] if reached else None


@given(REPORTS)
def test_the_best_third_of_those_that_are_no_larger_go_on(reports: list[tuple[int, int, float, float]]) -> None:
    halving = SuccessiveHalving(first_rung=10, reduction=3.0, min_peers=2)
    seen: dict[tuple[int | None, int], tuple[float, float]] = {}
    for trial, step, value, size in reports:
        rung = rung_of(step)
        expected = True
        if rung is not None and (rung, trial) not in seen:
            peers = [v for (r, _), (v, s) in seen.items() if r == rung and s <= size]
            place = sum(v < value for v in peers)  # 0 is the best
            expected = len(peers) < 2 or place < math.ceil((len(peers) + 1) / 3)
            seen[rung, trial] = (value, size)
        assert halving.goes_on(trial, step=step, value=value, size=size) == expected


def test_a_small_model_is_not_stopped_by_large_ones() -> None:
    halving = SuccessiveHalving(first_rung=10, reduction=2.0, min_peers=1)
    assert all(halving.goes_on(n, step=10, value=1.0, size=100.0) for n in range(3))
    assert halving.goes_on(3, step=10, value=2.0, size=10.0)
    assert not halving.goes_on(4, step=10, value=3.0, size=100.0)


def test_what_is_not_a_number_is_stopped() -> None:
    assert not SuccessiveHalving(1, 2.0, 5).goes_on(0, step=1, value=math.nan, size=1.0)
