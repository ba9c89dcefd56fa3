import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retort.errors import DataError
from retort.evaluation.bootstrap import confidence_interval, paired_comparison, resample_indices

ERRORS = [0, 1, 3, 0, 2, 5, 0, 0, 1, 4, 0, 2]
OTHER = [0, 0, 3, 0, 1, 6, 0, 1, 0, 2, 0, 1]
WORDS = [5, 4, 6, 3, 5, 7, 2, 4, 4, 5, 3, 6]


def slow_resamples(values, weights, num_resamples, seed):
    """The definition, one utterance at a time, over the same draws."""
    ratios = []
    for block in resample_indices(len(values), num_resamples, seed):
        for row in block:
            errors = words = 0.0
            for i in row:
                errors += values[i]
                words += weights[i]
            ratios.append(errors / words)
    return ratios


def test_interval_equals_the_slow_loop():
    ratios = slow_resamples(ERRORS, WORDS, 400, seed=3)
    found = confidence_interval(ERRORS, WORDS, num_resamples=400, seed=3)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(ratios, [0.025, 0.975])))
    assert found.reliable


def test_comparison_equals_the_slow_loop():
    first = slow_resamples(ERRORS, WORDS, 400, seed=3)
    second = slow_resamples(OTHER, WORDS, 400, seed=3)
    found = paired_comparison(ERRORS, OTHER, WORDS, num_resamples=400, seed=3)
    differences = [b - a for a, b in zip(first, second, strict=True)]
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(differences, [0.025, 0.975])))
    better = [1.0 if d < -1e-12 else 0.5 if abs(d) <= 1e-12 else 0.0 for d in differences]
    assert found.probability_of_improvement == pytest.approx(np.mean(better))
    assert found.difference == pytest.approx((sum(OTHER) - sum(ERRORS)) / sum(WORDS))


def test_brute_force_over_every_possible_resample():
    """With four utterances all 256 resamples can be listed; the bootstrap must find their distribution."""
    a, b, words = [1, 0, 2, 0], [0, 1, 0, 0], [3, 2, 4, 1]
    every = [
        (sum(b[i] for i in draw) - sum(a[i] for i in draw)) / sum(words[i] for i in draw)
        for draw in itertools.product(range(4), repeat=4)
    ]
    exact = np.mean([1.0 if d < 0 else 0.5 if d == 0 else 0.0 for d in every])
    found = paired_comparison(a, b, words, num_resamples=40_000, seed=1)
    assert found.probability_of_improvement == pytest.approx(exact, abs=0.01)
    assert found.low == pytest.approx(np.quantile(every, 0.025), abs=0.02)
    assert found.high == pytest.approx(np.quantile(every, 0.975), abs=0.02)


def test_blocks_of_draws_do_not_change_the_number_of_resamples():
    blocks = list(resample_indices(1_500_000, 3, seed=0))
    assert [len(block) for block in blocks] == [1, 1, 1]


counts = st.lists(st.integers(0, 9), min_size=1, max_size=20)


@settings(max_examples=40, deadline=None)
@given(counts, st.integers(0, 5))
def test_a_system_against_itself_differs_by_nothing(errors, seed):
    found = paired_comparison(errors, errors, num_resamples=100, seed=seed)
    assert (found.difference, found.low, found.high, found.probability_of_improvement) == (0.0, 0.0, 0.0, 0.5)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(1, 9)), min_size=1, max_size=20))
def test_exchanging_the_systems_changes_the_sign(rows):
    a, b, words = zip(*rows, strict=True)
    forward = paired_comparison(a, b, words, num_resamples=200)
    backward = paired_comparison(b, a, words, num_resamples=200)
    assert forward.difference == pytest.approx(-backward.difference)
    assert (forward.low, forward.high) == pytest.approx((-backward.high, -backward.low))
    assert forward.probability_of_improvement == pytest.approx(1.0 - backward.probability_of_improvement)


def test_fractions_that_cancel_are_ties():
    a, b = [0.1 + 0.2, 0.3], [0.3, 0.1 + 0.2]
    assert paired_comparison([a[0]] * 9, [b[0]] * 9).probability_of_improvement == 0.5


def test_higher_is_better_turns_the_probability_round():
    rates = {"num_resamples": 300, "seed": 2}
    lower = paired_comparison(ERRORS, OTHER, **rates).probability_of_improvement
    higher = paired_comparison(ERRORS, OTHER, higher_is_better=True, **rates).probability_of_improvement
    assert lower + higher == pytest.approx(1.0)
    assert lower > 0.5


def test_whole_speakers_are_resampled():
    """Twelve utterances of two speakers are two units: all-or-nothing draws, and too few to trust."""
    errors = [1] * 6 + [0] * 6
    speakers = ["a"] * 6 + ["b"] * 6
    clustered = confidence_interval(errors, clusters=speakers, num_resamples=2000)
    single = confidence_interval(errors, num_resamples=2000)
    assert (clustered.low, clustered.high) == (0.0, 1.0)
    assert 0.0 < single.low < single.high < 1.0
    assert (clustered.units, clustered.reliable) == (2, False)
    assert (single.units, single.reliable) == (12, True)


def test_a_paired_comparison_resamples_whole_speakers_too():
    """One speaker of two is better, the other worse: with all utterances of each, nothing is sure."""
    a, b = [1.0] * 12, [0.0] * 8 + [2.0] * 4
    speakers = ["a"] * 8 + ["b"] * 4
    clustered = paired_comparison(a, b, clusters=speakers, num_resamples=2000)
    single = paired_comparison(a, b, num_resamples=2000)
    assert clustered.difference == single.difference == pytest.approx(-1 / 3)
    assert (clustered.low, clustered.high) == (-1.0, 1.0)
    assert -1.0 < single.low < single.high < 1.0
    assert (clustered.units, single.units) == (2, 12)


def test_clusters_of_one_are_no_clusters():
    assert confidence_interval(ERRORS, WORDS, clusters=range(12)) == confidence_interval(ERRORS, WORDS)


def test_coverage_of_a_mean_is_near_its_level():
    random = np.random.default_rng(0)
    inside = 0
    for trial in range(200):
        sample = random.random(60)
        found = confidence_interval(sample, num_resamples=400, seed=trial)
        inside += found.low <= 0.5 <= found.high
    assert 0.88 <= inside / 200 <= 0.99


@pytest.mark.parametrize(("count", "reliable"), [(3, False), (7, False), (8, True)])
def test_few_utterances_are_said_to_be_too_few(count, reliable):
    assert confidence_interval([0.5] * count, num_resamples=50).reliable is reliable
    found = paired_comparison([1.0] * count, [0.0] * count, num_resamples=50)
    assert found.reliable is reliable


def test_impossible_inputs_are_refused():
    with pytest.raises(DataError, match="no utterances"):
        confidence_interval([])
    with pytest.raises(DataError, match="2 values but 1 weights"):
        confidence_interval([1, 2], [1])
    with pytest.raises(DataError, match="same utterances"):
        paired_comparison([1, 2], [1])
    with pytest.raises(DataError, match="cluster"):
        confidence_interval([1, 2], clusters=["a"])


def test_empty_references_count_over_one_word():
    found = confidence_interval([2.0] * 8, [0.0] * 8, num_resamples=20)
    assert (found.low, found.high) == (16.0, 16.0)
