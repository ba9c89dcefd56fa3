import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from retort.nn.delays import apply_delays, delay_mask


@given(T=st.integers(1, 6), delays=st.lists(st.integers(0, 3), min_size=1, max_size=3))
def test_apply_equals_a_slow_loop(T: int, delays: list[int]) -> None:
    codes = torch.randint(0, 50, (2, len(delays), T))
    delayed = apply_delays(codes, delays, fill=99)
    for b in range(2):
        for k, delay in enumerate(delays):
            for s in range(T + max(delays)):
                expected = int(codes[b, k, s - delay]) if 0 <= s - delay < T else 99
                assert int(delayed[b, k, s]) == expected


def test_mask_marks_exactly_the_codes() -> None:
    codes = torch.zeros(2, 3, 5, dtype=torch.int64)
    delayed = apply_delays(codes, (0, 1, 3), fill=1)
    mask = delay_mask(torch.tensor([5, 5]), (0, 1, 3), delayed.shape[2])
    assert torch.equal(mask, delayed == 0)
    short = delay_mask(torch.tensor([2, 5]), (0, 1, 3), delayed.shape[2])
    assert short[0].sum() == 6


def test_a_wrong_number_of_delays_is_refused() -> None:
    with pytest.raises(ValueError, match="3 codebooks"):
        apply_delays(torch.zeros(1, 3, 4, dtype=torch.int64), (0, 1), fill=0)
