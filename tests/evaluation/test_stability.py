import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retort.errors import DataError
from retort.evaluation.stability import StabilityConfig, assess, silence_ratio
from retort.inference.runaway import Repeat, longest_repeat

RATE = 16_000


def speech(seconds=1.5, level=0.1):
    return level * torch.randn(int(seconds * RATE), generator=torch.Generator().manual_seed(0)).clamp(-3, 3)


def reasons(samples=None, **facts):
    return assess(speech() if samples is None else samples, RATE, "one two three", **facts).reasons


def test_a_healthy_utterance_breaks_no_rule():
    codes = torch.arange(60).view(1, 60).repeat(2, 1)
    found = assess(speech(), RATE, "one two three", wer=0.5, has_eos=True, codes=codes)
    assert not found.is_failure
    assert found.duration_s == 1.5
    assert found.seconds_per_word == 0.5
    assert found.silence_ratio == 0.0


@pytest.mark.parametrize(
    ("broken", "facts"),
    [
        ("wer", {"wer": 0.51}),
        ("no_eos", {"has_eos": False}),
        ("too_long", {"samples": speech(5.6)}),
        ("too_short", {"samples": speech(0.2)}),
        ("silence", {"samples": torch.zeros(RATE)}),
        ("silence", {"samples": torch.cat([speech(0.1), torch.zeros(RATE)])}),
        ("clipping", {"samples": (speech() * 100).clamp(-1, 1)}),
        ("not_finite", {"samples": torch.cat([speech(), torch.tensor([float("nan")])])}),
        ("repeat", {"codes": torch.cat([torch.arange(20), torch.tensor([5, 6]).repeat(15)])}),
    ],
)
def test_each_rule_fires_alone(broken, facts):
    assert reasons(**facts) == (broken,)


def test_unknown_facts_break_no_rule():
    assert reasons(wer=None, has_eos=None, codes=None) == ()


def test_no_samples_at_all():
    found = assess(torch.zeros(0), RATE, "one")
    assert found.reasons == ("too_short", "silence")
    assert found.duration_s == 0.0


def test_infinite_samples_do_not_spoil_the_other_measures():
    found = assess(torch.full((RATE,), float("inf")), RATE, "one two")
    assert found.reasons == ("silence", "not_finite")


def test_limits_are_configurable():
    assert reasons(wer=0.51, config=StabilityConfig(max_wer=0.6)) == ()


def test_a_sample_rate_of_zero_is_refused():
    with pytest.raises(DataError, match="0 Hz"):
        assess(speech(), 0, "one")


def test_silence_ratio_counts_frames():
    half = torch.cat([speech(1.0), torch.zeros(RATE)])
    assert silence_ratio(half, RATE, -50.0) == 0.5


def slow_longest_repeat(codes, max_period):
    """Every start, every period, step by step."""
    best = Repeat(0, 0)
    for period in range(1, max_period + 1):
        for start in range(len(codes)):
            end = start + period
            while end < len(codes) and codes[end] == codes[end - period]:
                end += 1
            if end - start >= 2 * period and end - start > best.steps:
                best = Repeat(end - start, period)
    return best


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=0, max_size=18))
def test_longest_repeat_equals_the_slow_search(codes):
    expected = slow_longest_repeat(codes, 6)
    assert longest_repeat(torch.tensor(codes, dtype=torch.long), max_period=6) == expected


def test_all_codebooks_must_repeat_together():
    same = torch.zeros(10, dtype=torch.long)
    rising = torch.arange(10)
    assert longest_repeat(torch.stack([same, same])) == Repeat(10, 1)
    assert longest_repeat(torch.stack([same, rising])) == Repeat(0, 0)
