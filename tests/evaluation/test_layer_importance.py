"""What an utterance counts in a ranking of layers, and the statistics of rankings."""

import itertools

import numpy as np
import pytest

from retort.evaluation.items import Expected, ItemResult, failed_item
from retort.evaluation.layer_importance import kendall_tau, resampled_means, scored_wer


def item(wer: float, *reasons: str) -> ItemResult:
    made = failed_item("s", Expected("a", "one two"))
    return ItemResult(**{**vars(made), "wer": wer, "failure_reasons": reasons})


@pytest.mark.parametrize(
    ("wer", "reasons", "counts"),
    [
        (0.25, (), 0.25),
        (0.75, ("wer",), 0.75),
        (3.0, ("wer",), 1.0),
        (0.0, ("no_eos",), 1.0),
        (0.5, ("silence", "wer"), 1.0),
    ],
)
def test_failures_count_as_one_and_nothing_counts_more(wer: float, reasons: tuple[str, ...], counts: float) -> None:
    assert scored_wer(item(wer, *reasons)) == counts


def test_what_was_not_delivered_counts_as_one() -> None:
    assert scored_wer(failed_item("s", Expected("a", "one two"))) == 1.0


def test_kendalls_tau_by_its_definition() -> None:
    random = np.random.default_rng(0)
    a, many = random.integers(0, 4, 6).astype(float), random.integers(0, 4, (5, 6)).astype(float)
    found = kendall_tau(a, many)
    for row, tau in zip(many, found, strict=True):
        pairs = list(itertools.combinations(range(6), 2))
        agree = [np.sign(a[i] - a[j]) * np.sign(row[i] - row[j]) for i, j in pairs]
        assert tau == pytest.approx(sum(agree) / len(pairs))
    order = np.arange(5.0)
    assert kendall_tau(order, np.stack([order, -order])).tolist() == [1.0, -1.0]
    assert kendall_tau(np.ones(1), np.ones((3, 1))).tolist() == [1.0] * 3


def test_resamples_are_paired_over_layers() -> None:
    values = np.random.default_rng(1).random(40)
    means = resampled_means(np.stack([values, values + 0.5, values * 0.0]), num_resamples=300, seed=2)
    assert means.shape == (300, 3)
    np.testing.assert_allclose(means[:, 1] - means[:, 0], 0.5)
    assert means[:, 0].std() > 0
    assert abs(means[:, 0].mean() - values.mean()) < 0.02
    again = resampled_means(np.stack([values]), num_resamples=300, seed=2)
    np.testing.assert_array_equal(again[:, 0], means[:, 0])
