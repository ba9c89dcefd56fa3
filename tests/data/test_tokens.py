"""Rows of a token set as parquet records."""

import pytest
import torch

from retort.data.tokens import TokenRow, record_to_row, row_to_record


@pytest.mark.parametrize(("largest", "width"), [(0, 2), (32767, 2), (32768, 4), (65535, 4)])
def test_codes_take_as_many_bytes_as_the_largest_needs(largest: int, width: int) -> None:
    codes_KT = torch.tensor([[0, largest, 7], [1, 2, 3]])
    record = row_to_record(TokenRow("a", "one", (3, 4), "s", "train", codes_KT, 0.1))
    assert len(record["codes"]) == width * codes_KT.numel()
    assert torch.equal(record_to_row(record).codes_KT, codes_KT)


def test_a_row_without_frames_comes_back() -> None:
    record = row_to_record(TokenRow("a", "one", (3,), "s", "train", torch.zeros(2, 0, dtype=torch.int64), 0.0))
    assert record_to_row(record).codes_KT.shape == (2, 0)
